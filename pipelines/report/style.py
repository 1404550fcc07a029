"""Figures that belong to a page: one style, colours of the clusters, SVG that follows the page's light or dark theme.

Every figure is drawn with Matplotlib's object interface, never with the state of `pyplot`, so that several may be drawn
in one process. Text stays text in the SVG. Neutral colours are written as CSS variables of the page with a light-theme
fallback, so the same drawing reads on paper and on a dark screen.
"""

import io
import re
import threading
import warnings
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, NullFormatter

from pipelines.runtime.text import fit_for_xml

INK = "#1b2a38"
MUTED = "#5b6b7a"
GRID = "#d5dde4"
PAPER = "#fefdfc"
COVERAGE_COLOURS = LinearSegmentedColormap.from_list("coverage", ["#d9e6ef", "#7fb2d3", "#2f7fc1", "#123f66"], N=64)
"""Share of a day that is covered or used, from 0 to 1."""

_THEME = {
    INK: "var(--ink,#1b2a38)",
    MUTED: "var(--muted,#5b6b7a)",
    GRID: "var(--rule,#d5dde4)",
    PAPER: "var(--paper,#fefdfc)",
}

# Okabe and Ito's colours, which readers with any colour vision tell apart, without yellow (unreadable on white) and
# black (on a dark page), a dark purple from Paul Tol's, and three that differ most from these and each other.
CLUSTER_COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8f2d5f"),
    *("#8400f0", "#604824", "#90c06c"),
)
CLASS_COLOURS = (*CLUSTER_COLOURS[3:], *CLUSTER_COLOURS[:3])
CLUSTER_MARKERS = ("o", "^", "s", "D", "v", "P", "X")

# Matplotlib's settings are global to the process; a server draws from several threads.
_style_lock = threading.Lock()
_STYLE: dict[Any, Any] = {
    # A user's label with dollar signs is no formula.
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "firnline",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.unicode_minus": True,
}
_FONT_STACK = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def cluster_colour(cluster: int) -> str:
    """Return the colour of a cluster; ten differ, then they repeat."""
    return CLUSTER_COLOURS[cluster % len(CLUSTER_COLOURS)]


def cluster_form(cluster: int) -> int:
    """Return the place of a cluster's marker in `CLUSTER_MARKERS`: clusters of one colour differ in it."""
    return (cluster // len(CLUSTER_COLOURS)) % len(CLUSTER_MARKERS)


def cluster_marker(cluster: int) -> str:
    """Return the marker of a cluster: clusters of one colour differ in it."""
    return CLUSTER_MARKERS[cluster_form(cluster)]


class drawing:  # noqa: N801 - reads as a statement: `with drawing(): ...`
    """Context in which figures of this style are built: holds the process's style for one thread at a time."""

    def __enter__(self) -> None:
        _style_lock.acquire()
        self._context = matplotlib.rc_context(_STYLE)
        self._context.__enter__()

    def __exit__(self, *reason: object) -> None:
        self._context.__exit__(None, None, None)
        _style_lock.release()


def new_figure(width_inches: float, height_inches: float, *, constrained: bool = True) -> Figure:
    """Return an empty figure of this size, transparent; `constrained` makes room for its labels by itself."""
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained" if constrained else None)
    figure.patch.set_alpha(0.0)
    return figure


def quiet(axes: Axes) -> None:
    """Make the background of these axes transparent and their grid light, behind the data."""
    axes.patch.set_alpha(0.0)
    axes.set_axisbelow(True)


def log_axis(axes: Axes) -> None:
    """Make the horizontal axis logarithmic, its ticks plain numbers: this style has no formulas."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def to_svg(figure: Figure, description: str, dpi: int = 150) -> str:
    """Return the figure as an `<svg>` element for a page, the same bytes at each call.

    `description` becomes the element's accessible name. Raster parts are drawn at `dpi`. Call inside `drawing()`.
    """
    FigureCanvasSVG(figure)
    for element in figure.findobj(Text):
        element.set_text(fit_for_xml(element.get_text()))
    stream = io.StringIO()
    with warnings.catch_warnings():
        # The browser draws the text, with the fonts that it has.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(
            stream, format="svg", dpi=dpi, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*\n\s*", "\n", text)
    # Between the tags stands text, which may look like a number or a colour.
    text = re.sub(r"<[^>]*>", lambda tag: _slim_tag(tag.group()), text)
    head_end = text.index(">")
    head = re.sub(r' (width|height)="[^"]*"', "", text[:head_end])
    head += f' role="img" aria-label="{escape(fit_for_xml(description), quote=True)}"'
    head += f' style="width:100%;height:auto;max-width:{96 * 1.3 * figure.get_figwidth():.0f}px"'
    return head + text[head_end:].strip()


def _slim_tag(tag: str) -> str:
    # Group names repeat from figure to figure and nothing refers to them.
    tag = re.sub(r'<g id="[^"]*"', "<g", tag)
    # A hundredth of a point is finer than any screen or printer.
    tag = re.sub(r"(\d\.\d\d)\d+", r"\1", tag)
    for colour, variable in _THEME.items():
        tag = tag.replace(colour, variable)
    return re.sub(r"'DejaVu Sans'(, [^;\"]*)?|DejaVu Sans", _FONT_STACK, tag)


def to_png(figure: Figure, dpi: int = 150) -> bytes:
    """Return the figure as PNG on white, the same bytes at each call. Call inside `drawing()`."""
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def to_files(figure: Figure, dpi: int = 200) -> dict[str, bytes]:
    """Return the figure as files for a paper, on white: `svg`, whose text stays text, and `png`. The same bytes always.

    Call inside `drawing()`, before `to_svg`.
    """
    FigureCanvasSVG(figure)
    for element in figure.findobj(Text):
        element.set_text(fit_for_xml(element.get_text()))
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        metadata = {"Date": None, "Creator": None}
        figure.savefig(stream, format="svg", dpi=dpi, facecolor="white", metadata=metadata)
        return {"svg": stream.getvalue(), "png": to_png(figure, dpi)}
