"""The classes overlap for simple means, on windows around the truth and around detections, and differ in shape."""

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


@pytest.mark.parametrize(("onset", "num_windows"), [("truth", 700), ("detected", 700)])
def test_no_simple_feature_separates_the_classes_and_kmeans_on_features_does_so_in_part(
    onset: Literal["truth", "detected"], num_windows: int
) -> None:
    windows = synthesize_windows(num_windows, 0, onset=onset)
    features = hand_features(windows.waveforms, 100)
    assert features.shape == (num_windows, len(FEATURES)) == (num_windows, 16)
    simple = {
        name: single_feature_accuracy(features[:, FEATURES.index(name)], windows.labels) for name in SIMPLE_FEATURES
    }
    clustered = median(kmeans_accuracy(features, windows.labels, seed=seed) for seed in range(3))
    print(f"\n{onset}: balanced accuracy of one feature:", {name: round(value, 3) for name, value in simple.items()})
    print(f"{onset}: k-means on 16 hand-made features, Hungarian accuracy: {clustered:.3f}")
    assert max(simple.values()) < 0.80
    assert 0.50 <= clustered <= 0.75
