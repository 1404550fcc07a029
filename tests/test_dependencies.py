"""What the code imports is what pyproject.toml declares: no package is there by luck, and none is there for nothing."""

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"pipelines", "jobs", "tests", "firnline_encoders"}
"""`firnline_encoders` is the copy of `pipelines/encoders` that a logged model carries."""

NOT_IMPORTED = {
    *("mypy", "ruff", "pre-commit", "ipykernel", "pytest-cov", "pytest-timeout", "pytest-xdist", "moto"),
    *("pandas-stubs", "scipy-stubs", "types-docutils", "types-pyyaml"),
}
"""Tools, servers and type stubs, which nothing imports."""

DEVELOPMENT_FOLDERS = ("tests", "benchmarks", "docs")

PEERS = {"dask", "dask_ml", "pyspark"}
"""What `benchmarks/kmeans.py --peers PYTHON` compares with; it lives in an environment of its own."""


def declared(*requirements: str) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


NEEDED = declared(*PROJECT["dependencies"])
OPTIONAL = declared(*PROJECT["optional-dependencies"]["seisbench"])
DEVELOPMENT = declared(*PROJECT["optional-dependencies"]["dev"])


def imported_modules(folder: str) -> dict[str, str]:
    """Return the top-level modules that a folder's files import, each with one file that does."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in names_in(node):
                found.setdefault(name.partition(".")[0], str(path.relative_to(ROOT)))
    return found


def names_in(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level and node.module:
        return [node.module]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        # A package may be used for its files alone, such as JavaScript.
        if function in ("import_module", "importorskip", "distribution"):
            return [str(node.args[0].value)]
    return []


@functools.cache
def distributions(folder: str) -> dict[str, str]:
    """Return the distributions that a folder's files import, each with one file that does."""
    known = installed()
    # Modules beside the tests and the benchmarks, such as tests/faultproxy.py.
    local = {path.stem for place in DEVELOPMENT_FOLDERS for path in (ROOT / place).rglob("*.py")}
    found = {}
    for module, path in imported_modules(folder).items():
        if module in OURS | PEERS | local or module in sys.stdlib_module_names:
            continue
        assert module in known, f"{path} imports {module}, which no installed package provides"
        providers = {canonicalize_name(name) for name in known[module]}
        # Of `mlflow` and `mlflow-skinny`, which share a folder, the one that is declared.
        found[min(providers & (NEEDED | DEVELOPMENT) or providers)] = path
    return found


@functools.cache
def installed() -> Mapping[str, list[str]]:
    return packages_distributions()


@pytest.mark.parametrize("folder", ["pipelines", "jobs"])
def test_every_package_that_firnline_imports_is_declared(folder: str) -> None:
    missing = {name: path for name, path in distributions(folder).items() if name not in NEEDED | OPTIONAL}
    assert not missing, f"not in pyproject.toml's dependencies: {missing}"


@pytest.mark.parametrize("folder", DEVELOPMENT_FOLDERS)
def test_every_package_that_only_development_imports_is_declared(folder: str) -> None:
    missing = {name: path for name, path in distributions(folder).items() if name not in NEEDED | DEVELOPMENT}
    assert not missing, f"not in pyproject.toml: {missing}"


def test_every_declared_package_is_used() -> None:
    used = set[str]().union(*(distributions(folder) for folder in ("pipelines", "jobs", *DEVELOPMENT_FOLDERS)))
    assert (NEEDED | DEVELOPMENT) - used - NOT_IMPORTED == set()
    assert OPTIONAL - (set(distributions("pipelines")) & DEVELOPMENT) == set()
    assert NEEDED - set(distributions("pipelines")) - set(distributions("jobs")) == set()


def test_every_declared_package_is_in_the_list_of_licences() -> None:
    text = (ROOT / "docs/dependencies.md").read_text()
    listed = {canonicalize_name(word) for word in re.findall(r"[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]", text)}
    stubs = {name for name in DEVELOPMENT if name.startswith("types-") or name.endswith("-stubs")}
    assert (NEEDED | DEVELOPMENT) - stubs - listed == set()
