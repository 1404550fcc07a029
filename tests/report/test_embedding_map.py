"""The map: a plane that separates what is apart."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from pipelines.report import embedding_map, style


def blobs() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    group = np.arange(120) % 3
    return (6 * np.eye(8)[group] + random.normal(size=(120, 8))).astype(np.float32), group


def test_the_principal_plane_holds_the_variance_of_a_singular_value_decomposition() -> None:
    embeddings, _ = blobs()
    plane, share = embedding_map.principal_plane(embeddings)
    values = np.linalg.svd(embeddings - embeddings.mean(axis=0), compute_uv=False)
    assert share == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), rel=1e-5)
    spread = plane.var(axis=0)
    assert spread[1] / spread[0] == pytest.approx((values[1] / values[0]) ** 2, rel=1e-5)


def test_the_neighbourhood_plane_keeps_groups_apart() -> None:
    embeddings, group = blobs()
    assert silhouette_score(embedding_map.neighbourhood_plane(embeddings, 0), group) > 0.5


def test_the_map_names_clusters_and_known_classes() -> None:
    embeddings, group = blobs()
    plane, _ = embedding_map.principal_plane(embeddings)
    classes = np.where(group == 0, "icequake", None)
    with style.drawing():
        figure = embedding_map.map_figure(
            {"principal components": plane}, group.astype(np.int32), {0: "0 · icequake", 1: "1", 2: "2"}, classes
        )
        text = style.to_svg(figure, "map")
    assert "0 · icequake" in text
    assert "not known" in text


EXTREMES = """
import numpy as np
from pipelines.report.embedding_map import have_extent, neighbourhood_plane, principal_plane
random = np.random.default_rng(0)
for embeddings in (
    random.normal(size=(20, 4)) * 1e-30,
    random.integers(0, 2, size=(20, 4)) * 1e-45,
    np.where(random.random((20, 4)) < 0.5, 3.4e38, -3.4e38),
    np.repeat(random.normal(size=(2, 4)), 10, axis=0),
    np.vstack([np.zeros((19, 4)), np.ones((1, 4))]),
    random.normal(size=(20, 1)),
    random.normal(size=(4, 4)),
):
    embeddings = embeddings.astype(np.float32)
    assert have_extent(embeddings)
    assert np.isfinite(neighbourhood_plane(embeddings, 0)).all()
    assert np.isfinite(principal_plane(embeddings)[0]).all()
assert not have_extent(np.ones((20, 4), np.float32))
"""


def test_embeddings_of_any_size_or_few_values_have_a_map() -> None:
    # In a process of its own: scikit-learn's t-SNE ends the process where distances vanish or overflow.
    ended = subprocess.run([sys.executable, "-c", EXTREMES], capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr
