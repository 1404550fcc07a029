"""The clusters in words and numbers: their names, sizes, stations, durations and signal-to-noise ratios."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from pipelines.report.page import ClusterCard
from pipelines.report.style import cluster_colour
from pipelines.report.summary import LabelSummary
from pipelines.workspace.artifacts import ClusteringSummary


def cluster_names(summary: LabelSummary, evaluation: ClusteringSummary) -> dict[int, str | None]:
    """Return each cluster's name as the label stage gave it (None where it has none), in order of their numbers."""
    names: dict[int, str | None] = {int(cluster): None for cluster in sorted(summary.groups["cluster"].unique())}
    named = summary.groups[(summary.groups["label_source"] == "cluster") & (summary.groups["label"] != "")]
    for cluster, rows in named.groupby("cluster"):
        names[int(str(cluster))] = str(rows.groupby("label")["events"].sum().idxmax())
    # A cluster whose events all carry a hand label shows its name in the label stage's summary only.
    for entry in evaluation.clusters:
        if names.get(entry.cluster, "") is None and entry.name:
            names[entry.cluster] = entry.name
    return names


def cluster_cards(summary: LabelSummary, names: Mapping[int, str | None], sample: pd.DataFrame) -> list[ClusterCard]:
    """Return the clusters in words and numbers, in order of their number."""
    total = int(summary.groups["events"].sum())
    cards = []
    for cluster, name in names.items():
        rows = summary.groups[summary.groups["cluster"] == cluster]
        events = int(rows["events"].sum())
        sites = rows.groupby("site")["events"].sum().sort_values(ascending=False, kind="stable")
        members = sample[sample["cluster"] == cluster]
        cards.append(
            ClusterCard(
                number=cluster,
                name=name,
                colour=cluster_colour(cluster),
                events=events,
                share=events / total,
                sites=tuple((str(site), int(count)) for site, count in sites.items()),
                hand=int(rows.loc[rows["label_source"] == "hand", "events"].sum()),
                duration_s=_quartiles(members["duration_s"]),
                snr_db=_quartiles(members["snr_db"]),
                sampled=len(members),
            )
        )
    return cards


def _quartiles(values: "pd.Series[float]") -> tuple[float, float, float] | None:
    present = values.dropna()
    if not len(present):
        return None
    low, middle, high = np.quantile(present.to_numpy(dtype=float), [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)
