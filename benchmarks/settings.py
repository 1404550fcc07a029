"""What each setting of the training is worth, and which label-free score would have told: settings x sets of events.

    python benchmarks/settings.py train --folder runs/settings runs/real=truth.csv:3 runs/four=runs/four-archive/truth:4
    python benchmarks/settings.py table --folder runs/settings runs/real=truth.csv:3 runs/four=runs/four-archive/truth:4

Each WORKSPACE=TRUTH:K holds events, their truth in the form of `labels.path`, and the number of clusters to judge by.
With as many clusters as classes the truth is Hungarian matching over all events that it names, else the F1 score of the
rarest class (clusters of which it is the most against all others). `train` trains one encoder a setting and seed in
this process, as `firnline train` does, and stores the embeddings of all events, as they are and disturbed
(`pipelines/contrastive/objective.py`), in FOLDER; what is stored is not trained again. `table` clusters as
`firnline label` does, prints the scores of each setting, and how the label-free scores rank the settings of a set
against the truth (Spearman's rank correlation, with a 90 % interval by resampling the settings).

A setting's name is `default`, `no-AUGMENTATION`, one of those below, or `draw-N`, the N-th random draw of the space
that `firnline tune` searches unless `tune.space` says otherwise. WORKSPACE may have a configuration: WORKSPACE@FILE.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from pipelines import encoders
from pipelines.config import Config, read_yaml, resolve
from pipelines.config.augmentation import AugmentationSettings
from pipelines.config.label import KMeansSettings, LabelsSettings
from pipelines.config.tune import TuneSettings
from pipelines.contrastive.augmentations import build_augmenter
from pipelines.contrastive.checkpoint import network_state, read_facts
from pipelines.contrastive.objective import DISTURBANCES, adjusted_rand, kmeans
from pipelines.contrastive.quality import alignment, effective_rank, uniformity
from pipelines.encoders import Encoder
from pipelines.handlabels.sampling import hand_labels_of_sample
from pipelines.label.cluster_model import ClusterModel
from pipelines.label.in_memory import cluster_in_memory, clusters_of, worth_of_clusters
from pipelines.metrics.evaluation import (
    adjusted_rand_index,
    hungarian_accuracy,
    hungarian_assignment,
    knn_predict,
    linear_predict,
    normalized_mutual_information,
)
from pipelines.train.loop import HopelessTraining, Training, train_rank
from pipelines.train.stage_setup import network_config, prepare_windows, train_plan
from pipelines.tune.proposals import propose
from pipelines.tune.space import configure, space_of
from pipelines.workspace.event_sample import EventSample, choose_events, read_sample
from pipelines.workspace.workspace import open_workspace

Settings = dict[str, Any]
CLUSTERINGS = 5
"""Clusterings of an encoder's embeddings, each with another seed, that the scores are means of."""
AUGMENTATIONS = tuple(AugmentationSettings.model_fields)
OTHERS: dict[str, Settings] = {
    "amplitude": {"train": {"augmentation": "amplitude"}},
    "frequency": {"train": {"augmentation": "frequency"}},
    "linear-motion-off": {"train": {"polarisation": 0.0}},
    "temperature-0.1": {"train": {"temperature": 0.1}},
    "temperature-0.5": {"train": {"temperature": 0.5}},
    "batch-64": {"train": {"batch_size": 64}},
    "batch-256": {"train": {"batch_size": 256}},
    "width-32": {"train": {"width": 32}},
}


@dataclass(frozen=True)
class EventSet:
    """Events with a truth."""

    name: str
    workspace: str
    configured: Settings
    truth: str
    k: int


def read_set(text: str) -> EventSet:
    """Return the set of WORKSPACE[@FILE]=TRUTH:K."""
    place, _, rest = text.partition("=")
    workspace, _, file = place.partition("@")
    truth, _, k = rest.rpartition(":")
    configured: Settings = dict(read_yaml(Path(file).read_bytes(), name=file)) if file else {}
    return EventSet(Path(workspace).name, workspace, {"train": configured.get("train", {})}, truth, int(k))


