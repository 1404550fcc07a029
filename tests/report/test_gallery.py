"""The gallery: what is chosen."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.report import gallery


def label_rows(random: np.random.Generator, count: int, clusters: int = 4) -> pd.DataFrame:
    rows = pd.DataFrame(
        {
            "event_id": [f"AW.VNA1..HH.{number:06d}" for number in random.permutation(10 * count)[:count]],
            "cluster": random.integers(0, clusters, count),
            "distance": random.integers(0, 20, count) / 4,
            "margin": random.random(count),
        }
    )
    return rows.assign(hash=gallery.event_hash(rows["event_id"]))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 120), cuts=st.lists(st.integers(0, 120), max_size=4))
def test_parts_in_any_order_give_the_gallery_of_the_whole(seed: int, count: int, cuts: list[int]) -> None:
    random = np.random.default_rng(seed)
    rows = label_rows(random, count)
    whole = gallery.best_candidates(gallery.gallery_candidates(rows), 5)
    edges = [0, *sorted(min(cut, count) for cut in cuts), count]
    parts = [rows.iloc[start:stop] for start, stop in itertools.pairwise(edges)]
    folded = gallery.best_candidates(gallery.gallery_candidates(rows.iloc[:0]), 5)
    for part in random.permutation(len(parts)):
        candidates = gallery.best_candidates(gallery.gallery_candidates(parts[part]), 5)
        folded = gallery.best_candidates(pd.concat([folded, candidates]), 5)
    first = gallery.choose_gallery(whole, nearest=2, random=2, boundary=1, at_most=100)
    second = gallery.choose_gallery(folded, nearest=2, random=2, boundary=1, at_most=100)
    assert first[["event_id", "role"]].to_dict("list") == second[["event_id", "role"]].to_dict("list")


def test_the_nearest_events_are_those_with_the_smallest_distance_and_none_stands_twice() -> None:
    rows = label_rows(np.random.default_rng(1), 400)
    candidates = gallery.best_candidates(gallery.gallery_candidates(rows), 6)
    chosen = gallery.choose_gallery(candidates, nearest=2, random=3, boundary=1, at_most=100)
    assert chosen["event_id"].is_unique
    assert chosen.groupby("cluster").size().tolist() == [6, 6, 6, 6]
    for cluster, own in chosen.groupby("cluster"):
        expected = rows[rows["cluster"] == cluster].sort_values(["distance", "event_id"])["event_id"].head(2)
        assert set(own.loc[own["role"] == "nearest", "event_id"]) == set(expected)


@pytest.mark.parametrize("at_most", [0, 3, 4, 9, 13])
def test_many_clusters_share_the_room_on_the_page(at_most: int) -> None:
    rows = label_rows(np.random.default_rng(2), 300)
    candidates = gallery.best_candidates(gallery.gallery_candidates(rows), 6)
    chosen = gallery.choose_gallery(candidates, nearest=2, random=3, boundary=1, at_most=at_most)
    assert len(chosen) <= at_most
    assert chosen["cluster"].nunique() == min(at_most, 4)
