"""What a few hand labels give: accuracy against their number, suggested events beside events at random.

    python benchmarks/labels.py runs/demo=runs/demo-archive/truth
    python benchmarks/labels.py runs/demo=runs/demo-archive/truth runs/other=truth.csv --numbers 10 30

Each WORKSPACE=TRUTH is a labelled workspace and the truth of its events, in the form of `labels.path`. For each seed
its events are clustered anew. `firnline suggest` draws up the shortest list with the wanted number of events that the
truth names; as many are drawn at random. The classifier of `label.propagate linear` learns from them and answers the
test half, of which no event is suggested, drawn or learned from. With no label, clusters at k = number of classes are
matched one to one with the classes of the validation half, so that they know its names. `all` is the validation half.
"""

import argparse
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.config import resolve
from pipelines.config.label import KMeansSettings, LabelsSettings
from pipelines.handlabels.sampling import hand_labels_of_sample
from pipelines.label.draws import event_keys
from pipelines.label.in_memory import cluster_in_memory
from pipelines.label.kmeans import label_rows
from pipelines.label.partitions import gather_local, local_partitions
from pipelines.label.propagation import classify, fit_classifier, standardisation, too_few
from pipelines.label.space import fit_space, to_space
from pipelines.label.suggestions import Clustered, suggest
from pipelines.metrics.evaluation import (
    assigned_accuracy,
    balanced_accuracy,
    expected_calibration_error,
    hungarian_assignment,
)
from pipelines.runtime.errors import InputError
from pipelines.workspace import tables
from pipelines.workspace.event_sample import choose_events
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import open_workspace

NUMBERS = (10, 30, 100, 300)
MAX_EVENTS = 20_000


@dataclass(frozen=True, kw_only=True)
class Events:
    """Events in the order of their ids."""

    ids: list[str]
    embeddings: NDArray[np.float32]
    """(n, d)."""
    labels: NDArray[np.object_]
    """The truth; "" where it names none."""
    events: NDArray[np.object_]
    """Name of the associated event that each belongs to; "" where the truth names none."""
    validation: NDArray[np.bool_]
    """Whether an event that the truth names is in the validation half."""

    @property
    def named(self) -> NDArray[np.bool_]:
        """Whether the truth names each event."""
        return np.asarray(self.labels != "", dtype=bool)


@dataclass(frozen=True)
class Answer:
    """How good the answers for the test half are, and what they took."""

    accuracy: float
    mean_recall: float
    calibration_error: float
    looked_at: int


def read_events(store: Store, labels: LabelsSettings) -> Events:
    """Return at most MAX_EVENTS events of a workspace with their truth."""
    sample = choose_events(store, max_events=MAX_EVENTS, seed=0)
    hand = hand_labels_of_sample(store, sample, labels)
    assert hand is not None
    rows: dict[int, NDArray[np.float32]] = {}
    for path, numbers, indices in sample.by_file(range(len(sample))):
        table = tables.read_rows(store, path.replace("events/", "embeddings/", 1), numbers, ["embedding"])
        rows |= dict(zip(indices, tables.embeddings(table.column("embedding")), strict=True))
    ids = list(sample.event_ids)
    return Events(
        ids=ids,
        embeddings=np.stack([rows[number] for number in range(len(ids))]),
        labels=np.array([hand.label_of.get(each, "") for each in ids], dtype=object),
        events=np.array([hand.event_of.get(each, "") for each in ids], dtype=object),
        validation=np.array([hand.validation.get(each, False) for each in ids], dtype=bool),
    )


