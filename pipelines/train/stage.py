"""Learns the encoder from the events table: in this process, or by Ray Train on CPUs or GPUs.

State lies in `train/` of the workspace: `train/<fingerprint>/epoch-0007.safetensors` (the last two), then
`train/encoder.safetensors` and, last of all, `train/training.json`, which says that the training is done.
"""

import importlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from pipelines import encoders
from pipelines.config import Config, flatten, stage_config
from pipelines.config.augmentation import AugmentationSettings
from pipelines.config.detection import WindowSettings
from pipelines.contrastive.augmentations import build_augmenter
from pipelines.contrastive.checkpoint import network_state, read_facts
from pipelines.contrastive.objective import cluster_stability
from pipelines.contrastive.step import new_state
from pipelines.contrastive.whitening import whiten_by_views
from pipelines.encoders import Encoder, NetworkConfig
from pipelines.encoders.baselines import ConvolutionalAutoencoder, HandFeatures, SpectrogramPca
from pipelines.handlabels.sampling import SampleLabels, label_sample, validation_scores
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.runtime.progress import progress_bar
from pipelines.runtime.ray_session import local_cores
from pipelines.tracking.models import (
    CANDIDATE,
    CHAMPION,
    alias_version,
    download_artifact,
    log_encoder,
    register_model,
    set_alias,
)
from pipelines.tracking.runs import StageRun, stage_run
from pipelines.tracking.server import Tracking
from pipelines.train.baselines import autoencoder_epoch, fit_features, fit_pca
from pipelines.train.figures import augmentation_gallery, embedding_map
from pipelines.train.loop import StuckTraining, Training, train_rank
from pipelines.train.setup import (
    effective_augmentation,
    network_config,
    prepare_windows,
    torch_threads,
    train_plan,
)
from pipelines.workspace.artifacts import TrainingRecord
from pipelines.workspace.event_sample import (
    EventSample,
    choose_events,
    events_fingerprint,
    read_rows,
    read_sample,
    read_windows,
)
from pipelines.workspace.ledger import fingerprint
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import Workspace

ALGORITHM_VERSION = 1

ENCODER = "train/encoder.safetensors"
WHITENED_WINDOWS = 4096
"""Windows whose views say what the embedding is whitened by."""

SCORE_WINDOWS = 2000
"""Windows that the label-free score is computed on."""

_KEPT_CHECKPOINTS = 2


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
    workspace: Workspace, config: Config, tracking: Tracking, *, replace: bool = False
) -> TrainingSummary:
    """Train, store, score and register the configured encoder; an interrupted training goes on where it stopped.

    With `train.num_workers` above 0 a Ray session must be open.

    Raises:
        InputError: no events, a configuration that differs from the one trained here, too few CPUs.
        StageFailed: the loss is stuck, or workers were lost too often.
    """
    store = workspace.store
    settings = config.train
    augmentation = effective_augmentation(workspace, config)
    inputs = events_fingerprint(store)
    keys = _output_keys(config, augmentation)
    mark = fingerprint({"keys": keys, "events": inputs, "version": ALGORITHM_VERSION})
    done = None if replace else _finished_training(workspace, keys)
    if done is not None and done.fingerprint == mark:
        print(f"train: nothing to do, {store.full(ENCODER)} is up to date ({done.model_uri}).")
        return TrainingSummary(
            content_hash=done.content_hash,
            num_events=done.num_events,
            model_uri=done.model_uri,
            alias=done.alias,
            resumed_from=0,
            already_done=True,
        )
    sample = choose_events(store, max_events=settings.max_events, seed=settings.seed)
    labels = label_sample(store, sample, config.labels)
    network = network_config(config, sample)
    check_resources(config)
    workspace.claim("train", config, replace=replace)
    print(
        f"train: {len(sample)} of {sample.num_total} events, windows of {sample.num_samples} samples at "
        f"{sample.rate_hz:g} Hz, encoder {settings.encoder}, {max(1, settings.num_workers)} worker(s); "
        f"the windows take {len(sample) * 12 * sample.num_samples / 1e9:.2f} GB of memory."
    )
    began = time.perf_counter()
    with stage_run(tracking, "train", stage_config(config, "train"), inputs={"events": inputs}) as run:
        run.set_tags({"firnline.fingerprint": mark, "firnline.events": len(sample)})
        run.log_text(yaml.safe_dump(augmentation.model_dump(mode="json"), sort_keys=False), "augmentation.yaml")
        encoder, resumed_from = _fit(store, config, augmentation, sample, network, run, mark)
        store.write(ENCODER, encoder.to_bytes())
        scored = sample.spread(SCORE_WINDOWS)
        windows = read_sample(store, sample, scored)
        judge = judge_of(store, sample, labels, windows, settings.seed)
        score = judge(encoder)
        run.log_metrics({**score, "train_seconds": time.perf_counter() - began}, step=settings.epochs)
        _log_figures(run, encoder, windows, [sample.stations[event] for event in scored], sample, config, augmentation)
        model_uri, alias = _register(run, tracking, config, encoder, windows, judge, score["score"])
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
    workspace: Workspace, config: Config, window: WindowSettings, *, replace: bool, tuned_before: bool
) -> None:
    """Refuse what `train_encoder` would, as far as it can be known before there are events.

    Args:
        workspace, config, replace: as for `train_encoder`.
        window: of the events that detection will find.
        tuned_before: a search comes first, which will write what `train.augment_from tune` names.

    Raises:
        InputError: windows too short, an unreadable file, a configuration that differs from the one trained here.
    """
    network_config(config, window)
    if tuned_before and config.train.augment_from == "tune":
        return
    keys = _output_keys(config, effective_augmentation(workspace, config))
    if not replace:
        _finished_training(workspace, keys)


