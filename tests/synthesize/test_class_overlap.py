"""The classes overlap for simple means, on windows around the truth and around detections, and differ in shape."""

from collections.abc import Callable
from statistics import median
from typing import Literal

import pytest

from pipelines.synthesize.overlap import (
    FEATURES,
    SIMPLE_FEATURES,
    hand_features,
    kmeans_accuracy,
    single_feature_accuracy,
)
from pipelines.synthesize.windows import synthesize_windows

WHERE = {"truth": "true onsets", "detected": "detected onsets"}
FIGURE = "figure"
"""Property of a test that tests/conftest.py prints when all are done."""


@pytest.mark.parametrize(("onset", "num_windows"), [("truth", 700), ("detected", 700)])
def test_no_simple_feature_separates_the_classes_and_kmeans_on_features_does_so_in_part(
    onset: Literal["truth", "detected"], num_windows: int, record_property: Callable[[str, object], None]
) -> None:
    windows = synthesize_windows(num_windows, 0, onset=onset)
    features = hand_features(windows.waveforms, 100)
    assert features.shape == (num_windows, len(FEATURES)) == (num_windows, 16)
    simple = {
        name: single_feature_accuracy(features[:, FEATURES.index(name)], windows.labels) for name in SIMPLE_FEATURES
    }
    clustered = median(kmeans_accuracy(features, windows.labels, seed=seed) for seed in range(3))
    best = max(simple, key=lambda name: simple[name])
    # Told in the summary of the tests.
    record_property(
        FIGURE,
        f"synthetic windows around {WHERE[onset]}: best single feature ({best}), balanced accuracy {simple[best]:.3f} "
        f"(< 0.80); k-means on {len(FEATURES)} features, Hungarian accuracy {clustered:.3f} (0.50 to 0.75)",
    )
    assert max(simple.values()) < 0.80
    assert 0.50 <= clustered <= 0.75
