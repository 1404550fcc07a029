"""Labelling runs side by side: what `firnline compare` prints, from MLflow alone."""

from collections.abc import Sequence

from pipelines.label.scores import PER_CLASS, PROTOCOL, class_of
from pipelines.tracking.runs import RunRecord, finished_runs
from pipelines.tracking.server import Tracking

COLUMNS = {
    "hungarian": "test.hungarian_accuracy",
    "purity": "test.purity",
    "nmi": "test.nmi",
    "ari": "test.ari",
    "knn": "test.knn_accuracy",
    "knn station": "test.knn_station_accuracy",
    "linear": "test.linear_accuracy",
    "linear station": "test.linear_station_accuracy",
    "propagated": "test.propagated_accuracy",
    "baseline": "test.majority_baseline",
}


def compare_runs(trackings: Sequence[Tracking]) -> str:
    """Return a table of the finished labelling runs of some experiments, and how each of its numbers is made."""
    seen: dict[str, RunRecord] = {}
    for tracking in trackings:
        seen |= {run.run_id: run for run in finished_runs(tracking, "label")}
    if not seen:
        return "no finished labelling run"
    header = ["experiment", "run", "started (UTC)", "model", "encoder", "k", "inertia", "events", "labelled", *COLUMNS]
    lines = _table([header, *(_row(run) for run in seen.values())])
    words = [f"{short}: {PROTOCOL[name]}" for short, name in {"inertia": "inertia", **COLUMNS}.items()]
    by_class = [row for run in seen.values() for row in _class_rows(run)]
    if by_class:
        lines += ["", *_table([["run", "class", *(name.removeprefix("test.") for name in PER_CLASS)], *by_class])]
        words += [f"{name.removeprefix('test.')}: {PROTOCOL[name]}" for name in PER_CLASS]
    return "\n".join([*lines, "", *words, "[low, high]: 95 % bootstrap interval over events"])


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(run: RunRecord) -> list[str]:
    metrics = run.metrics
    return [
        run.experiment,
        run.run_id[:8],
        f"{run.started:%Y-%m-%d %H:%M}",
        run.tags.get("firnline.model", "-").removeprefix("models:/"),
        run.tags.get("firnline.encoder", "-")[:8],
        f"{metrics['num_clusters']:.0f}" if "num_clusters" in metrics else "-",
        f"{metrics['inertia']:.6g}" if "inertia" in metrics else "-",
        f"{metrics['num_events']:.0f}" if "num_events" in metrics else "-",
        f"{metrics['labelled_events.test']:.0f}" if "labelled_events.test" in metrics else "-",
        *(_score(metrics, name) for name in COLUMNS.values()),
    ]


def _class_rows(run: RunRecord) -> list[list[str]]:
    endings = {key.removeprefix(f"{name}.") for name in PER_CLASS for key in run.metrics if key.startswith(f"{name}.")}
    return [
        [run.run_id[:8], class_of(ending), *(_score(run.metrics, f"{name}.{ending}") for name in PER_CLASS)]
        for ending in sorted(endings)
    ]


def _score(metrics: dict[str, float], name: str) -> str:
    if name not in metrics:
        return "-"
    if f"{name}.low" in metrics:
        return f"{metrics[name]:.3f} [{metrics[f'{name}.low']:.3f}, {metrics[f'{name}.high']:.3f}]"
    return f"{metrics[name]:.3f}"
