"""The files of the page: our own, and deck.gl, which draws the map, from the installed package pydeck."""

from dataclasses import dataclass
from importlib import resources
from importlib.metadata import distribution
from pathlib import Path


@dataclass(frozen=True)
class Asset:
    """A file of the page: where a browser finds it, what it is, and where it lies."""

    path: str
    kind: str
    file: str
    """In this package, or in pydeck where it has folders."""

    def read(self) -> bytes:
        """Return its content."""
        if "/" in self.file:
            return Path(str(distribution("pydeck").locate_file(self.file))).read_bytes()
        return resources.files("pipelines.explore").joinpath(self.file).read_bytes()


SERVER, OFFLINE = "server.js", "offline.js"
"""The script by which the page asks: the server, or the files of a copy without one."""
SCRIPTS = ("explore.js", "pages.js", "cards.js", "map.js", "places.js", "tree.js")
"""Our other scripts in the order in which the page reads them."""


def page_assets(asks: str = SERVER) -> list[Asset]:
    """Return all files of the page, which asks by `SERVER` or `OFFLINE`; none of them holds anything of a workspace."""
    return [
        Asset("/", "text/html", "explore.html"),
        Asset("/explore.css", "text/css", "explore.css"),
        Asset("/deck.js", "text/javascript", "pydeck/nbextension/static/index.js"),
        *(Asset(f"/{name}", "text/javascript", name) for name in (asks, *SCRIPTS)),
    ]