def measure(
    events: Events, settings: KMeansSettings, numbers: Sequence[int], seed: int
) -> dict[tuple[str, str], Answer]:
    """Return the answers of one seed, by number of labels and how these were chosen."""
    settings = settings.model_copy(update={"seed": seed})
    gather = gather_local(local_partitions(events.embeddings, event_keys(events.ids)))
    space = fit_space(gather, normalize=settings.normalize, whiten=settings.whiten)
    points = to_space(events.embeddings, space)
    mean, scale = standardisation(points)
    test = events.named & ~events.validation
    truth = events.labels[test]

    def clustered(k: int) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        _, model = cluster_in_memory(events.embeddings, events.ids, settings.model_copy(update={"k": k}), measured=True)
        return model.centroids, model.clusters

    def answered(chosen: NDArray[np.int64], looked_at: int) -> Answer:
        labels = events.labels[chosen]
        if too_few(labels, events.events[chosen]) is not None:
            return Answer(float("nan"), float("nan"), float("nan"), looked_at)
        classifier = fit_classifier(points[chosen], labels, events.events[chosen], mean, scale)
        codes, confidence = classify(classifier, points[test])
        given = np.array(classifier.classes, dtype=object)[codes]
        hits = np.asarray(given == truth, dtype=bool)
        error = expected_calibration_error(confidence, hits)
        return Answer(float(hits.mean()), balanced_accuracy(truth, given), error, looked_at)

    classes = sorted(set(events.labels[events.named]))
    few = label_rows(points, *clustered(len(classes)))[0]
    known = events.named & events.validation
    names = hungarian_assignment(events.labels[known], few[known])
    given = np.array([names.get(int(cluster), "") for cluster in few[test]], dtype=object)
    found = {
        ("0", "clusters"): Answer(
            assigned_accuracy(truth, few[test], names), balanced_accuracy(truth, given), float("nan"), 0
        ),
        ("all", "validation half"): answered(np.flatnonzero(known), int(known.sum())),
    }
    pool = np.flatnonzero(~test)
    centroids, clusters = clustered(settings.k)
    inside = points[pool]
    sample = Clustered(
        points=inside,
        centroid_of=label_rows(inside, centroids)[0],
        margins=label_rows(inside, centroids, clusters)[2],
        centroids=centroids,
        clusters=clusters,
        labelled=np.zeros(len(pool), dtype=bool),
    )
    at_random = np.random.default_rng(seed).permutation(len(pool))
    for number in numbers:
        if number > known.sum():
            continue
        length = number
        while True:
            suggested = np.array([each.index for each in suggest(sample, length)])
            missing = number - int(known[pool[suggested]].sum())
            if missing <= 0:
                break
            length += missing
        for how, order in (("suggested", suggested), ("random", at_random)):
            named = np.flatnonzero(known[pool[order]])[:number]
            found[str(number), how] = answered(pool[order[named]], int(named[-1]) + 1)
    return found


def table(name: str, by_seed: Sequence[dict[tuple[str, str], Answer]]) -> str:
    """Return the rows of one workspace: means over the seeds, and the least accuracy of them."""
    lines = []
    for number, how in sorted(by_seed[0], key=lambda key: (key[0] == "all", int(key[0]) if key[0] != "all" else 0)):
        answers = [one[number, how] for one in by_seed]
        columns = {key: [getattr(answer, key) for answer in answers] for key in Answer.__dataclass_fields__}
        accuracies = [value for value in columns["accuracy"] if not np.isnan(value)]
        # Too few labels of two classes, by the rule of `label.propagate`, leave a seed without an answer.
        share = "" if len(accuracies) == len(answers) else f" ({len(accuracies)} of {len(answers)} seeds)"
        cells = [
            f"{_mean(accuracies)} / {_decimals(min(accuracies, default=np.nan))}{share}",
            _mean(columns["mean_recall"]),
            _mean(columns["calibration_error"]),
            f"{statistics.mean(columns['looked_at']):.0f}",
        ]
        lines.append(f"| {name} | {number} | {how} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    there = [value for value in values if not np.isnan(value)]
    return _decimals(statistics.mean(there) if there else np.nan)


def _decimals(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}".removeprefix("0")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, and return the answers by workspace and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "workspaces", nargs="*", default=["runs/demo=runs/demo-archive/truth"], metavar="WORKSPACE=TRUTH"
    )
    parser.add_argument("--numbers", type=int, nargs="*", default=NUMBERS, help="of labels")
    parser.add_argument("--seeds", type=int, default=5, help="of k-means and of the draws")
    parser.add_argument("--k", type=int, help="number of clusters; default: as the workspace was labelled")
    arguments = parser.parse_args(argv)
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}; {vars(arguments)}\n")
    print(
        "| workspace | labels | which | accuracy, mean / least | mean recall | calibration error | events looked at |"
    )
    print("|---" * 7 + "|")
    found: dict[str, Any] = {}
    for text in arguments.workspaces:
        url, _, truth = text.partition("=")
        try:
            workspace = open_workspace(url, create=False, write=False)
        except InputError as error:
            raise SystemExit(f"{error}; `make demo` makes the default one") from None
        config = resolve(workspace.stored_config("label"))
        settings = config.kmeans if arguments.k is None else config.kmeans.model_copy(update={"k": arguments.k})
        events = read_events(workspace.store, config.labels.model_copy(update={"path": truth}))
        name = url.rstrip("/").rsplit("/", 1)[-1]
        found[name] = [measure(events, settings, arguments.numbers, seed) for seed in range(arguments.seeds)]
        print(table(name, found[name]), flush=True)
    return found


if __name__ == "__main__":
    main()