def sample_of(events: EventSet) -> tuple[EventSample, NDArray[np.float32]]:
    """Return all events of a set and their windows."""
    store = open_workspace(events.workspace, create=False).store
    sample = choose_events(store, max_events=None, seed=0)
    return sample, read_sample(store, sample, range(len(sample)))


def overrides(name: str, events: EventSet, epochs: int, seed: int) -> Config:
    """Return the configuration of a setting."""
    common = {"train": {"epochs": epochs, "seed": seed}}
    if name.startswith("draw-"):
        config = resolve(events.configured, common)
        space, searched = space_of(config), TuneSettings(searcher="random", as_configured_first=False)
        point = propose(searched, space, int(name.removeprefix("draw-")), [])
        assert point is not None
        return configure(config, space, point)
    settings: Settings = {}
    for one in name.split("+"):
        left_out = one.removeprefix("no-")
        if one != "default":
            found = OTHERS.get(one, {"augmentation": {left_out: {"probability": 0.0}}})
            for section, keys in found.items():
                settings.setdefault(section, {}).update(keys)
    return resolve(events.configured, common, settings)


def train(config: Config, windows: NDArray[np.float32], sample: EventSample) -> dict[str, Any]:
    """Train one encoder as `firnline train` does and return what is stored of it."""
    began = time.perf_counter()
    network = network_config(config, sample)
    training = Training(
        network=network,
        plan=train_plan(config),
        preset=config.train.augmentation,
        augmentations=config.augmentation.model_dump(),
    )
    prepared = prepare_windows(windows, sample.lead_samples)
    try:
        content = train_rank(
            training,
            prepared,
            device=torch.device("cpu"),
            rank=0,
            world=1,
            checkpoint=None,
            after_epoch=lambda done, content, figures: None,
        )
    except HopelessTraining as error:
        return {"failed": str(error)}
    seconds = time.perf_counter() - began
    built = encoders.build_network(network)
    built.load_state_dict(network_state(content))
    encoder = Encoder(network, built)
    augmenter = build_augmenter("amplitude", DISTURBANCES, sample.lead_samples)
    generator = torch.Generator().manual_seed(0)
    starts = range(0, len(windows), 128)
    disturbed = torch.cat([augmenter(prepared[first : first + 128], generator) for first in starts])
    return {
        "plain": encoder.embed(windows),
        "disturbed": encoder.embed_prepared(disturbed),
        "loss": [figures["loss"] for figures in read_facts(content)[1]["history"]],
        "seconds": seconds,
    }


def run_trainings(arguments: argparse.Namespace) -> None:
    """Train what is not stored yet: setting by setting on all sets, seed after seed."""
    torch.set_num_threads(1)
    loaded = {}
    for seed in arguments.seeds:
        for name in arguments.settings:
            for text in arguments.sets:
                events = read_set(text)
                path = arguments.folder / events.name / f"{name}.{seed}.npz"
                if path.exists():
                    continue
                if events.name not in loaded:
                    loaded[events.name] = sample_of(events)
                sample, windows = loaded[events.name]
                found = train(overrides(name, events, arguments.epochs, seed), windows, sample)
                keep(path, found)
                said = found.get("failed") or f"{found['seconds']:.0f} s, loss {found['loss'][-1]:.3f}"
                print(f"{events.name} {name} {seed}: {said}", flush=True)


def keep(path: Path, found: dict[str, Any]) -> None:
    """Store a training, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path.with_suffix(".part.npz"), **found)
    path.with_suffix(".part.npz").replace(path)


@dataclass(frozen=True)
class Named:
    """The events of a set that the truth names."""

    ids: list[str]
    labels: NDArray[np.object_]
    validation: NDArray[np.bool_]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether the truth names each event."""
        return np.asarray(self.labels != "", dtype=bool)


