"""The figures of a labelling run take the windows and classes that archives hold."""

import struct
import warnings

import numpy as np
import pytest

from pipelines.label.figures import draw_confusion, draw_gallery


@pytest.mark.parametrize("num_classes", [3, 150])
def test_a_confusion_matrix_of_many_classes_stays_a_page(num_classes):
    classes = [f"class {number}" for number in range(num_classes)]
    matrix = np.random.default_rng(1).integers(0, 99, (num_classes, num_classes + 1))
    content = draw_confusion(matrix, classes, [*classes, "(none)"], "title")
    width, height = struct.unpack(">II", content[16:24])
    assert 300 < width < 4000
    assert 300 < height < 4000


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
