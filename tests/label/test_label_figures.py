"""The gallery of a labelling run takes the windows that archives hold."""

import warnings

import numpy as np

from pipelines.label.figures import draw_gallery


def test_a_gallery_of_windows_with_offsets_and_absent_components_is_laid_out():
    random = np.random.default_rng(2)
    windows = random.normal(size=(4, 3, 500)) + 1e6
    windows[1, :2] = np.nan
    windows[2] = np.nan
    windows[3, 2, 100:200] = np.nan
    events = [(f"XX.STA..HH.{number}", window) for number, window in enumerate(windows)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content = draw_gallery({"cluster 0": events, "cluster 1": events[1:2]}, 100.0)
    assert content.startswith(b"\x89PNG")
