"""Section `train`: the encoder, its contrastive training, and where that runs."""

from typing import Literal

from pydantic import Field, model_validator

from pipelines.config.base import Section, operational


class TrainSettings(Section):
    """The encoder and its training."""

    encoder: Literal["spectrogram", "features", "pca", "autoencoder", "untrained"] = "spectrogram"
    """Residual network on log spectrograms (2-D) or waveforms (1-D), or a baseline: hand-made features, PCA of
    spectrograms, convolutional autoencoder, or the untrained spectrogram network."""
    width: int = Field(16, ge=8, le=512, multiple_of=8)
    """Channels of the network's first stage; the later stages have 2 and 4 times as many (count)."""
    blocks: int = Field(1, ge=1, le=8)
    """Residual blocks of each stage (count)."""
    dim: int = Field(64, ge=2, le=4096)
    """Length of an embedding (count)."""
    whiten: bool = False
    """After training, scale the embedding so that views of one window vary equally in all directions."""
    num_bands: int = Field(32, ge=8, le=256)
    """Frequency bands of the log spectrogram (count)."""
    num_frames: int = Field(96, ge=16, le=1024)
    """Approximate number of frames of the log spectrogram (count)."""
    log_amplitude: bool = False
    """Include each window's log amplitude in its embedding, which otherwise depends on the waveform's shape alone."""

    polarisation: float = Field(1.0, ge=0, le=100)
    """Weight, in the embeddings of `spectrogram`, of a last component that is not learned: how linear
    the motion is, which tells artefacts of the instrument from motion of the ground; 0: there is none (ratio)."""

    epochs: int = Field(40, ge=1, le=1_000_000)
    """Passes over the training windows (count)."""
    batch_size: int = Field(128, ge=2, le=1_000_000)
    """Windows in a step, over all workers (count)."""
    temperature: float = Field(0.2, gt=0, le=1000)
    """Temperature of the loss, which divides the cosine similarities (ratio)."""
    learning_rate: float = Field(3e-3, gt=0, le=1000)
    """Peak learning rate of AdamW at a batch of 256; scaled with the square root of the batch."""
    weight_decay: float = Field(1e-4, ge=0, le=1000)
    """Weight decay of AdamW (no unit)."""
    warmup_epochs: float = Field(4.0, ge=0, le=1_000_000)
    """Epochs over which the learning rate rises from zero (count)."""
    view_ramp_epochs: float = Field(0.0, ge=0, le=1_000_000)
    """Epochs over which the probabilities of all augmentations rise from a fifth to their configured values; at most a
    quarter of the training; 0: full from the start (count)."""
    bf16: bool = False
    """Run the network in bfloat16 autocast."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the weights, the order of the windows and the augmentations (no unit)."""

    augmentation: Literal["amplitude", "frequency", "both"] = "both"
    """Families of augmentations that are used; time shifts, polarity and rotation always are."""
    augment_from: str | None = None
    """Whose augmentation section is used: a YAML file (path or URL); `tune`: the best one that `tune` found here;
    another workspace: the best one that `tune` found there; `runs:/ID`: that of a run of MLflow, a search or a
    training."""
    max_events: int | None = Field(50_000, ge=2, le=1_000_000_000)
    """Maximum number of events to train on, drawn at random from every station and month (count)."""

    num_workers: int = operational(0, ge=0, le=100_000)
    """Ray Train workers; 0: train in this process, on a cluster with one worker (count)."""
    min_workers: int | None = operational(None, ge=1, le=100_000)
    """Continue with at least this many workers when the cluster shrinks; default: exactly num_workers (count)."""
    use_gpu: bool = operational(False)
    """Give each worker a GPU."""
    cpus_per_worker: float = operational(1.0, gt=0, le=10_000)
    """Logical CPUs reserved for each worker (count)."""
    num_threads: int = operational(0, ge=0, le=10_000)
    """Torch threads in each worker; 0: its share of the cores, on a cluster its CPUs (count)."""
    compile: bool = operational(False)
    """Compile the network with torch.compile."""
    max_failures: int = operational(3, ge=0, le=100_000)
    """Worker failures after which training stops; until then it resumes from the last checkpoint (count)."""

    @model_validator(mode="after")
    def _consistent(self) -> "TrainSettings":
        if self.num_workers and self.batch_size % self.num_workers:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of num_workers ({self.num_workers}), "
                "which share it evenly"
            )
        if self.batch_size // max(1, self.num_workers) < 1:
            raise ValueError(f"batch_size {self.batch_size} must give each of {self.num_workers} workers a window")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise ValueError(f"min_workers {self.min_workers} must lie in [1, num_workers = {self.num_workers}]")
        return self
