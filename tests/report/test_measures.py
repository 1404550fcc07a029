"""What the report draws of the clusters beside activity: hours and months, spectra, durations, amplitudes, channels."""

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from pipelines.report import channels, distributions, rhythm, spectra, style
from pipelines.report.stage_coverage import read_channels
from pipelines.workspace import schemas, tables
from pipelines.workspace.outcomes import TIMED
from pipelines.workspace.workspace import Workspace

Make = Callable[..., tuple[Workspace, pd.DataFrame]]
FIGURES = ("activity", "channels", "coverage", "distributions", "map", "rhythm", "spectra")
TIMES = st.integers(pd.Timestamp("1990-01-01").value, pd.Timestamp("2030-01-01").value)


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.tuples(TIMES, st.integers(0, 3)), min_size=1, max_size=60), cut=st.integers(0, 60))
def test_hours_and_months_are_those_of_the_calendar_however_the_tables_are_cut(
    rows: list[tuple[int, int]], cut: int
) -> None:
    onset_ns = np.array([time for time, _ in rows], dtype=np.int64)
    clusters = np.array([cluster for _, cluster in rows], dtype=np.int32)
    parts = [part for part in (slice(0, cut), slice(cut, None)) if len(onset_ns[part])]
    counted = rhythm.merge_rhythms([rhythm.count_rhythm(onset_ns[part], clusters[part]) for part in parts])
    found = counted.set_index(["cluster", "cycle", "slot"])["events"].to_dict()
    times = pd.to_datetime(onset_ns)
    expected: dict[tuple[int, str, int], int] = {}
    for cluster, hour, month in zip(clusters.tolist(), times.hour, times.month, strict=True):
        for key in ((cluster, "hour", hour), (cluster, "month", month - 1)):
            expected[key] = expected.get(key, 0) + 1
    assert found == expected


def test_recorded_days_are_summed_by_month_of_the_year() -> None:
    days = pd.Series(pd.to_datetime(["2020-01-05", "2021-01-05", "2020-12-31"]))
    assert rhythm.recorded_days(days, pd.Series([1.0, 0.5, 0.25])).tolist() == [1.5, *[0.0] * 10, 0.25]


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=50), cut=st.integers(0, 50))
def test_durations_and_amplitudes_fall_into_the_bins_of_a_histogram(values: list[float], cut: int) -> None:
    rows = pd.DataFrame({"cluster": 1, "duration_s": values, "peak_amplitude": 0.0})
    parts = [distributions.count_measures(part) for part in (rows[:cut], rows[cut:]) if len(part)]
    counted = distributions.merge_measures(parts)
    assert set(counted["measure"]) == {"duration_s"}
    first, last = int(counted["bin"].min()), int(counted["bin"].max())
    expected, _ = np.histogram(np.log10(values) * 10, np.arange(first, last + 2))
    found = np.zeros(last - first + 1, dtype=int)
    found[counted["bin"].to_numpy() - first] = counted["events"]
    assert found.sum() == len(values)
    # The last bin of NumPy's histogram is closed, so a value on an edge may stand one bin further.
    assert np.abs(np.cumsum(found) - np.cumsum(expected)).max() <= (np.abs(np.log10(values) * 10 % 1) < 1e-9).sum()


def test_quartiles_of_the_bins_are_those_of_the_values_to_a_bin() -> None:
    values = np.random.default_rng(0).lognormal(1, 0.7, 4000)
    rows = pd.DataFrame({"cluster": 2, "duration_s": values, "peak_amplitude": values})
    found = distributions.quantiles(distributions.count_measures(rows), 2, "duration_s")
    assert found is not None
    assert np.abs(np.log10(found) - np.log10(np.quantile(values, [0.25, 0.5, 0.75]))).max() < 0.06
    assert distributions.quantiles(distributions.count_measures(rows), 3, "duration_s") is None


def test_white_noise_has_the_level_of_its_variance_and_a_sine_its_frequency() -> None:
    random = np.random.default_rng(1)
    noise = [spectra.spectrum_db(random.normal(scale=3, size=2000).astype(np.float32), 100.0) for _ in range(60)]
    mean = spectra.mean_spectrum([one for one in noise if one is not None])
    assert mean is not None
    assert mean.events == 60
    # The density of white noise is its variance over the Nyquist frequency: 9 / 50 Hz. The mean of decibels lies below
    # the decibels of the mean, for the few segments of a window by less than 1 dB.
    misses = mean.mean_db[2:-2] - 10 * np.log10(9 / 50)
    assert -1.0 < misses.mean() < 0
    assert np.abs(misses).max() < 2.0
    assert (mean.low_db <= mean.mean_db).mean() > 0.9
    time = np.arange(2000) / 100
    found = spectra.spectrum_db(np.sin(2 * np.pi * 12.5 * time).astype(np.float32), 100.0)
    assert found is not None
    frequencies, power = found
    assert frequencies[power.argmax()] == pytest.approx(12.5, abs=0.2)
    gap = np.ones(100, np.float32)
    gap[3] = np.nan
    assert spectra.spectrum_db(gap, 100.0) is None
    assert spectra.spectrum_db(np.ones(100, np.float32), 100.0) is None