def check_resources(config: Config) -> None:
    """Refuse a plan whose workers leave Ray Data no CPU, or that asks for GPUs which are not there.

    With workers a Ray session must be open.

    Raises:
        InputError: names the key and what the cluster has.
    """
    ray: Any = importlib.import_module("ray")
    settings = config.train
    if not settings.num_workers:
        if settings.use_gpu and not torch.cuda.is_available():
            raise InputError("train.use_gpu is true, but torch finds no GPU on this machine; use false")
        return
    resources = ray.cluster_resources()
    cpus, gpus = float(resources.get("CPU", 0)), float(resources.get("GPU", 0))
    workers = settings.min_workers or settings.num_workers
    if workers * settings.cpus_per_worker > cpus - 1:
        raise InputError(
            f"train.num_workers is {settings.num_workers} with train.cpus_per_worker {settings.cpus_per_worker:g}, but "
            f"Ray has {cpus:g} CPUs and reading the events needs one of them; use fewer workers or smaller shares"
        )
    if settings.use_gpu and workers > gpus:
        raise InputError(f"train.use_gpu is true for {workers} workers, but Ray has {gpus:g} GPUs; use fewer workers")


def judge_of(
    store: Store, sample: EventSample, labels: SampleLabels | None, windows: NDArray[np.float32], seed: int
) -> Callable[[Encoder], dict[str, float]]:
    """Return what scores encoders on the same windows: label-free, and by the validation half of hand labels.

    `score` is what decides about aliases: the balanced accuracy of nearest neighbours where there are labels in both
    folds, else the stability of clusters.
    """
    labelled = None if labels is None else read_rows(store, sample, labels.places)

    def judge(encoder: Encoder) -> dict[str, float]:
        scores = cluster_stability(encoder, windows, num_clusters=8, seed=seed)
        if labels is not None and labelled is not None:
            scores |= validation_scores(encoder.embed(labelled), labels)
        return scores | {"score": scores.get("validation_knn", scores["stability"])}

    return judge


def _fit(
    store: Store,
    config: Config,
    augmentation: AugmentationSettings,
    sample: EventSample,
    network: NetworkConfig,
    run: StageRun,
    mark: str,
) -> tuple[Encoder, int]:
    """Return the fitted encoder, and the epochs that an earlier run had done."""
    if config.train.encoder in ("features", "pca", "autoencoder", "untrained"):
        return _fit_baseline(store, config, sample, network, run), 0
    training = Training(
        network=network,
        plan=train_plan(config),
        preset=config.train.augmentation,
        augmentations=augmentation.model_dump(),
        compile=config.train.compile,
    )
    folder = f"train/{mark}"
    last = last_checkpoint(store, folder)
    resumed_from = read_facts(last)[0] if last is not None else 0
    if last is not None:
        print(f"train: goes on after epoch {resumed_from} of {training.plan.epochs}.")
        for done, world in read_facts(last)[1]["worlds"]:
            run.set_tags({f"firnline.workers_after_epoch_{done}": world})
        run.set_tags({"firnline.resumed_after_epoch": resumed_from})
    with _progress(run, training.plan.epochs) as report:
        if last is not None:
            report(read_facts(last)[1]["history"])
        try:
            if config.train.num_workers:
                content = _fit_with_ray(store, config, training, sample, folder, report)
            else:
                content = _fit_here(store, config, training, sample, folder, last, report)
        except StuckTraining as error:
            run.set_tags({"firnline.alarm": str(error)})
            raise StageFailed(
                f"training learns nothing: {error}; use weaker augmentations or another train.learning_rate"
            ) from error
    built = encoders.build_network(network)
    built.load_state_dict(network_state(content))
    if config.train.whiten:
        some = prepare_windows(read_sample(store, sample, sample.spread(WHITENED_WINDOWS)), sample.lead_samples)
        augmenter = build_augmenter(training.preset, training.augmentations, sample.lead_samples)
        whiten_by_views(built.eval(), some, augmenter, config.train.seed)
    run.set_tags({"firnline.workers": json.dumps(read_facts(content)[1]["worlds"])})
    return Encoder(network, built), resumed_from


