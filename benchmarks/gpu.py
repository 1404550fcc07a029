"""What a GPU does with training, embedding and k-means; also runs on the CPU, where it is tested.

    python benchmarks/gpu.py                                        on the GPU where there is one, some minutes
    python benchmarks/gpu.py --device cpu --widths 16 --rows 200000 --seconds 5

Training and embedding: windows a second at several widths and precisions (fp32: no TF32; tf32; bf16: the network in
autocast), plain and through torch.compile, on 30 s windows of three components at 100 Hz. Their arithmetic is counted
by torch and compared with the limit of the device, which is measured: a large matrix product in the same precision.
The share of the augmentations is that of both views in the whole step. k-means: one iteration of Lloyd by a plain
blocked kernel (product, argmin, sums) over rows made on the device; labels of a sample of rows are compared with
float64 on the CPU, and no distance may be longer than the nearest by more than `MARGIN`.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from train import LEAD_SAMPLES, NUM_SAMPLES, RATE_HZ, make_windows

from pipelines.config.augmentation import AugmentationSettings
from pipelines.config.train import TrainSettings
from pipelines.contrastive.augmentations import build_augmenter
from pipelines.contrastive.step import TrainPlan, new_state, train_step
from pipelines.encoders import NetworkConfig

PRECISIONS = ("fp32", "tf32", "bf16")
WARM_UP_STEPS = 3
BLOCK_ROWS = 1 << 18
"""Rows of one matrix product of k-means: the products of a block with all centroids are held at a time."""

MARGIN = 1e-5
"""How much longer than to the nearest centroid the squared distance to the chosen one may be, of the rows' variance."""

CHECKED_ROWS = 20_000


def wait(device: torch.device) -> None:
    """Return when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate(work: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Return how often a second a piece of work is done, after a warm-up, over at least `seconds`."""
    for _ in range(WARM_UP_STEPS):
        work()
    wait(device)
    began, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - began) < seconds or not count:
        work()
        wait(device)
        count += 1
    return count / taken


@contextmanager
def matrix_precision(precision: str) -> Iterator[None]:
    """Let float32 products use TF32 inside, or not."""
    before = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions


def limit(device: torch.device, precision: str, size: int, seconds: float) -> float:
    """Return the operations a second of a square matrix product."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    with matrix_precision(precision):
        return rate(lambda: left @ right, device, seconds) * 2 * size**3


def network_of(width: int) -> NetworkConfig:
    """Return the default network with another width."""
    settings = TrainSettings()
    return NetworkConfig(
        kind=settings.encoder,
        num_samples=NUM_SAMPLES,
        rate_hz=RATE_HZ,
        lead_samples=LEAD_SAMPLES,
        width=width,
        blocks=settings.blocks,
        dim=settings.dim,
        num_bands=settings.num_bands,
        num_frames=settings.num_frames,
    )


def plan_of(batch_size: int, precision: str) -> TrainPlan:
    """Return the plan of the default training with a batch size and a precision."""
    settings = TrainSettings()
    return TrainPlan(
        epochs=1,
        batch_size=batch_size,
        temperature=settings.temperature,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_epochs=0,
        seed=0,
        bf16=precision == "bf16",
    )


def measure_network(
    windows: Tensor, width: int, precision: str, compiled: bool, seconds: float
) -> dict[str, float | int | str | bool]:
    """Return the rates of training and embedding on one batch of prepared windows, which lie on the device."""
    device, batch = windows.device, len(windows)
    plan, config = plan_of(batch, precision), network_of(width)
    state = new_state(config, plan, device)
    augmenter = build_augmenter(TrainSettings().augmentation, AugmentationSettings().model_dump(), LEAD_SAMPLES)
    augmenter = augmenter.to(device)
    generator = torch.Generator(device).manual_seed(0)
    model: Any = torch.compile(state.learner) if compiled else state.learner
    network: Any = torch.compile(state.learner.network) if compiled else state.learner.network

    in_views = 0.0

    def step() -> None:
        nonlocal in_views
        mark = time.perf_counter()
        first, second = augmenter(windows, generator), augmenter(windows, generator)
        wait(device)
        in_views += time.perf_counter() - mark
        train_step(model, state.optimizer, first, second, plan)

    @torch.no_grad()
    def embed() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=plan.bf16):
            network(windows)

    with matrix_precision(precision):
        with FlopCounterMode(display=False) as counter:
            train_step(state.learner, state.optimizer, windows, windows, plan)
        for _ in range(WARM_UP_STEPS):
            step()
        in_views, began = 0.0, time.perf_counter()
        steps = rate(step, device, seconds)
        augment_share = in_views / (time.perf_counter() - began)
        embedded = rate(embed, device, seconds)
    return {
        "width": width,
        "precision": precision,
        "compiled": compiled,
        "train_windows_per_second": steps * batch,
        "train_operations_per_second": steps * counter.get_total_flops(),
        "augment_share": augment_share,
        "embed_windows_per_second": embedded * batch,
    }


def lloyd_iteration(rows: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the labels (n,) of rows (n, d) and the sums (k, d) and counts (k,) of their clusters, block by block."""
    k = len(centroids)
    norms = (centroids**2).sum(dim=1)
    labels = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    sums = torch.zeros_like(centroids)
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        nearest = torch.addmm(norms, block, centroids.T, alpha=-2).argmin(dim=1)
        labels[start : start + BLOCK_ROWS] = nearest
        sums.index_add_(0, nearest, block)
    return labels, sums, torch.bincount(labels, minlength=k)


