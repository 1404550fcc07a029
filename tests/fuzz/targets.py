"""What is done with a changed file, and what may come of it: a result, or one sentence."""

import contextlib
import io
import warnings
from collections.abc import Callable
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.archive.continuity import assemble
from pipelines.archive.manifest import build_manifest, read_manifest
from pipelines.archive.records import decode
from pipelines.archive.stationxml import read_stationxml
from pipelines.config import read_yaml, resolve
from pipelines.config.detection import WindowSettings
from pipelines.detect.response import Responses
from pipelines.detect.stage_plan import make_plan
from pipelines.detect.stage_shard import BatchDetector, detect_batch
from pipelines.detect.stage_status import read_status
from pipelines.detect.stage_summary import read_summary
from pipelines.detect.stage_tasks import tasks_of
from pipelines.encoders import encoder
from pipelines.handlabels.table import read_label_table
from pipelines.runtime.errors import InputError
from pipelines.workspace import schemas, tables
from pipelines.workspace.artifacts import (
    ClusteringSummary,
    DetectionProgress,
    TrainingRecord,
    WorkspaceState,
)
from pipelines.workspace.ledger import MarkerName, marker_path
from pipelines.workspace.storage import open_store
from pipelines.workspace.workspace import Workspace

Random = np.random.Generator

FLAGS: dict[str, Any] = {
    "archive": {"layout": "flat"},
    "detection": {"sta_seconds": 0.5, "lta_seconds": 5.0, "on": 3.0, "band_hz": (1.0, 8.0), "max_seconds": 20.0},
    "window": {"rate_hz": 20.0, "lead_seconds": 2.0, "length_seconds": 10.0},
    "shards": {"interval": "auto"},
}


class FuzzFailure(Exception):
    """A changed file was taken, and what came of it is wrong."""


def check(holds: bool, what: str) -> None:
    """Raise FuzzFailure where something does not hold."""
    if not holds:
        raise FuzzFailure(what)


def one_sentence(error: BaseException) -> None:
    """Check an error that a reader may raise: a text of one line."""
    text = str(error)
    check(bool(text.strip()), f"{type(error).__name__} without a text")
    check("\n" not in text.strip(), f"a text of several lines: {text!r}")


def records(content: bytes, folder: Path, rng: Random) -> None:
    """Decode a file and assemble its channels: every sample is in a run or counted as dropped."""
    decoded = decode(content)
    check(bool(decoded.runs) or decoded.num_problems > 0 or bool(getattr(decoded, "counts", {})), "nothing is said")
    returned = {run.channel: 0 for run in decoded.runs}
    by_rate: dict[tuple[Any, float], list[Any]] = {}
    for run in decoded.runs:
        # The text of a run is long: it is not made for every one.
        check(len(run.data) > 0 and run.rate_hz > 0 and run.end_ns > run.start_ns, "a run without extent")
        returned[run.channel] += len(run.data)
        by_rate.setdefault((run.channel, run.rate_hz), []).append(run)
    for channel, counts in getattr(decoded, "counts", {}).items():
        check(counts.balances, "the account of a channel does not balance")
        check(counts.returned == returned.pop(channel, 0), "the account of a channel is not what is returned")
    if hasattr(decoded, "counts"):
        check(not any(returned.values()), f"samples without an account: {returned}")
    for (_, rate_hz), runs in by_rate.items():
        result = assemble(runs, rate_hz=rate_hz)
        used = sum(segment.num_samples for segment in result.segments)
        dropped = (
            *(result.duplicate_samples, result.superseded_samples, result.bad_samples, result.conflicting_samples),
        )
        check(used + sum(dropped) == sum(len(run.data) for run in runs), f"{used} used and {dropped} dropped samples")


def detection(contents: list[bytes], folder: Path, rng: Random) -> None:
    """Detect a folder of files without Ray, as the job does: every shard is done, its account balanced."""
    root = folder / "archive"
    root.mkdir()
    for index, content in enumerate(contents):
        (root / f"{index:03d}.mseed").write_bytes(content)
    config = resolve(FLAGS)
    store, space = open_store(str(root)), Workspace(open_store(str(folder / "workspace")))
    try:
        plan = make_plan(build_manifest(store, config.archive), space, config, "")
    except InputError as error:
        one_sentence(error)
        return
    new_detector = partial(BatchDetector, store, space.store, config, Responses())
    for batch in chain.from_iterable(tasks_of(plan, 1)):
        for shard, marker in detect_batch(new_detector, batch):
            check("error" not in marker, f"shard {shard.name}: {marker.get('error')}")
    outside = {path.name for path in folder.iterdir()} - {"archive", "workspace"}
    check(not outside, f"written outside the workspace: {outside}")


def metadata(content: bytes, folder: Path, rng: Random) -> None:
    """Read StationXML and convert with it."""
    window = WindowSettings(rate_hz=50.0, remove_response=bool(rng.random() < 0.3))
    try:
        inventory = read_stationxml(content)
    except ValueError as error:
        one_sentence(error)
        return
    responses = Responses.of(inventory, window)
    times_ns = np.array([-(2**62), 0, 1_583_020_800_000_000_000, 2**62])
    for codes, channels in (responses.channels or {}).items():
        for channel, epochs in channels.items():
            for epoch in epochs:
                check("\n" not in epoch.problem, f"a problem of several lines: {epoch.problem!r}")
            factors = responses.of_group(*codes).factors(channel, times_ns)
            check(bool((np.isnan(factors) | (np.isfinite(factors) & (factors != 0))).all()), f"factors {factors}")


def labels(name: str, content: bytes, folder: Path, rng: Random) -> None:
    """Read hand labels."""
    path = folder / name
    path.write_bytes(content)
    try:
        table = read_label_table(str(path))
    except InputError as error:
        one_sentence(error)
        return
    check("label" in table.rows, "a table without labels")


