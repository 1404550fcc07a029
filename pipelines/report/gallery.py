"""The gallery: which events stand for a cluster.

Choosing is a reduction: tables of label rows are folded one after the other into a table of a few rows for each
cluster, so that the choice needs memory for its result alone and does not depend on the order of the tables.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd

_ROLE_COLUMNS = {"nearest": "distance", "random": "hash", "boundary": "margin"}
ROLES = tuple(_ROLE_COLUMNS)
_HASH_KEY = "firnline-gallery"


def event_hash(event_ids: "pd.Series[str]") -> npt.NDArray[np.uint64]:
    """Return a number for each event id that depends on the id alone, evenly spread over 64 bits. Shape (event,)."""
    values = event_ids.to_numpy(dtype=object)
    return np.asarray(pd.util.hash_array(values, hash_key=_HASH_KEY, categorize=False), dtype=np.uint64)


def gallery_candidates(labels: pd.DataFrame) -> pd.DataFrame:
    """Return label rows as candidates for every role of the gallery, to be cut by `best_candidates`.

    `labels` has `event_id`, `cluster`, `distance`, `margin`, `hash` (see `event_hash`) and any further columns, which
    are kept; `role` is added.
    """
    return pd.concat([labels.assign(role=role) for role in ROLES], ignore_index=True)


def best_candidates(candidates: pd.DataFrame, per_role: int) -> pd.DataFrame:
    """Keep the best `per_role` candidates of each cluster and role: smallest distance, smallest hash, smallest margin.

    Applied to the joined results of two parts of a table it gives the result for the whole; ties are broken by the id.
    """
    pieces = [
        candidates[candidates["role"] == role]
        .sort_values([column, "event_id"], kind="stable")
        .groupby("cluster", sort=True)
        .head(per_role)
        for role, column in _ROLE_COLUMNS.items()
    ]
    return pd.concat(pieces, ignore_index=True)


def choose_gallery(candidates: pd.DataFrame, nearest: int, random: int, boundary: int, at_most: int) -> pd.DataFrame:
    """Return the gallery in the order of the page: each event once, at most `at_most` events over all clusters.

    Where the clusters are too many for the full gallery, each gives up random events first, then boundary, then nearest
    ones, and keeps one as long as there is room for that.
    """
    clusters = sorted(candidates["cluster"].unique())
    wanted = {"nearest": nearest, "random": random, "boundary": boundary}
    while clusters and sum(wanted.values()) * len(clusters) > at_most and sum(wanted.values()) > 1:
        for role in ("random", "boundary", "nearest"):
            if wanted[role] > (1 if role == "nearest" else 0):
                wanted[role] -= 1
                break
        else:
            break
    pieces: list[pd.DataFrame] = []
    for cluster in clusters[:at_most]:
        own = candidates[candidates["cluster"] == cluster]
        taken: set[str] = set()
        for role, column in (("nearest", "distance"), ("boundary", "margin"), ("random", "hash")):
            free = own[(own["role"] == role) & ~own["event_id"].isin(taken)]
            best = free.sort_values([column, "event_id"]).head(wanted[role])
            taken.update(best["event_id"])
            pieces.append(best)
    if not pieces:
        return candidates.iloc[:0]
    table = pd.concat(pieces)
    table["order"] = table["role"].map({role: index for index, role in enumerate(ROLES)})
    return table.sort_values(["cluster", "order"], kind="stable").drop(columns="order").reset_index(drop=True)


def smallest_hashes(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """Keep the `count` rows with the smallest `hash` (see `event_hash`): a sample that depends on the ids alone."""
    return rows.sort_values(["hash", "event_id"], kind="stable").head(count).reset_index(drop=True)
