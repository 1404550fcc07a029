"""Learns the encoder from the events table: in this process, or by Ray Train on CPUs or GPUs.

State lies in `train/` of the workspace: `train/<fingerprint>/epoch-00007.safetensors` (`stage_checkpoints`), then
`train/encoder.safetensors` and, last of all, `train/training.json`, which says that the training is done.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
import yaml

from pipelines import encoders
from pipelines.config import Config, flatten, keys_of_this_release, stage_config, with_keys
from pipelines.config.augmentation import AugmentationSettings
from pipelines.config.detection import WindowSettings
from pipelines.config.run import OnGrowth
from pipelines.handlabels.sampling import label_sample
from pipelines.runtime.capacity import capacity, refuse_too_small
from pipelines.runtime.errors import InputError
from pipelines.runtime.ray_session import on_cluster
from pipelines.runtime.text import counted
from pipelines.tracking.runs import stage_run
from pipelines.tracking.server import Tracking
from pipelines.train.stage_fit import TrainingInputs, fit_encoder
from pipelines.train.stage_register import judge_of, log_figures, register_encoder
from pipelines.train.stage_setup import AUGMENTATION_OF_TRAINING, effective_augmentation, network_config
from pipelines.workspace.artifacts import ENCODER, TrainingRecord
from pipelines.workspace.event_sample import choose_events, events_fingerprint, read_sample
from pipelines.workspace.ledger import fingerprint
from pipelines.workspace.replacement import result_of
from pipelines.workspace.workspace import Workspace

ALGORITHM_VERSION = 1

SCORE_WINDOWS = 2000
"""Windows that the label-free score is computed on."""


@dataclass(frozen=True, kw_only=True)
class TrainingSummary:
    """What a training gave."""

    content_hash: str
    """Of the encoder: its configuration and weights."""
    num_events: int
    """Events trained on."""
    model_uri: str
    """The registered model."""
    alias: str
    """The alias it was given."""
    resumed_from: int
    """Epochs that an earlier, interrupted run had done."""
    already_done: bool
    """Nothing was to do."""


def train_encoder(
    workspace: Workspace,
    config: Config,
    tracking: Tracking,
    *,
    replace: bool = False,
    on_growth: OnGrowth = "retrain",
) -> TrainingSummary:
    """Train, store, score and register the configured encoder; an interrupted training resumes where it stopped.

    With `train.num_workers` above 0 a Ray session must be open. Where the archive has grown since a finished training,
    `on_growth` says whether that is kept.

    Raises:
        InputError: too few events, a configuration that differs from the one trained here, too few CPUs.
        StageFailed: the loss is stuck or has diverged, or workers were lost too often.
    """
    store = workspace.store
    config = where_it_runs(config)
    settings = config.train
    augmentation = effective_augmentation(workspace, config, tracking)
    inputs = events_fingerprint(store)
    keys = _output_keys(config, augmentation)
    mark = _mark(keys, inputs)
    done = None if replace else _finished_training(workspace, keys)
    # Its keys may be those of an earlier release; where they differ from these, the training has been refused above.
    same_events = done is not None and done.fingerprint == _mark(done.keys, inputs)
    if done is not None and (same_events or on_growth == "keep"):
        if same_events:
            print(f"train: nothing to do, {store.full(ENCODER)} is up to date ({done.model_uri}).")
        else:
            print(
                f"train: kept the encoder that was trained on {done.num_events} events before the archive grew "
                f"({done.model_uri}); run.on_growth retrain learns from all events."
            )
        return TrainingSummary(
            content_hash=done.content_hash,
            num_events=done.num_events,
            model_uri=done.model_uri,
            alias=done.alias,
            resumed_from=0,
            already_done=True,
        )
    check_resources(config)
    sample = choose_events(store, max_events=settings.max_events, seed=settings.seed)
    labels = label_sample(store, sample, config.labels)
    network = network_config(config, sample)
    _check_enough_events(config, len(sample))
    print(
        f"train: {len(sample)} of {sample.num_total} events, windows of {sample.num_samples} samples at "
        f"{sample.rate_hz:g} Hz, encoder {settings.encoder}, {counted(max(1, settings.num_workers), 'worker')}; "
        f"the windows take {len(sample) * 12 * sample.num_samples / 1e9:.2f} GB of memory."
    )
    began = time.perf_counter()
    with (
        stage_run(tracking, "train", stage_config(config, "train"), inputs={"events": inputs}) as run,
        result_of(workspace, "train", config, replace=replace) as place,
    ):
        store = place.store
        run.set_tags({"firnline.fingerprint": mark, "firnline.events": len(sample)})
        run.log_text(yaml.safe_dump(augmentation.model_dump(mode="json"), sort_keys=False), AUGMENTATION_OF_TRAINING)
        fitting = TrainingInputs(
            store=store, config=config, augmentation=augmentation, sample=sample, network=network, mark=mark
        )
        encoder, resumed_from = fit_encoder(fitting, run)
        scored = sample.spread(SCORE_WINDOWS)
        windows = read_sample(store, sample, scored)
        judge = judge_of(store, sample, labels, windows, settings.seed)
        score = judge(encoder)
        run.log_metrics({**score, "train_seconds": time.perf_counter() - began}, step=settings.epochs)
        log_figures(run, encoder, windows, scored, fitting)
        model_uri, alias = register_encoder(run, tracking, config, encoder, windows, judge, score["score"])
        store.write(ENCODER, encoder.to_bytes())
        TrainingRecord(
            fingerprint=mark,
            keys=keys,
            content_hash=encoder.content_hash,
            num_events=len(sample),
            model_uri=model_uri,
            alias=alias,
            run_id=run.run_id,
            score=score,
        ).write(store)
        for item in list(store.walk("train")):
            if item.path not in (TrainingRecord.PATH, ENCODER):
                store.remove(item.path)
    print(
        f"train: {model_uri} ({alias}), "
        + ", ".join(f"{name} {value:.3f}" for name, value in score.items() if name != "score")
        + f", {time.perf_counter() - began:.0f} s."
    )
    return TrainingSummary(
        content_hash=encoder.content_hash,
        num_events=len(sample),
        model_uri=model_uri,
        alias=alias,
        resumed_from=resumed_from,
        already_done=False,
    )


def check_training(
    workspace: Workspace,
    config: Config,
    tracking: Tracking,
    window: WindowSettings,
    *,
    replace: bool,
    tuned_before: bool,
) -> None:
    """Refuse what `train_encoder` would, as far as it can be known before there are events.

    Args:
        workspace, config, tracking, replace: as for `train_encoder`.
        window: of the events that detection will find.
        tuned_before: a search comes first, which will write what `train.augment_from tune` names.

    Raises:
        InputError: windows too short, an unreadable file, a configuration that differs from the one trained here.
    """
    network_config(config, window)
    if tuned_before and config.train.augment_from == "tune":
        return
    keys = _output_keys(config, effective_augmentation(workspace, config, tracking))
    if not replace:
        _finished_training(workspace, keys)


def where_it_runs(config: Config) -> Config:
    """Return the configuration with one worker instead of none on a cluster, whose head is too small to train on."""
    if config.train.num_workers or not on_cluster():
        return config
    return with_keys(config, {"train": {"num_workers": 1}})


def check_resources(config: Config) -> None:
    """Refuse a training for which the machine or cluster is too small, counting what a cluster may grow to.

    A cluster whose nodes have not come yet is waited for. With workers a Ray session must be open.

    Raises:
        InputError: names the key and what there is.
    """
    settings = config.train
    if not settings.num_workers:
        if settings.use_gpu and not torch.cuda.is_available():
            raise InputError("train.use_gpu is true, but torch finds no GPU on this machine; use false")
        return
    most = capacity()
    if most.unknown:
        return
    most_text = "may grow to" if most.grows else "has"
    workers = settings.min_workers or settings.num_workers
    if settings.use_gpu and workers > most.gpus:
        raise InputError(
            f"train.use_gpu is true for {workers} workers, but Ray {most_text} {most.gpus:g} GPUs; use fewer workers"
        )
    # What a cluster may grow to does not count the CPUs that come with its GPUs.
    if workers * settings.cpus_per_worker > most.cpus and not (settings.use_gpu and most.grows):
        raise InputError(
            f"train.num_workers is {settings.num_workers} with train.cpus_per_worker {settings.cpus_per_worker:g}, but "
            f"Ray {most_text} {most.cpus:g} CPUs; use fewer workers or smaller shares"
        )
    refuse_too_small("a worker of train", cpus=settings.cpus_per_worker, gpus=int(settings.use_gpu))


def _check_enough_events(config: Config, num_events: int) -> None:
    """Raise InputError where there are too few events for a contrast, or for every worker to have one."""
    if config.train.encoder not in encoders.NETWORKS:
        return
    if num_events < 2:
        raise InputError("there is only 1 event to train on, and contrastive training needs at least 2; detect more")
    if num_events < config.train.num_workers:
        raise InputError(
            f"train.num_workers is {config.train.num_workers}, but there are only {num_events} events to share among "
            "them; use fewer workers"
        )


def _mark(keys: dict[str, Any], events: Any) -> str:
    """Return the fingerprint of a training: of all that decides its encoder."""
    return fingerprint({"keys": keys, "events": events, "version": ALGORITHM_VERSION})


def _output_keys(config: Config, augmentation: AugmentationSettings) -> dict[str, Any]:
    """Return the keys that change the encoder; a baseline's do not hold the augmentations."""
    keys = dict(flatten({"train": config.train.output_keys()}))
    keys.pop("train.augment_from")
    if config.train.encoder in encoders.NETWORKS:
        keys |= dict(flatten({"augmentation": augmentation.output_keys()}))
    return keys


def training_conflict(workspace: Workspace, config: Config, tracking: Tracking) -> str | None:
    """Return what differs from the finished training, naming the key; None where nothing does, or without one."""
    done = TrainingRecord.read(workspace.store)
    if done is None:
        return None
    return _difference(workspace, done, _output_keys(config, effective_augmentation(workspace, config, tracking)))


def _difference(workspace: Workspace, done: TrainingRecord, now: dict[str, Any]) -> str | None:
    was = keys_of_this_release(done.keys)
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            return f"{key} is {now.get(key)!r} but {workspace.url} holds an encoder trained with {was.get(key)!r}"
    return None


def _finished_training(workspace: Workspace, now: dict[str, Any]) -> TrainingRecord | None:
    """Return what the finished training gave, None without one; InputError names a key that had another value."""
    done = TrainingRecord.read(workspace.store)
    different = None if done is None else _difference(workspace, done, now)
    if different is not None:
        raise InputError(f"{different}; use another workspace, the stored value, or --replace")
    return done