def measure_kmeans(
    device: torch.device, num_rows: int, dim: int, k: int, precision: str, seconds: float
) -> dict[str, float | int | str]:
    """Return the seconds of an iteration, and how its labels differ from float64 on the CPU on some of the rows."""
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.empty(num_rows, dim, device=device)
    truth = 2 * torch.randn(k, dim, generator=generator, device=device)
    for start in range(0, num_rows, BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        block.normal_(generator=generator)
        block += truth[torch.randint(k, (len(block),), generator=generator, device=device)]
    centroids = truth + 0.5 * torch.randn(k, dim, generator=generator, device=device)
    with matrix_precision(precision):
        labels = lloyd_iteration(rows, centroids)[0]
        a_second = rate(lambda: lloyd_iteration(rows, centroids), device, seconds)
    sample = rows[:CHECKED_ROWS].cpu().numpy().astype(np.float64)
    means = centroids.cpu().numpy().astype(np.float64)
    distances = (sample**2).sum(axis=1)[:, None] - 2 * sample @ means.T + (means**2).sum(axis=1)
    chosen = labels[:CHECKED_ROWS].cpu().numpy()
    excess = distances[np.arange(len(sample)), chosen] - distances.min(axis=1)
    return {
        "rows": num_rows,
        "precision": precision,
        "iteration_seconds": 1 / a_second,
        "other_label_share": float((chosen != distances.argmin(axis=1)).mean()),
        "largest_excess": float(excess.max() / sample.var(axis=0).sum()),
    }


def fits(device: torch.device, num_rows: int, dim: int) -> bool:
    """Return whether rows, their labels and the products of a block fit into the device's free memory."""
    if device.type != "cuda":
        return True
    return num_rows * (dim * 4 + 8) + (2 << 30) < torch.cuda.mem_get_info(device)[0]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print two tables, and return all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--widths", type=int, nargs="*", default=[16, 64, 256])
    parser.add_argument("--precisions", nargs="*", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True, help="also torch.compile")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000_000, 100_000_000], help="of k-means")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--product-size", type=int, default=8192, help="of the matrices that show the device's limit")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement, at least")
    parser.add_argument("--json", help="file for all figures")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{name}; torch {torch.__version__}, {torch.get_num_threads()} CPU threads, batch {options.batch_size}\n")
    limits = {
        precision: limit(device, precision, options.product_size, options.seconds) for precision in options.precisions
    }
    windows = make_windows(options.batch_size).to(device)
    print("| width | precision | compiled | train windows/s | of the limit | augmentations | embed windows/s |")
    print("|---|---|---|---|---|---|---|")
    networks = []
    for width in options.widths:
        for precision in options.precisions:
            for compiled in (False, True) if options.compiled else (False,):
                found: Any = measure_network(windows, width, precision, compiled, options.seconds)
                found["limit_share"] = found["train_operations_per_second"] / limits[precision]
                networks.append(found)
                print(
                    f"| {width} | {precision} | {'yes' if compiled else 'no'} | "
                    f"{found['train_windows_per_second']:,.0f} | {found['limit_share']:.1%} | "
                    f"{found['augment_share']:.1%} | {found['embed_windows_per_second']:,.0f} |",
                    flush=True,
                )
    print(f"\nlimits: {', '.join(f'{precision} {value / 1e12:.2f} T/s' for precision, value in limits.items())}\n")
    print("| k-means rows | precision | s an iteration | other label | longest excess |\n|---|---|---|---|---|")
    kmeans = []
    for num_rows in options.rows:
        if not fits(device, num_rows, options.dim):
            print(f"| {num_rows:,} | | do not fit into the memory of the device | | |")
            continue
        for precision in [one for one in options.precisions if one != "bf16"]:
            measured = measure_kmeans(device, num_rows, options.dim, options.k, precision, options.seconds)
            kmeans.append(measured)
            print(
                f"| {num_rows:,} | {precision} | {measured['iteration_seconds']:.4f} | "
                f"{measured['other_label_share']:.2%} | {measured['largest_excess']:.1e} |",
                flush=True,
            )
    for measured in kmeans:
        if measured["precision"] == "fp32" and float(measured["largest_excess"]) > MARGIN:
            raise SystemExit(
                f"k-means: a row's centroid is farther than the nearest by {measured['largest_excess']:.1e}"
            )
    figures = {"device": name, "limits": limits, "networks": networks, "kmeans": kmeans}
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))
    return figures


if __name__ == "__main__":
    main()
