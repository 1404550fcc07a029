"""The map: a plane that separates what is apart."""

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
    assert plane.var(axis=0) * 120 == pytest.approx(values[:2] ** 2, rel=1e-5)


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
