"""Section `train`: the encoder, its contrastive training, and where that runs."""

from typing import Literal

from pydantic import Field, model_validator

from pipelines.config.base import Section, operational


class TrainSettings(Section):
    """The encoder and its training."""

    encoder: Literal["spectrogram", "waveform", "features", "pca", "autoencoder", "untrained"] = "spectrogram"
    """2-D residual network on log spectrograms, 1-D one on waveforms, or a baseline: hand-made features, PCA of
    spectrograms, convolutional autoencoder, the untrained spectrogram network."""
    width: int = Field(16, ge=8, le=512, multiple_of=8)
    """Channels of the network's first stage; the following ones have 2 and 4 times as many (count)."""
    blocks: int = Field(1, ge=1, le=8)
    """Residual blocks of each stage (count)."""
    dim: int = Field(64, ge=2, le=4096)
    """Length of an embedding (count)."""
    whiten: bool = False
    """After the training, scale the embedding's directions to equal variance between views of a window."""
    num_bands: int = Field(32, ge=8, le=256)
    """Frequency bands of the log spectrogram (count)."""
    num_frames: int = Field(96, ge=16, le=1024)
    """About how many frames the log spectrogram has (count)."""
    log_amplitude: bool = False
    """Pass each window's log amplitude on to its embedding, which else knows the waveform's shape alone."""

    epochs: int = Field(40, ge=1)
    """Passes over the windows (count)."""
    batch_size: int = Field(128, ge=2)
    """Windows of a step, over all workers (count)."""
    temperature: float = Field(0.2, gt=0)
    """Divides the cosine similarities in the loss (ratio)."""
    learning_rate: float = Field(3e-3, gt=0)
    """Peak learning rate of AdamW at a batch of 256; scaled with the square root of the batch."""
    weight_decay: float = Field(1e-4, ge=0)
    """AdamW's weight decay."""
    warmup_epochs: float = Field(4.0, ge=0)
    """Epochs over which the learning rate rises from zero."""
    bf16: bool = False
    """Run the network in bfloat16 autocast."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the weights, the sample, the order and the augmentations."""

    augmentation: Literal["amplitude", "frequency", "both"] = "both"
    """Preset: which families make the views; shifts, masks and turns are in all."""
    augment_from: str | None = None
    """Take the augmentation section from this YAML file (path or URL), or `tune`: the best that `tune` found here."""
    max_events: int | None = Field(50_000, ge=2)
    """Train on at most so many events, drawn by a hash of their id, stratified by station and month (count)."""

    num_workers: int = operational(0, ge=0)
    """Ray Train workers; 0 trains in this process (count)."""
    min_workers: int | None = operational(None, ge=1)
    """Go on with as few workers as this when the cluster shrinks (count); default: exactly num_workers."""
    use_gpu: bool = operational(False)
    """Give each worker a GPU."""
    cpus_per_worker: float = operational(1.0, gt=0)
    """Logical CPUs reserved by each worker (count)."""
    num_threads: int = operational(0, ge=0)
    """Threads of torch in each worker; 0: its share of the cores (count)."""
    compile: bool = operational(False)
    """Compile the network with torch.compile."""
    max_failures: int = operational(3, ge=0)
    """Lost workers after which the training fails; each is replaced and goes on from the last checkpoint (count)."""

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
