"""Builds the documentation: `make docs` and `make tutorial`.

python docs/build.py             docs/*.md and README.md as pages, the API from the docstrings, all in build/docs/
python docs/build.py --tutorial  runs docs/tutorial.ipynb and writes it with its outputs to build/docs/

Every warning is an error, and so is a link whose target does not exist. Links to other hosts are not followed.
"""

import html
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build" / "docs"
MODULES = ("pipelines", "!pipelines.tracking.encoder_model")
"""What the API page covers. The module left out runs inside a logged model, where `pipelines` has another name."""

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE_BLOCK = re.compile(r"^```.*?^```$", re.M | re.S)
_INLINE_CODE = re.compile(r"`[^`\n]*`")


def pages() -> list[Path]:
    """Return the pages written by hand: the README and its neighbours, docs/ and infra/."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("infra/**/*.md")])


def links(text: str) -> Iterator[str]:
    """Yield the targets of a Markdown text's links, those in code left out."""
    for match in _LINK.finditer(_INLINE_CODE.sub("code", _CODE_BLOCK.sub("", text))):
        yield match[1]


def anchors(text: str) -> set[str]:
    """Return the anchors of a Markdown text's headings, as repository hosts make them."""
    headings = re.findall(r"^#+ +(.*)$", _CODE_BLOCK.sub("", text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Return what is wrong with the links of a page: a file that does not exist, or a heading that its target lacks."""
    problems = []
    for target in links(page.read_text(encoding="utf-8")):
        parts = urlsplit(target)
        if parts.scheme:
            continue
        path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not path.exists():
            problems.append(f"{page.relative_to(ROOT)}: {target}: no such file")
        elif (
            parts.fragment and path.suffix == ".md" and parts.fragment not in anchors(path.read_text(encoding="utf-8"))
        ):
            problems.append(f"{page.relative_to(ROOT)}: {target}: no such heading")
    return problems


def build() -> int:
    """Write build/docs/ and return the exit code."""
    problems = [problem for page in pages() for problem in broken_links(page)]
    shutil.rmtree(OUTPUT, ignore_errors=True)
    problems += write_api(OUTPUT / "api")
    for page in pages():
        write_page(page)
    for picture in ROOT.glob("docs/pictures/*"):
        target = OUTPUT / picture.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, target)
    problems += broken_pages()
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print(f"make docs: {len(problems)} warnings and broken links", file=sys.stderr)
        return 1
    print(f"{OUTPUT.relative_to(ROOT)}/README.html and {OUTPUT.relative_to(ROOT)}/api/index.html")
    return 0


def write_api(folder: Path) -> list[str]:
    """Write one page for each module of the library, from its docstrings, and return pdoc's warnings."""
    # ObsPy asks `uname` for the processor when it is imported, which pdoc would suppress with a warning.
    os.environ["PDOC_ALLOW_EXEC"] = "1"
    import pdoc

    pdoc.render.configure(docformat="google", show_source=False, footer_text="Firnline")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pdoc.pdoc(*MODULES, output_directory=folder)
    # pandas is generic for type checkers only, so `pd.Series[str]` cannot be evaluated; other packages' warnings about
    # each other say nothing about the documentation.
    return [
        str(one.message)
        for one in caught
        if "pdoc" in Path(one.filename).parts and "'Series' is not subscriptable" not in str(one.message)
    ]


def write_page(page: Path) -> None:
    """Write a Markdown page as HTML, its links to other pages turned into links to theirs."""
    from pdoc.render_helpers import markdown2

    text = page.read_text(encoding="utf-8")
    body = markdown2.markdown(text, extras=["tables", "fenced-code-blocks", "header-ids", "cuddled-lists"])
    body = re.sub(r'href="([^":#]*)\.md(#[^"]*)?"', r'href="\1.html\2"', body)
    target = OUTPUT / page.relative_to(ROOT).with_suffix(".html")
    # What is not a page (a configuration, a folder) is linked where it lies in the repository.
    body = re.sub(r'(href|src)="([^":#]+)"', lambda match: f'{match[1]}="{_moved(match[2], page, target)}"', body)
    api = os.path.relpath(OUTPUT / "api" / "index.html", target.parent)
    readme = os.path.relpath(OUTPUT / "README.html", target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(page.stem)} - Firnline</title>"
        "<style>body{max-width:60em;margin:2em auto;padding:0 1em;font:16px/1.5 sans-serif}"
        "pre{overflow:auto;background:#f3f5f7;padding:.7em}"
        "td,th{padding:.2em .6em;border:1px solid #d5dde4;text-align:left}"
        "table{border-collapse:collapse}img{max-width:100%}</style>"
        f'<p><a href="{readme}">Firnline</a> | <a href="{api}">API</a></p>\n{body}</html>\n',
        encoding="utf-8",
    )


def _moved(link: str, page: Path, target: Path) -> str:
    """Return a link of a page as its copy in build/docs/ needs it."""
    if (OUTPUT / page.relative_to(ROOT).parent / link).suffix in (".html", ".png"):
        return link
    return os.path.relpath((page.parent / link).resolve(), target.parent)


class _Links(HTMLParser):
    """The links and the anchors of an HTML page."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect a tag's `href`, `src`, `id` and `name`."""
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.targets.append(value)
            if value and name in ("id", "name"):
                self.anchors.add(value)


def broken_pages() -> list[str]:
    """Return the links between the built pages that lead nowhere."""
    parsed: dict[Path, _Links] = {}
    for path in sorted(OUTPUT.rglob("*.html")):
        parsed[path] = _Links()
        parsed[path].feed(path.read_text(encoding="utf-8"))
    problems = []
    for path, page in parsed.items():
        for link in page.targets:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            where = f"{path.relative_to(ROOT)}: {link}"
            if not target.exists():
                problems.append(f"{where}: no such file")
            elif parts.fragment and target in parsed and unquote(parts.fragment) not in parsed[target].anchors:
                problems.append(f"{where}: no such anchor")
    return problems


def run_tutorial(folder: Path, timeout_s: int = 600) -> Any:
    """Run docs/tutorial.ipynb with `folder` as its working folder and return the notebook with its outputs."""
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    with tempfile.TemporaryDirectory(prefix="firnline-") as private:
        # Sockets in a private folder rather than ports, which are open to the machine's other users.
        sockets = Config({"KernelManager": {"transport": "ipc", "ip": f"{private}/kernel"}})
        NotebookClient(
            notebook, timeout=timeout_s, startup_timeout=timeout_s, resources=resources, config=sockets
        ).execute()
    return notebook


def write_tutorial() -> int:
    """Run the tutorial, write it with its outputs to build/docs/, and return the exit code."""
    import nbformat

    with tempfile.TemporaryDirectory(prefix="firnline-tutorial-") as name:
        notebook = run_tutorial(Path(name).resolve())
    OUTPUT.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, OUTPUT / "tutorial.ipynb")
    print(OUTPUT.relative_to(ROOT) / "tutorial.ipynb")
    return 0


if __name__ == "__main__":
    sys.exit(write_tutorial() if "--tutorial" in sys.argv[1:] else build())
