"""The documentation leads where it says: links, files, commands and keys exist, and its lines are of one width."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.command_line import JOBS
from pipelines.config import STAGE_SECTIONS, describe_keys

ROOT = Path(__file__).resolve().parent.parent


def _builder() -> Any:
    specification = importlib.util.spec_from_file_location("build_docs", ROOT / "docs" / "build.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


builder = _builder()
PAGES = builder.pages()
KEYS = {key for stage in STAGE_SECTIONS for key, _, _ in describe_keys(stage)}
SUFFIXES = (".py", ".yaml", ".tf", ".db")
PYTHON_NAMES = {"mlflow.pyfunc.load_model"}
"""What looks like a key and is none."""

SECTIONS = {key.partition(".")[0] for key in KEYS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    assert builder.broken_links(page) == []


def test_a_link_to_a_missing_file_or_heading_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# One heading\n[a](page.md#one-heading) [b](gone.md) [c](#two) `[d](code.md)` [e](https://doi.org/1)\n"
    )
    assert builder.broken_links(page) == ["page.md: gone.md: no such file", "page.md: #two: no such heading"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_key_job_and_make_target_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page.name in ("CHANGELOG.md", "CONTRIBUTING.md", "decisions.md"):
        # These name what is gone, or what the reader will add.
        return
    named = set(re.findall(r"\b(?:pipelines|jobs|tests|benchmarks|configs|infra|docs)/[\w/.-]*\.\w+", text))
    assert {name for name in named if not (ROOT / name).exists()} == set()
    keys = set(re.findall(r"(?:`|--)([a-z]+\.[a-z_]+(?:\.[a-z_]+)?)(?=[` =])", text))
    keys = {key for key in keys if key.partition(".")[0] in SECTIONS and not key.endswith(SUFFIXES)} - PYTHON_NAMES
    assert {key for key in keys if key not in KEYS and not any(known.startswith(key + ".") for known in KEYS)} == set()
    jobs = set(re.findall(r"(?:^    |`)firnline ([a-z]+)", text, flags=re.M))
    assert jobs - set(JOBS) == set()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_of_text_wrap_at_120(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    long = [line for line in text.splitlines() if len(line) > 120 and " " in line.strip() and line[0] not in "|!"]
    assert long == []


def test_the_citation_names_the_version_and_the_paper() -> None:
    from pipelines import __version__

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    assert citation["references"][0]["doi"] == "10.1785/0220230078"


def test_pre_commit_runs_what_make_lint_runs() -> None:
    hooks = [
        hook["entry"]
        for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
        for hook in repository["hooks"]
    ]
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.M)
    assert recipe
    commands = [line.strip().replace("$(VENV)", ".venv").removesuffix(" .") for line in recipe[1].splitlines()]
    assert hooks == commands