def write_availability(workspace: Workspace) -> None:
    """Write availability of two channels: HHZ of VNA1 used for 6 h of each day, HHN of VNA2 never used."""
    schema = schemas.availability_schema()
    for station, channel, used in (("VNA1", "HHZ", 21_600.0), ("VNA2", "HHN", 0.0)):
        for day in ("2020-12-30", "2020-12-31"):
            values = {f"{outcome}_seconds": 0.0 for outcome in TIMED}
            values |= {"used_seconds": used, "duplicate_seconds": 3_600.0, "no_data_seconds": 82_800.0 - used}
            codes = {"network": "AW", "station": station, "location": "00", "channel": channel, "rate_hz": 100.0}
            row = {**codes, **values, "day": np.datetime64(day, "D").item()}
            table = pa.table([pa.array([row[field.name]], field.type) for field in schema], schema=schema)
            tables.write_table(workspace.store, tables.shard_path("availability", "AW", station, day), table)


def test_channels_show_what_became_of_every_second(new_workspace: Make) -> None:
    workspace, _ = new_workspace(events_per_file=1)
    write_availability(workspace)
    days, seconds, words = read_channels(workspace.store)
    assert days["channel"].tolist() == ["AW.VNA1.00.HHZ"] * 2
    assert days["fraction"].tolist() == [0.25, 0.25]
    assert seconds.loc["AW.VNA1.00.HHZ", ["used", "duplicate", "no_data"]].tolist() == [43_200, 7_200, 122_400]
    assert seconds.loc["AW.VNA2.00.HHN", "used"] == 0
    assert (seconds.sum(axis=1) == 2 * 86_400).all()
    assert words == "2 channels"
    with style.drawing():
        text = style.to_svg(channels.channel_figure(days, seconds), "channels")
    texts = {one.text for one in ElementTree.fromstring(text).iter()}
    assert {"AW.VNA2.00.HHN", "used", "duplicate", "no data"} <= texts


def test_every_figure_lies_beside_the_page_as_svg_and_png(reported: tuple[Workspace, pd.DataFrame]) -> None:
    folder = Path(reported[0].url) / "report"
    page = (folder / "index.html").read_text()
    shown = [name for name in FIGURES if name != "channels"]
    assert sorted(file.name for file in (folder / "figures").iterdir()) == sorted(
        f"{name}.{suffix}" for name in shown for suffix in ("svg", "png")
    )
    for name in shown:
        assert f'href="figures/{name}.svg"' in page
        svg = (folder / "figures" / f"{name}.svg").read_text()
        ElementTree.fromstring(svg)
        # A file of its own follows no page's theme.
        assert "var(--" not in svg
        assert "mathdefault" not in svg
        picture = Image.open(io.BytesIO((folder / "figures" / f"{name}.png").read_bytes()))
        assert picture.width > 1500


def test_the_figures_are_in_mlflow_with_the_page(reported: tuple[Workspace, pd.DataFrame]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{reported[0].url}/mlflow.db")
    (experiment,) = [found for found in client.search_experiments() if found.name != "Default"]
    (run,) = client.search_runs([experiment.experiment_id])
    stored = {Path(item.path).name for item in client.list_artifacts(run.info.run_id, "report/figures")}
    assert stored == {file.name for file in (Path(reported[0].url) / "report" / "figures").iterdir()}


@pytest.mark.parametrize("name", ["<b>&\"'", "$x^2$", "冰震" * 32, "_", ""])
def test_these_figures_show_any_name_too(name: str) -> None:
    counted = rhythm.count_rhythm(np.arange(5) * 10**15, np.zeros(5, np.int32))
    measures = distributions.count_measures(
        pd.DataFrame({"cluster": [0], "duration_s": [2.0], "peak_amplitude": [5.0]})
    )
    one = spectra.mean_spectrum([(np.arange(1.0, 9.0), np.zeros(8))])
    assert one is not None

    def draw() -> list[Figure]:
        return [
            rhythm.rhythm_figure(counted, {0: name}),
            distributions.distribution_figure(measures, {0: name}, "counts"),
            spectra.spectra_figure({0: one}, {0: name}, "counts", None),
        ]

    with style.drawing():
        texts = [style.to_svg(figure, name) for figure in draw()]
        assert [style.to_files(figure) for figure in draw()] == [style.to_files(figure) for figure in draw()]
    for text in texts:
        ElementTree.fromstring(text)


# Machado, Oliveira & Fernandes (2009), severity 1, on linear RGB: what dichromats see.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear_rgb(colour: str) -> np.ndarray:
    values = np.array([int(colour[index : index + 2], 16) for index in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Return CIE L*a*b* (D65) of linear RGB."""
    ratios = TO_XYZ @ rgb / [0.95047, 1.0, 1.08883]
    x, y, z = np.where(ratios > 0.008856, np.cbrt(ratios), 7.787 * ratios + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("palette", [style.CLUSTER_COLOURS, style.CLASS_COLOURS])
def test_any_two_colours_differ_whatever_the_readers_colour_vision(palette: tuple[str, ...], vision: str) -> None:
    seen = {colour: lab(np.clip(np.array(VISION[vision]) @ linear_rgb(colour), 0, 1)) for colour in palette}
    for first, second in itertools.combinations(palette, 2):
        # 2.3 is just noticeable (CIE76); the palette before this one came to 2.8 for deuteranopes.
        assert np.linalg.norm(seen[first] - seen[second]) > 14, (first, second)


@pytest.mark.parametrize("paper", ["#fdfdfb", "#10161d"])
def test_every_colour_stands_out_from_the_page_in_both_themes(paper: str) -> None:
    for colour in style.CLUSTER_COLOURS:
        light, dark = sorted((float(TO_XYZ[1] @ linear_rgb(one)) for one in (colour, paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 2, colour
