"""A two-dimensional map of the embedding: principal components, and t-SNE for the neighbourhoods."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from pipelines.report.style import CLASS_COLOURS, CLUSTER_MARKERS, cluster_colour, cluster_marker, new_figure, quiet
from pipelines.report.words import short_name


def have_extent(embeddings: npt.NDArray[np.float32]) -> bool:
    """Whether not all embeddings are the same, so that there is something to map. Shape (event, dimension)."""
    return bool(len(embeddings)) and bool((embeddings != embeddings[0]).any())


def _scaled(embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return embeddings about their mean, the largest coordinate 1, in two dimensions at least.

    scikit-learn squares distances in single precision: of very small or large ones it makes zeros or infinities, on
    which its t-SNE ends the process.
    """
    data = embeddings.astype(np.float64)
    data -= data.mean(axis=0)
    data /= np.abs(data).max()
    return np.pad(data, ((0, 0), (0, max(0, 2 - data.shape[1]))))


def principal_plane(embeddings: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], float]:
    """Return the first two principal components and the share of the variance that they hold.

    `embeddings` has shape (event, dimension), at least two events that are not all the same (`have_extent`); the plane
    has shape (event, 2), in units of the largest coordinate about the mean. The sign of each component is the one for
    which its largest loading is positive.
    """
    model = PCA(n_components=2, svd_solver="full")
    plane = model.fit_transform(_scaled(embeddings))
    largest = np.abs(model.components_).argmax(axis=1)
    signs = np.sign(model.components_[np.arange(2), largest])
    return plane * signs, float(model.explained_variance_ratio_.sum())


def neighbourhood_plane(embeddings: npt.NDArray[np.float32], seed: int) -> npt.NDArray[np.float64]:
    """Return a t-SNE plane (van der Maaten & Hinton, 2008) in which near events were near in the embedding.

    `embeddings` has shape (event, dimension), at least four events that are not all the same (`have_extent`); the
    plane has shape (event, 2). Distances between groups that lie apart mean nothing.
    """
    data = _scaled(embeddings)
    components = min(30, *data.shape)
    reduced = PCA(n_components=components, svd_solver="full").fit_transform(data)
    perplexity = min(30.0, (len(data) - 1) / 3)
    model = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", max_iter=500, random_state=seed)
    return np.asarray(model.fit_transform(reduced), dtype=np.float64)


def map_figure(
    planes: Mapping[str, npt.NDArray[np.float64]],
    clusters: npt.NDArray[np.int32],
    cluster_names: Mapping[int, str],
    classes: npt.NDArray[np.object_] | None = None,
) -> Figure:
    """Draw each plane coloured by cluster and, where `classes` are known, the last plane once more coloured by class.

    `planes` maps a title to coordinates of shape (event, 2); `classes` holds a name or None for each event. Call
    inside `drawing()`.
    """
    panels: list[tuple[str, npt.NDArray[np.float64], bool]] = [(title, plane, False) for title, plane in planes.items()]
    known = classes is not None and any(name is not None for name in classes)
    if known and panels:
        panels.append(("the same, by known class", panels[-1][1], True))
    known_names = sorted({name for name in classes if name is not None}) if known and classes is not None else []
    names_shown = [short_name(name) for name in (*cluster_names.values(), *known_names)]
    # Columns of the legend: as many as have room below a panel, at 0.09 inches a letter.
    panel_inches = 9.6 / max(len(panels), 2)
    columns = int(np.clip(panel_inches // (0.3 + 0.09 * max(map(len, names_shown), default=1)), 1, 3))
    entries_below = max(len(cluster_names), len(known_names) + 1)
    figure = new_figure(9.6, panel_inches + 0.4 + 0.17 * -(-entries_below // columns))
    all_axes = figure.subplots(1, max(len(panels), 1), squeeze=False)[0]
    size = float(np.clip(9000 / max(len(clusters), 1), 2.5, 14.0))
    for axes, (title, plane, by_class) in zip(all_axes, panels, strict=False):
        quiet(axes)
        if by_class and classes is not None:
            groups = [
                (
                    name,
                    classes == name,
                    CLASS_COLOURS[index % len(CLASS_COLOURS)],
                    CLUSTER_MARKERS[index % len(CLUSTER_MARKERS)],
                )
                for index, name in enumerate(known_names)
            ]
            unknown = np.array([name is None for name in classes])
            if unknown.any():
                groups.insert(0, ("not known", unknown, "#b7c1ca", "."))
        else:
            groups = [
                (name, clusters == cluster, cluster_colour(cluster), cluster_marker(cluster))
                for cluster, name in cluster_names.items()
            ]
        entries = []
        for name, members, colour, marker in groups:
            drawn = axes.scatter(
                plane[members, 0],
                plane[members, 1],
                s=size,
                c=colour,
                marker=marker,
                alpha=0.65,
                linewidths=0,
                rasterized=True,
            )
            entries.append((drawn, name))
        axes.set_title(title, loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_box_aspect(1)
        # With handles and names given, a name that begins with an underscore is shown, too.
        handles, labels = [drawn for drawn, _ in entries], [short_name(name) for _, name in entries]
        legend = axes.legend(
            handles,
            labels,
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.01),
            ncols=columns,
            fontsize=7.2,
            handletextpad=0.1,
            columnspacing=1.0,
            borderaxespad=0.2,
        )
        for handle in legend.legend_handles:
            handle.set_alpha(1.0)
            handle.set_sizes([18])
    return figure
