"""Report: reads events, embeddings and labels, writes `catalog/` and `report/index.html`.

Labels are folded file by file into a summary of bounded size, as Ray tasks where they are many; of the other tables
only the files, columns and row groups that hold chosen events are read. The catalogue is written a month at a time.
The result does not depend on the order or number of the tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines import __version__
from pipelines import config as configuration
from pipelines.config import Config
from pipelines.report.page import Page, render
from pipelines.report.stage_catalogue import write_catalog
from pipelines.report.stage_inputs import association_seconds, label_files, read_evaluation
from pipelines.report.stage_page import build_page
from pipelines.report.stage_summary import summarise_labels
from pipelines.report.stage_unlabelled import count_unlabelled, earlier_encoder_words, unlabelled_words
from pipelines.report.summary import SummarySize
from pipelines.report.words import count_words, percent
from pipelines.runtime.errors import InputError
from pipelines.runtime.text import printable
from pipelines.tracking.runs import stage_run
from pipelines.tracking.server import Tracking
from pipelines.workspace import tables
from pipelines.workspace.ledger import (
    MarkerName,
    fingerprint,
    list_markers,
    marker_path,
    read_marker,
    stage_fingerprint,
    write_marker,
)
from pipelines.workspace.replacement import result_of
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import Workspace

ALGORITHM_VERSION = 5
"""Raised by hand when the same tables and settings give another catalogue or page."""

PAGE_PATH = "report/index.html"


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """What the report stage wrote."""

    events: int
    """Rows of `labels/`."""
    clusters: Mapping[int, int]
    """Rows of each cluster."""
    catalog_events: int
    """Associated events in the catalogue."""
    page: str
    """Path or URL of the page."""


def write_report(
    workspace: Workspace, config: Config, tracking: Tracking | None, *, replace: bool = False
) -> ReportResult:
    """Write the catalogue and the page, print what was found, log both to MLflow, and return the counts.

    Where both were made from the same tables with the same settings before, nothing is done.

    Raises:
        InputError: the workspace has no labels, or a report with other settings and no `replace`.
    """
    files = label_files(workspace)
    with result_of(workspace, "report", config, replace=replace) as place:
        content = _write(place, config, tracking, files)
    return _say(workspace.store, content)


def _write(workspace: Workspace, config: Config, tracking: Tracking | None, files: Sequence[str]) -> Mapping[str, Any]:
    """Write catalogue and page, and return the marker's content."""
    store = workspace.store
    marker = _marker_name(workspace, config)
    before = list(list_markers(store, "report"))
    if marker in before and store.exists(PAGE_PATH):
        content = read_marker(store, "report", marker)
        print("report: nothing to do, the report of these tables is up to date")
        return content
    unlabelled = count_unlabelled(store)
    detected = {item.path.removeprefix("events/") for item in tables.list_shards(store, "events")}
    files = [file for file in files if file in detected]
    if not files:
        raise InputError(f"{workspace.url} has labels, but none of their events; run firnline label {workspace.url}")
    per_role = config.report.nearest_per_cluster + config.report.random_per_cluster + config.report.boundary_per_cluster
    summary = summarise_labels(store, files, SummarySize(per_role=per_role, sample=config.report.map_events))
    if not summary.files["events"].sum():
        raise InputError(f"the labels in {workspace.url} have no rows; nothing was detected, so there is no report")
    within_seconds = association_seconds(workspace)
    catalog_files, catalog_events = write_catalog(workspace, config.catalog, summary, within_seconds)
    notes = [*unlabelled_words(unlabelled, workspace.url), *earlier_encoder_words(workspace)]
    page = build_page(workspace, config.report, summary, catalog_files, catalog_events, within_seconds, notes, tracking)
    html = render(page)
    figures = _write_figures(store, page)
    store.write(PAGE_PATH, html.encode())
    clusters = summary.groups.groupby("cluster")["events"].sum()
    content = {
        "words": _words(page),
        "counts": {
            "events": int(clusters.sum()),
            "clusters": {str(cluster): int(count) for cluster, count in clusters.items()},
            "catalog_events": catalog_events,
            "events_without_label": unlabelled.without_label,
        },
        "code_version": __version__,
    }
    if tracking is not None:
        inputs = {"labels": stage_fingerprint(store, "label")}
        with stage_run(tracking, "report", configuration.stage_config(config, "report"), inputs=inputs) as run:
            run.log_metrics(
                {
                    "events": int(clusters.sum()),
                    "events_without_label": unlabelled.without_label,
                    "catalog_events": catalog_events,
                    "clusters": len(clusters),
                }
            )
            run.log_text(html, "report/index.html")
            for path, content_of in figures.items():
                run.log_bytes(content_of, path)
            content["mlflow_run_id"] = run.run_id
    write_marker(store, "report", marker, content)
    for name in before:
        if name != marker:
            store.remove(marker_path("report", name))
    return content


def _write_figures(store: Store, page: Page) -> dict[str, bytes]:
    """Write the page's figures as files beside it, remove those that it no longer has, and return them by path."""
    drawn = (*page.activity, *page.measures, *page.coverage, *page.map)
    files = {
        f"report/figures/{figure.name}.{suffix}": content
        for figure in drawn
        for suffix, content in figure.files.items()
    }
    for path, content in files.items():
        store.write(path, content)
    for item in list(store.walk("report/figures")):
        if item.path not in files:
            store.remove(item.path)
    return files


def _marker_name(workspace: Workspace, config: Config) -> MarkerName:
    """Return the marker of a workspace's one report: its fingerprint covers tables, settings and code."""
    store = workspace.store
    labels = [(item.path, item.size, item.etag) for item in tables.list_shards(store, "labels")]
    values = {
        "labels": labels,
        "detect": stage_fingerprint(store, "detect"),
        "evaluation": read_evaluation(store).model_dump(mode="json"),
        "association_seconds": association_seconds(workspace),
        "settings": configuration.stage_output_keys(config, "report"),
        "algorithm_version": ALGORITHM_VERSION,
    }
    if words := earlier_encoder_words(workspace):
        values["earlier_encoder"] = words
    return MarkerName("all", "all", "report", fingerprint(values))


def _words(page: Page) -> list[str]:
    """Return what is printed: events without a label, events by cluster, and agreement with known classes."""
    words = [page.lede, *(f"  {note}" for note in page.notes)]
    for card in page.clusters:
        name = f" ({card.name})" if card.name else ""
        words.append(f"  cluster {card.number}{name}: {count_words(card.events, 'detection')}, {percent(card.share)}")
    words += [f"  {statement.title}: {statement.value}" for statement in page.statements]
    return [printable(line) for line in words]


def _say(store: Store, content: Mapping[str, Any]) -> ReportResult:
    counts = content["counts"]
    page = store.full(PAGE_PATH)
    print("\n".join([*content["words"], f"report: {page}"]), flush=True)
    return ReportResult(
        events=counts["events"],
        clusters={int(cluster): count for cluster, count in counts["clusters"].items()},
        catalog_events=counts["catalog_events"],
        page=page,
    )