def truth_of(events: EventSet) -> Named:
    """Return the truth of all events of a set."""
    store = open_workspace(events.workspace, create=False).store
    sample = choose_events(store, max_events=None, seed=0)
    hand = hand_labels_of_sample(store, sample, LabelsSettings(path=events.truth))
    assert hand is not None
    ids = list(sample.event_ids)
    labels = np.array([hand.label_of.get(each, "") for each in ids], dtype=object)
    return Named(ids, labels, np.array([hand.validation.get(each, False) for each in ids], dtype=bool))


def clustered(
    points: NDArray[Any], ids: Sequence[str], k: int, seed: int, *, measured: bool
) -> tuple[NDArray[Any], ClusterModel]:
    """Return the clusters of `firnline label` with a seed, and the model; `measured` as for `cluster_in_memory`."""
    return cluster_in_memory(points, ids, KMeansSettings(k=k, seed=seed), measured=measured)


def judge(stored: Any, named: Named, k: int, *, measured: bool) -> tuple[dict[str, float], list[NDArray[Any]]]:
    """Return the scores of a training by name, the truth first, and its clusters; means of several clusterings."""
    plain, known = stored["plain"], named.known
    learn, test = known & named.validation, known & ~named.validation
    probes = {}
    for name, predict in (("kNN", knn_predict), ("linear", linear_predict)):
        guess = predict(plain[learn], named.labels[learn], plain[test])
        probes[name] = float((guess == named.labels[test]).mean())
    all_scores, all_clusters = [], []
    for seed in range(CLUSTERINGS):
        clusters, model = clustered(plain, named.ids, k, seed, measured=measured)
        again = clusters_of(stored["disturbed"], model)
        scores = agreement(named.labels[known], clusters[known], k)
        all_scores.append(scores | probes | label_free_of_clusters(plain, clusters, again))
        all_clusters.append(clusters)
    means = {name: statistics.mean(one[name] for one in all_scores) for name in all_scores[0]}
    worth = worth_of_clusters(plain, all_clusters, k)
    return means | {f"{name} of clusterings": value for name, value in worth.items()} | label_free(stored), all_clusters


def agreement(labels: NDArray[np.object_], found: NDArray[Any], k: int) -> dict[str, float]:
    """Return how well clusters agree with the truth."""
    classes, counts = np.unique(labels.astype(str), return_counts=True)
    scores: dict[str, float] = {}
    if k == len(classes):
        scores["truth"] = hungarian_accuracy(labels, found)
        given = hungarian_assignment(labels, found)
        guess = np.array([given.get(int(each), "") for each in found], dtype=object)
        scores["least recall"] = min(float((guess[labels == each] == each).mean()) for each in classes)
    else:
        rare = labels == classes[counts.argmin()]
        own = [each for each in np.unique(found) if rare[found == each].mean() > 0.5]
        inside = np.isin(found, own)
        scores["truth"] = 2 * float((inside & rare).sum()) / max(1, int(inside.sum() + rare.sum()))
        scores["least recall"] = float(inside[rare].mean())
    scores["NMI"] = normalized_mutual_information(labels, found)
    scores["ARI"] = adjusted_rand_index(labels, found)
    return scores


def label_free_of_clusters(plain: NDArray[Any], clusters: NDArray[Any], again: NDArray[Any]) -> dict[str, float]:
    """Return what tells good clusters without a label; `again`: those of the disturbed windows."""
    half = np.arange(len(clusters)) % 2 == 0
    names = clusters.astype(str).astype(object)
    learned = [linear_predict(plain[learn], names[learn], plain[~learn]) == names[~learn] for learn in (half, ~half)]
    largest = float(np.unique(clusters, return_counts=True)[1].max()) / len(clusters)
    return {
        "stability of the clusters": adjusted_rand(torch.from_numpy(clusters).long(), torch.from_numpy(again).long()),
        "learnability": (float(np.concatenate(learned).mean()) - largest) / max(1e-9, 1 - largest),
    }