def _fit_here(
    store: Store,
    config: Config,
    training: Training,
    sample: EventSample,
    folder: str,
    last: bytes | None,
    report: Callable[[list[dict[str, float]]], None],
) -> bytes:
    device = torch.device("cuda" if config.train.use_gpu else "cpu")
    windows = prepare_windows(read_sample(store, sample, range(len(sample))), sample.lead_samples)
    if device.type == "cuda" and _fits(windows, device):
        windows = windows.to(device)
    history: list[dict[str, float]] = read_facts(last)[1]["history"] if last is not None else []

    def after_epoch(done: int, content: bytes | None, figures: dict[str, float]) -> None:
        assert content is not None
        write_checkpoint(store, folder, done, content)
        history.append(figures)
        report(history)

    with torch_threads(config.train.num_threads or local_cores()):
        return train_rank(training, windows, device=device, rank=0, world=1, checkpoint=last, after_epoch=after_epoch)


def _fit_with_ray(
    store: Store,
    config: Config,
    training: Training,
    sample: EventSample,
    folder: str,
    report: Callable[[list[dict[str, float]]], None],
) -> bytes:
    import ray.train.torch

    settings = config.train
    world: Any = settings.num_workers
    if settings.min_workers is not None and settings.min_workers < settings.num_workers:
        world = (settings.min_workers, settings.num_workers)
    task = {
        "store": store,
        "training": training,
        "folder": folder,
        "num_threads": settings.num_threads or max(1, local_cores() // settings.num_workers),
    }
    store.remove(f"{folder}/stuck.txt")
    state = Path(tempfile.mkdtemp(prefix="firnline-train-"))
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config=task,
        scaling_config=ray.train.ScalingConfig(
            num_workers=world,
            use_gpu=settings.use_gpu,
            resources_per_worker={"CPU": settings.cpus_per_worker, **({"GPU": 1} if settings.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{time.time_ns()}",
            storage_path=str(state),
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
        ),
        datasets={"windows": ray.data.from_items([{"place": 0}])},
        dataset_config=_rank_shares(store, sample),
    )
    try:
        with _watching(store, folder, report):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise StageFailed(f"training failed: {_cause(error)}") from error
    finally:
        shutil.rmtree(state, ignore_errors=True)
    if store.exists(f"{folder}/stuck.txt"):
        raise StuckTraining(store.read(f"{folder}/stuck.txt").decode())
    content = last_checkpoint(store, folder)
    if content is None or read_facts(content)[0] < training.plan.epochs:
        raise StageFailed(f"training ended before its last epoch: see {store.full(folder)}")
    report(read_facts(content)[1]["history"])
    return content


def _rank_shares(store: Store, sample: EventSample) -> Any:
    """Return a Ray Train data configuration that gives each rank its share of the sample, read once by Ray Data."""
    import ray.data
    import ray.train

    class RankShares(ray.train.DataConfig):
        """The split by event id, the same for every run with so many workers, where Ray's own depends on timing."""

        def configure(
            self, datasets: dict[str, Any], world_size: int, *args: Any, **kwargs: Any
        ) -> list[dict[str, Any]]:
            return [
                {name: _window_dataset(store, sample, share).iterator() for name in datasets}
                for share in sample.shares(world_size)
            ]

    return RankShares(datasets_to_split=[])


def _window_dataset(store: Store, sample: EventSample, share: range) -> Any:
    """Return the lazy Ray dataset of one rank: `place` in the share and the prepared `window`."""
    import ray.data

    parts = [
        {"path": path, "rows": rows[start : start + 512], "places": places[start : start + 512]}
        for path, rows, places in sample.by_file(share)
        for start in range(0, len(rows), 512)
    ]
    lead = sample.lead_samples

    def load(batch: Any) -> Any:
        for path, rows, places in zip(batch["path"], batch["rows"], batch["places"], strict=True):
            windows = read_windows(store, str(path), rows)
            with torch_threads(1):
                prepared = prepare_windows(windows, lead)
            yield {"place": np.asarray(places, dtype=np.int64), "window": prepared.numpy()}

    memory = 512 * 12 * sample.num_samples * 6
    return ray.data.from_items(parts, override_num_blocks=max(1, len(parts))).map_batches(
        load, batch_size=1, num_cpus=0.5, memory=memory
    )


def _train_worker(task: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    store, folder, training = task["store"], task["folder"], task["training"]
    torch.set_num_threads(task["num_threads"])
    device = ray.train.torch.get_device()
    windows = _gather_share(ray.train.get_dataset_shard("windows"))
    if device.type == "cuda" and _fits(windows, device):
        windows = windows.to(device)

    def after_epoch(done: int, content: bytes | None, figures: dict[str, float]) -> None:
        if content is not None:
            write_checkpoint(store, folder, done, content)
        # A barrier: no rank begins an epoch whose checkpoint is not yet durable.
        ray.train.report({"epoch": done, **figures})

    try:
        train_rank(
            training,
            windows,
            device=device,
            rank=rank,
            world=world,
            checkpoint=last_checkpoint(store, folder),
            after_epoch=after_epoch,
        )
    except StuckTraining as error:
        # Every rank sees the same loss and ends here; raised, Ray would take it for a lost worker and try again.
        if rank == 0:
            store.write(f"{folder}/stuck.txt", str(error).encode())


def _gather_share(shard: Any) -> Tensor:
    places, windows = [], []
    for batch in shard.iter_batches(batch_size=256, batch_format="numpy"):
        places.append(np.array(batch["place"]))
        windows.append(np.array(batch["window"], dtype=np.float32))
    order = np.argsort(np.concatenate(places))
    return torch.from_numpy(np.concatenate(windows)[order])


def _fit_baseline(store: Store, config: Config, sample: EventSample, network: NetworkConfig, run: StageRun) -> Encoder:
    settings = config.train
    if settings.encoder == "untrained":
        return Encoder(network, new_state(network, train_plan(config), torch.device("cpu")).learner.network)
    with torch_threads(settings.num_threads or local_cores()), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        built = encoders.build_network(network)
        windows = prepare_windows(read_sample(store, sample, range(len(sample))), sample.lead_samples)
        if isinstance(built, HandFeatures):
            fit_features(built, windows)
        elif isinstance(built, SpectrogramPca):
            try:
                fit_pca(built, windows)
            except ValueError as error:
                raise InputError(str(error)) from None
        elif isinstance(built, ConvolutionalAutoencoder):
            optimizer = torch.optim.AdamW(built.parameters(), lr=settings.learning_rate)
            with _progress(run, settings.epochs) as report:
                history = []
                for _ in range(settings.epochs):
                    order = torch.randperm(len(windows))
                    loss = autoencoder_epoch(built, optimizer, windows, order, settings.batch_size)
                    history.append({"loss": loss})
                    report(history)
    return Encoder(network, built)


def write_checkpoint(store: Store, folder: str, done: int, content: bytes) -> None:
    """Write an epoch's checkpoint and remove those before the last."""
    store.write(f"{folder}/epoch-{done:05d}.safetensors", content)
    names = sorted(item.path for item in store.walk(folder) if item.path.endswith(".safetensors"))
    for name in names[:-_KEPT_CHECKPOINTS]:
        store.remove(name)


def last_checkpoint(store: Store, folder: str) -> bytes | None:
    """Return the newest checkpoint's content; None where there is none."""
    names = sorted(item.path for item in store.walk(folder) if item.path.endswith(".safetensors"))
    return store.read(names[-1]) if names else None


@contextmanager
def _progress(run: StageRun, epochs: int) -> Iterator[Callable[[list[dict[str, float]]], None]]:
    """Yield what is called with the history so far: it moves the bar and logs the epochs not yet logged to MLflow."""
    logged = 0
    with progress_bar("train", unit="epoch", total=epochs) as bar:

        def report(history: list[dict[str, float]]) -> None:
            nonlocal logged
            if len(history) <= logged:
                return
            for epoch in range(logged, len(history)):
                run.log_metrics(history[epoch], step=epoch + 1)
            bar.n = logged = len(history)
            bar.set_postfix(loss=f"{history[-1]['loss']:.3f}")

        yield report


@contextmanager
def _watching(store: Store, folder: str, report: Callable[[list[dict[str, float]]], None]) -> Iterator[None]:
    """Report the epochs of workers elsewhere as their checkpoints appear, so that MLflow has one writer: the driver."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1.0 if store.is_local else 5.0):
            try:
                content = last_checkpoint(store, folder)
            except FileNotFoundError:
                # A worker removed it between the listing and the reading.
                continue
            if content is not None:
                report(read_facts(content)[1]["history"])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _fits(windows: Tensor, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return windows.nbytes < free // 2


def _cause(error: BaseException) -> str:
    text = str(error.__cause__ or error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _output_keys(config: Config, augmentation: AugmentationSettings) -> dict[str, Any]:
    """Return the keys that change the encoder; a baseline's do not hold the augmentations."""
    keys = dict(flatten({"train": config.train.output_keys()}))
    keys.pop("train.augment_from")
    if config.train.encoder in encoders.NETWORKS:
        keys |= dict(flatten({"augmentation": augmentation.output_keys()}))
    return keys


def _finished_training(workspace: Workspace, now: dict[str, Any]) -> TrainingRecord | None:
    """Return what the finished training gave, None without one; InputError names a key that it had other than now."""
    done = TrainingRecord.read(workspace.store)
    if done is None:
        return None
    was = done.keys
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            raise InputError(
                f"{key} is {now.get(key)!r} but {workspace.url} holds an encoder trained with {was.get(key)!r}; "
                "use another workspace, the stored value, or --replace"
            )
    return done


def _log_figures(
    run: StageRun,
    encoder: Encoder,
    windows: NDArray[np.float32],
    stations: Sequence[str],
    sample: EventSample,
    config: Config,
    augmentation: AugmentationSettings,
) -> None:
    embeddings = encoder.embed(windows)
    run.log_bytes(embedding_map(embeddings, stations), "embedding_map.png")
    if config.train.encoder in encoders.NETWORKS:
        shown = prepare_windows(windows[:4], sample.lead_samples)
        gallery = augmentation_gallery(
            shown, augmentation.model_dump(), config.train.augmentation, sample.lead_samples, sample.rate_hz
        )
        run.log_bytes(gallery, "augmentations.png")


def _register(
    run: StageRun,
    tracking: Tracking,
    config: Config,
    encoder: Encoder,
    windows: NDArray[np.float32],
    judge: Callable[[Encoder], dict[str, float]],
    score: float,
) -> tuple[str, str]:
    """Log and register the encoder and move the aliases; return the registered model's URI and its alias.

    The first model is champion. A later one is candidate, or champion where it scores better than the champion does on
    the same windows.
    """
    name = config.mlflow.model_name
    logged = log_encoder(run, encoder, example=np.nan_to_num(windows[:1]))
    tags = {"firnline.content_hash": encoder.content_hash, "firnline.score": f"{score:.6f}"}
    version = register_model(run, logged, name, tags=tags)
    champion = alias_version(tracking, name, CHAMPION)
    alias = CHAMPION
    if champion is not None:
        best = champion_score(tracking, name, windows.shape[-1], judge)
        if best is not None:
            run.log_metrics({"champion_score": best})
        alias = CHAMPION if best is not None and score > best else CANDIDATE
    set_alias(tracking, name, alias, version)
    run.set_tags({"firnline.model_version": version, "firnline.alias": alias})
    return f"models:/{name}/{version}", alias


def champion_score(
    tracking: Tracking, name: str, num_samples: int, judge: Callable[[Encoder], dict[str, float]]
) -> float | None:
    """Return the champion's score on the new model's windows; None where it takes windows of another length."""
    with tempfile.TemporaryDirectory(prefix="firnline-") as folder:
        found = download_artifact(tracking, f"models:/{name}@{CHAMPION}", Path(folder))
        files = sorted(found.rglob("*.safetensors"))
        try:
            champion = encoders.load(files[0]) if files else None
        except ValueError:
            champion = None
    if champion is None or champion.num_samples != num_samples:
        return None
    return judge(champion)["score"]