@cache
def _encoder() -> bytes:
    network = encoder.NetworkConfig(**_small_network())
    return encoder.Encoder(network, encoder.build_network(network)).to_bytes()


def _small_network() -> dict[str, Any]:
    return {"kind": "spectrogram", "num_samples": 200, "rate_hz": 20.0, "lead_samples": 40, "width": 8, "dim": 8}


@cache
def _events() -> bytes:
    schema = schemas.events_schema(8)
    arrays = []
    for field in schema:
        if field.name == "waveform":
            arrays.append(tables.tensor_array(np.zeros((3, 3, 8), np.float32)))
        elif field.name == "channels":
            arrays.append(pa.array([["HHE", None, "HHZ"]] * 3, field.type))
        elif pa.types.is_string(field.type):
            arrays.append(pa.array(["a", "b", "c"]))
        else:
            arrays.append(pa.array([1, 2, 3]).cast(field.type))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), buffer)
    return buffer.getvalue()


_STATE = {"layout_version": 1, "shard_interval": "day", "archive": "/data", "layout": "sds"}
_MARKER = {
    **{"outcome": "events", "start": "2020-03-01T00:00:00Z", "end": "2020-03-02T00:00:00Z", "gaps": 0},
    **{"inputs": [{"key": "a", "size": 1, "etag": "b"}], "quarantined": [], "skipped": [], "counts": {"events": 3}},
    "coverage": [{"day": "2020-03-01", "channel": ".HHZ.20", "seconds": 1.0, "blanked_seconds": 0.0, "gaps": 0}],
}
_CONFIG = "detection:\n  on: 3.5\n  off: 1.5\n  band_hz: [1, 20]\n  units: counts\nwindow:\n  rate_hz: 100\n"


def workspace_file(kind: str, content: bytes, folder: Path, rng: Random) -> None:
    """Read a file of a workspace."""
    store = open_store(str(folder))
    try:
        if kind == "state":
            store.write("workspace.json", content)
            WorkspaceState.read(store)
        elif kind == "marker":
            name = MarkerName("XX", "A", "--.HH.2020-03-01.day", "0123456789abcdef")
            store.write(marker_path("detect", name), content)
            read_status(store)
            read_summary(store, "detect")
        elif kind == "artifact":
            for artifact in (ClusteringSummary, DetectionProgress, TrainingRecord):
                store.write(artifact.PATH, content)
                with contextlib.suppress(InputError):
                    artifact.read(store)
        elif kind == "config":
            resolve(read_yaml(content.decode("utf-8", "replace"), name="config/detect.yaml"))
        elif kind == "events":
            store.write("events/x.parquet", content)
            table = tables.read_table(store, "events/x.parquet")
            check(table.num_rows < 1e6, f"{table.num_rows} rows of three")
        elif kind == "manifest":
            store.write("plan/manifest.parquet", content)
            with contextlib.redirect_stdout(io.StringIO()):
                read_manifest(store)
        elif kind == "encoder":
            encoder.load(content)
    except (InputError, ValueError) as error:
        if not isinstance(error, InputError) and kind != "encoder":
            raise
        check(bool(str(error).strip()), "an error without a text")


def _json_kind(rng: Random) -> tuple[str, bytes]:
    kind = str(rng.choice(("state", "marker", "artifact")))
    return kind, mutations.json_file(_STATE if kind == "state" else _MARKER, rng)


def one_file(rng: Random, folder: Path) -> tuple[str, bytes, Callable[[], None]]:
    """Return a changed file: its kind, its bytes, and what reads it."""
    kind = rng.random()
    if kind < 0.7:
        content = mutations.mseed(rng)
        return "miniSEED", content, partial(records, content, folder, rng)
    if kind < 0.78:
        content = mutations.stationxml(rng)
        return "StationXML", content, partial(metadata, content, folder, rng)
    if kind < 0.84:
        content = mutations.labels_csv(rng)
        return "labels (CSV)", content, partial(labels, "labels.csv", content, folder, rng)
    if kind < 0.88:
        content = mutations.labels_parquet(rng)
        return "labels (Parquet)", content, partial(labels, "labels.parquet", content, folder, rng)
    if kind < 0.92:
        name, content = _json_kind(rng)
        return f"workspace ({name})", content, partial(workspace_file, name, content, folder, rng)
    if kind < 0.94:
        content = mutations.yaml_file(_CONFIG, rng)
        return "workspace (config)", content, partial(workspace_file, "config", content, folder, rng)
    if kind < 0.97:
        name = str(rng.choice(("events", "manifest")))
        content = mutations.parquet_file(_events(), rng)
        return f"workspace ({name})", content, partial(workspace_file, name, content, folder, rng)
    content = mutations.safetensors_file(_encoder(), rng)
    return "workspace (encoder)", content, partial(workspace_file, "encoder", content, folder, rng)


def archive_of_files(rng: Random, folder: Path, count: int) -> tuple[str, list[bytes], Callable[[], None]]:
    """Return changed miniSEED files, detected together as one archive."""
    contents = [mutations.mseed(rng) for _ in range(count)]
    return "detection", contents, partial(detection, contents, folder, rng)


def warm_up(folder: Path) -> None:
    """Load and compile what the steps need, so that the first ones take no longer than the others."""
    rng = np.random.default_rng(0)
    whole = list(mutations.mseed2_files()[:2])
    quietly(partial(detection, whole, folder, rng))
    quietly(partial(records, whole[0], folder, rng))
    quietly(partial(metadata, mutations.stationxml_files()[0].encode(), folder, rng))
    _encoder()


def quietly(action: Callable[[], None]) -> None:
    """Run an action without Python's warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        action()
