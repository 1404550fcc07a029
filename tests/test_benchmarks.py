"""The benchmarks that are made for other machines run here, small, and their figures are of the right kind."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_workspace import small_workspace

__all__ = ["small_workspace"]

from pipelines.workspace.workspace import Workspace

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    # `train`, `detect` and `report` are names of benchmarks, which import each other so.
    before = {name: sys.modules.pop(name, None) for name in ("train", "detect", "report")}
    yield importlib.import_module
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def test_the_gpu_benchmark_runs_on_a_cpu(benchmark: Any, capsys: pytest.CaptureFixture[str]):
    gpu = benchmark("gpu")
    figures = gpu.main(
        [
            *("--device", "cpu", "--widths", "8", "--precisions", "fp32", "bf16", "--no-compiled"),
            *("--batch-size", "4", "--rows", "3000", "--dim", "6", "--k", "5"),
            *("--product-size", "64", "--seconds", "0.01"),
        ]
    )
    assert [(one["width"], one["precision"]) for one in figures["networks"]] == [(8, "fp32"), (8, "bf16")]
    for one in figures["networks"]:
        assert one["train_windows_per_second"] > 0
        assert one["embed_windows_per_second"] > one["train_windows_per_second"]
        assert 0 < one["augment_share"] < 1
    [kmeans] = figures["kmeans"]
    assert (kmeans["rows"], kmeans["largest_excess"] <= gpu.MARGIN) == (3000, True)
    assert "| 8 | bf16 | no |" in capsys.readouterr().out


def test_an_iteration_of_the_gpu_benchmark_is_that_of_lloyd(benchmark: Any, monkeypatch: pytest.MonkeyPatch):
    gpu = benchmark("gpu")
    monkeypatch.setattr(gpu, "BLOCK_ROWS", 7)
    rows = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    centroids = rows[:4] + 0.1
    nearest = np.array([[((row - centroid) ** 2).sum() for centroid in centroids] for row in rows]).argmin(axis=1)
    labels, sums, counts = gpu.lloyd_iteration(torch.from_numpy(rows), torch.from_numpy(centroids))
    assert labels.tolist() == nearest.tolist()
    assert counts.tolist() == [int((nearest == cluster).sum()) for cluster in range(4)]
    np.testing.assert_allclose(sums, [rows[nearest == cluster].sum(axis=0) for cluster in range(4)], rtol=1e-5)


def test_the_requests_of_a_station_day_are_counted_by_price(benchmark: Any):
    end_to_end = benchmark("end_to_end")
    log = "\n".join(
        f'127.0.0.1 - - [29/Nov/2026 16:00:00] "{request} HTTP/1.1" 200 -'
        for request in (
            *("GET /bench/archive/a", "HEAD /bench/archive/a", "GET /bench?list-type=2&prefix=events%2F"),
            *("PUT /bench/events/a", "POST /bench/events/a?uploads", "DELETE /bench/events/a"),
        )
    )
    log += '\n127.0.0.1 - - [29/Nov/2026 16:00:00] "\x1b[35m\x1b[1mGET /bench/archive/a HTTP/1.1\x1b[0m" 206 -'
    assert end_to_end.requests_in(log) == {"read": 3, "write": 3}


def test_dollars_of_a_station_year(benchmark: Any):
    """3,600 core-seconds a day on a machine of two cores for 2 dollars an hour: a dollar a day."""
    end_to_end = benchmark("end_to_end")
    cores, requests = end_to_end.dollars_a_year(3600.0, {"write": 1000.0, "read": 0.0}, (2.0, 2))
    assert cores == pytest.approx(365.25)
    assert requests == pytest.approx(365.25 * 0.0054)


def test_the_report_benchmark_gives_seconds_and_memory(benchmark: Any, tmp_path: Path):
    flags = ["--events", "60", "--stations", "2", "--days", "3", "--folder", str(tmp_path)]
    figures, *_ = benchmark("report").main([*flags, "--", "--report.map_method=pca", "--report.max_gallery_events=1"])
    assert figures["events"] == 60
    assert figures["seconds"] > 1
    # Pages that the process shares with this one count in full for the driver, and in part for all together.
    assert 0.1 < figures["driver_gb"] < 10
    assert 0.1 < figures["together_gb"] < 10
    assert list(tmp_path.glob("*/report/index.html"))


def test_the_benchmark_of_scale_counts_requests(benchmark: Any, monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ENDPOINT_URL", *benchmark("scale").ENVIRONMENT):
        # It sets them for the processes that it starts.
        monkeypatch.setenv(name, "")
    [found] = benchmark("scale").main(["--shards", "400", "--milliseconds", "1"]).values()
    done = found["prepare"]["done"]
    assert done == found["prepare"]["shards"] - found["plan"]["left"]
    assert {found[way]["done"] for way in ("status", "status without bundles")} == {done}
    assert found["status"]["events"] == found["status without bundles"]["events"]
    # ledger/detect, bundles, network, station; and once whether anything is there.
    assert {kind: number for kind, number in found["status"]["requests"].items() if kind != "other"} == {
        "list": 5,
        "bundle": 1,
    }
    assert found["status without bundles"]["requests"]["marker"] == done
    assert (found["plan"]["stale"], found["plan"]["empty"]) == (0, 0)
    assert "bundle" not in found["plan"]["requests"]


def test_a_few_labels_are_measured_on_a_half_that_is_not_looked_at(
    benchmark: Any, small_workspace: tuple[Workspace, pd.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    workspace, rows = small_workspace
    truth = tmp_path / "truth.csv"
    # A quarter of the events is not in the truth, and is looked at in vain.
    named = rows[["event_id", "label"]][np.arange(len(rows)) % 4 > 0]
    halves = np.where(np.arange(len(named)) % 2, "test", "validation")
    named.assign(split=halves).to_csv(truth, index=False)
    argv = [f"{workspace.url}={truth}", "--numbers", "12", "30", "9999", "--seeds", "2", "--k", "3"]
    found = benchmark("labels").main(argv)
    for answers in found["neumayer"]:
        ways = [("0", "clusters"), *((number, how) for number in ("12", "30") for how in ("suggested", "random"))]
        assert set(answers) == {*ways, ("all", "validation half")}
        assert 100 < answers["all", "validation half"].looked_at < 170
        assert answers["all", "validation half"].accuracy > 0.99
        assert answers["30", "suggested"].accuracy > 0.95
        assert 30 < answers["30", "suggested"].looked_at < 120
        assert answers["30", "suggested"].calibration_error < 0.2
    assert "| neumayer | 30 | suggested | " in capsys.readouterr().out