def label_free(stored: Any) -> dict[str, float]:
    """Return what tells a good embedding without a label."""
    plain, disturbed = (torch.from_numpy(stored[name]) for name in ("plain", "disturbed"))
    some = slice(None, None, max(1, -(-len(plain) // 1000)))
    eight = [adjusted_rand(kmeans(plain[some], 8, turn), kmeans(disturbed[some], 8, turn)) for turn in range(3)]
    return {
        "stability of 8 clusters": statistics.mean(eight),
        "effective rank": effective_rank(plain[some]),
        "uniformity": -uniformity(plain[some]),
        "alignment and uniformity": -(alignment(plain, disturbed) + uniformity(plain[some])),
        "alignment": -alignment(plain, disturbed),
        "loss": -float(stored["loss"][-1]),
    }


def spearman(truth: Sequence[float], score: Sequence[float]) -> tuple[float, float, float]:
    """Return the rank correlation, and its 90 % interval by resampling the settings."""
    random, both = np.random.default_rng(0), np.array([truth, score])
    drawn = [both[:, random.integers(0, len(truth), len(truth))] for _ in range(1000)]
    values = [float(spearmanr(*each).statistic) for each in drawn if np.ptp(each, axis=1).min() > 0]
    low, high = np.quantile(values, [0.05, 0.95])
    return float(spearmanr(*both).statistic), float(low), float(high)


def print_tables(arguments: argparse.Namespace) -> None:
    """Judge what is stored and print it."""
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, torch {torch.__version__}\n")
    ranks: dict[str, dict[str, str]] = {}
    for text in arguments.sets:
        events = read_set(text)
        named = truth_of(events)
        rows: dict[str, list[dict[str, float]]] = {}
        clusters: dict[str, list[NDArray[Any]]] = {}
        for path in sorted((arguments.folder / events.name).glob("*.npz")):
            name, _, _ = path.name.rsplit(".", 2)
            stored = np.load(path)
            if name.endswith("part") or "failed" in stored:
                continue
            scores, found = judge(stored, named, events.k, measured=name != "linear-motion-off")
            rows.setdefault(name, []).append(scores)
            clusters.setdefault(name, []).append(found[0])
        for name, scores_of in rows.items():
            others = [each for other, found in clusters.items() if other != name for each in found]
            for scores, own in zip(scores_of, clusters[name] if others else (), strict=bool(others)):
                scores["agreement with the others"] = statistics.mean(adjusted_rand_index(own, each) for each in others)
        if not rows:
            continue
        print(f"## {events.name}, k = {events.k}, {named.known.sum()} of {len(named.ids)} events named\n")
        columns = list(next(iter(rows.values()))[0])
        print("| setting | seeds | " + " | ".join(columns) + " |")
        print("|---" * (len(columns) + 2) + "|")
        for name, found in rows.items():
            cells = [f"{statistics.mean(one[column] for one in found):.3f}" for column in columns]
            print(f"| {name} | {len(found)} | " + " | ".join(cells) + " |")
        print()
        means = [{key: statistics.mean(one[key] for one in found) for key in columns} for found in rows.values()]
        if len(means) > 4:
            for key in columns[6:]:
                value, low, high = spearman([one["truth"] for one in means], [one[key] for one in means])
                ranks.setdefault(key, {})[events.name] = f"{value:.2f} ({low:.2f} to {high:.2f})"
        (arguments.folder / f"{events.name}.json").write_text(json.dumps(rows))
    names = sorted({name for row in ranks.values() for name in row})
    if ranks:
        print("| label-free score | " + " | ".join(names) + " |")
        print("|---" * (len(names) + 1) + "|")
    for key, row in ranks.items():
        print(f"| {key} | " + " | ".join(row.get(name, "") for name in names) + " |")


def main() -> None:
    """Train or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "table"))
    parser.add_argument("sets", nargs="+", metavar="WORKSPACE[@FILE]=TRUTH:K")
    parser.add_argument("--folder", type=Path, default=Path("runs/settings"))
    parser.add_argument(
        "--settings", nargs="*", default=["default", *(f"no-{name}" for name in AUGMENTATIONS), *OTHERS]
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()
    if arguments.what == "train":
        run_trainings(arguments)
    else:
        print_tables(arguments)


if __name__ == "__main__":
    main()
