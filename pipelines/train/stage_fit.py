"""Fits the configured encoder to the sample: a baseline, a network in this process, or a network by Ray Train."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from pipelines import encoders
from pipelines.config import Config
from pipelines.config.augmentation import AugmentationSettings
from pipelines.contrastive.augmentations import build_augmenter
from pipelines.contrastive.checkpoint import network_state, read_facts
from pipelines.contrastive.step import new_state
from pipelines.contrastive.whitening import whiten_by_views
from pipelines.encoders import Encoder, NetworkConfig
from pipelines.encoders.baselines import ConvolutionalAutoencoder, HandFeatures, SpectrogramPca
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.runtime.progress import progress_bar
from pipelines.runtime.ray_session import local_cores
from pipelines.tracking.runs import StageRun
from pipelines.train.baselines import autoencoder_epoch, fit_features, fit_pca
from pipelines.train.loop import HopelessTraining, Training, train_rank
from pipelines.train.stage_checkpoints import last_checkpoint, write_checkpoint
from pipelines.train.stage_ray import RayTraining, fit_with_ray
from pipelines.train.stage_setup import fits_on_device, prepare_windows, torch_threads, train_plan
from pipelines.workspace.event_sample import EventSample, read_sample
from pipelines.workspace.storage import Store

WHITENED_WINDOWS = 4096
"""Windows whose views say what the embedding is whitened by."""


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """What a training learns from, and its fingerprint."""

    store: Store
    config: Config
    augmentation: AugmentationSettings
    sample: EventSample
    network: NetworkConfig
    mark: str
    """Fingerprint of the settings and the events: the name of the checkpoints' folder."""


def fit_encoder(inputs: TrainingInputs, run: StageRun) -> tuple[Encoder, int]:
    """Return the fitted encoder, and the epochs that an earlier run had done.

    Raises:
        StageFailed: the loss is stuck or has diverged, or workers were lost too often.
    """
    config, sample = inputs.config, inputs.sample
    if config.train.encoder not in encoders.NETWORKS:
        return _fit_baseline(inputs, run), 0
    training = Training(
        network=inputs.network,
        plan=train_plan(config),
        preset=config.train.augmentation,
        augmentations=inputs.augmentation.model_dump(),
        compile=config.train.compile,
    )
    folder = f"train/{inputs.mark}"
    last = last_checkpoint(inputs.store, folder)
    resumed_from = read_facts(last)[0] if last is not None else 0
    if last is not None:
        print(f"train: resuming after epoch {resumed_from} of {training.plan.epochs}.")
        for done, world in read_facts(last)[1]["worlds"]:
            run.set_tags({f"firnline.workers_after_epoch_{done}": world})
        run.set_tags({"firnline.resumed_after_epoch": resumed_from})
    with _progress(run, training.plan.epochs) as report:
        if last is not None:
            report(read_facts(last)[1]["history"])
        try:
            if config.train.num_workers:
                task = RayTraining(store=inputs.store, training=training, sample=sample, folder=folder)
                content = fit_with_ray(task, config.train, report)
            else:
                content = _fit_here(inputs, training, folder, last, report)
        except HopelessTraining as error:
            run.set_tags({"firnline.alarm": str(error)})
            raise StageFailed(str(error)) from error
    built = encoders.build_network(inputs.network)
    built.load_state_dict(network_state(content))
    if config.train.whiten:
        some = prepare_windows(read_sample(inputs.store, sample, sample.spread(WHITENED_WINDOWS)), sample.lead_samples)
        augmenter = build_augmenter(training.preset, training.augmentations, sample.lead_samples)
        whiten_by_views(built.eval(), some, augmenter, config.train.seed)
    run.set_tags({"firnline.workers": json.dumps(read_facts(content)[1]["worlds"])})
    return Encoder(inputs.network, built), resumed_from


def _fit_here(
    inputs: TrainingInputs,
    training: Training,
    folder: str,
    last: bytes | None,
    report: Callable[[list[dict[str, float]]], None],
) -> bytes:
    """Train in this process from the checkpoint `last` and return the last one."""
    settings, sample, store = inputs.config.train, inputs.sample, inputs.store
    device = torch.device("cuda" if settings.use_gpu else "cpu")
    windows = prepare_windows(read_sample(store, sample, range(len(sample))), sample.lead_samples)
    if device.type == "cuda" and fits_on_device(windows, device):
        windows = windows.to(device)
    history: list[dict[str, float]] = read_facts(last)[1]["history"] if last is not None else []

    def after_epoch(done: int, content: bytes | None, figures: dict[str, float]) -> None:
        assert content is not None
        write_checkpoint(store, folder, done, content)
        history.append(figures)
        report(history)

    with torch_threads(settings.num_threads or local_cores()):
        return train_rank(training, windows, device=device, rank=0, world=1, checkpoint=last, after_epoch=after_epoch)


def _fit_baseline(inputs: TrainingInputs, run: StageRun) -> Encoder:
    settings, sample, network = inputs.config.train, inputs.sample, inputs.network
    if settings.encoder == "untrained":
        return Encoder(network, new_state(network, train_plan(inputs.config), torch.device("cpu")).learner.network)
    with torch_threads(settings.num_threads or local_cores()), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        built = encoders.build_network(network)
        windows = prepare_windows(read_sample(inputs.store, sample, range(len(sample))), sample.lead_samples)
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
