"""Reads the windows of a few events of each cluster and averages their spectra."""

import numpy as np
import pandas as pd

from pipelines.report.spectra import MeanSpectrum, mean_spectrum, spectrum_db
from pipelines.report.stage_reading import read_events
from pipelines.workspace import tables
from pipelines.workspace.storage import Store

EVENTS_PER_CLUSTER = 40
MAX_EVENTS = 800
"""Windows that are read for all clusters together."""

_COMPONENTS = {"E": 0, "1": 0, "N": 1, "2": 1, "Z": 2, "3": 2}


def read_spectra(store: Store, sample: pd.DataFrame) -> dict[int, MeanSpectrum]:
    """Return the mean spectrum of each cluster, of the component that triggered.

    `sample` has the columns of `labels/`, the `file` and the `hash` of each row; the events with the smallest hashes
    are read. Windows with absent samples, and of another length or rate than the first, are left out.
    """
    per_cluster = max(1, min(EVENTS_PER_CLUSTER, MAX_EVENTS // max(1, sample["cluster"].nunique())))
    chosen = sample.sort_values("hash", kind="stable").groupby("cluster", sort=True).head(per_cluster)
    cluster_of = dict(zip(chosen["event_id"], chosen["cluster"], strict=True))
    found: dict[int, list[tuple[np.ndarray, ...]]] = {}
    kind: tuple[int, float] | None = None
    for table in read_events(store, "events", chosen, ("event_id", "trigger_channel", "sampling_rate", "waveform")):
        windows = tables.waveforms(table["waveform"])
        for row, (event_id, channel, rate_hz) in enumerate(
            zip(*(table[name].to_pylist() for name in ("event_id", "trigger_channel", "sampling_rate")), strict=True)
        ):
            kind = kind or (windows.shape[2], rate_hz)
            component = _COMPONENTS.get(str(channel)[-1:], 2)
            spectrum = spectrum_db(windows[row, component], rate_hz)
            if spectrum is not None and kind == (windows.shape[2], rate_hz):
                found.setdefault(int(cluster_of[event_id]), []).append(spectrum)
    means = {cluster: mean_spectrum(spectra) for cluster, spectra in sorted(found.items())}
    return {cluster: mean for cluster, mean in means.items() if mean is not None}
