"""The layers of docs/architecture.md, read off the imports of every module."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each room of pipelines/ and the rooms that its modules may import, as the table of docs/architecture.md gives them.
ROOMS: dict[str, set[str]] = {
    "runtime": set(),
    "config": {"runtime"},
    "metrics": set(),
    "encoders": set(),
    "contrastive": {"encoders"},
    "workspace": {"config", "runtime"},
    "archive": {"config", "runtime", "workspace"},
    "tracking": {"config", "encoders", "runtime", "workspace"},
    "handlabels": {"config", "metrics", "runtime", "workspace"},
    "synthesize": {"config", "runtime", "workspace"},
    "detect": {"archive", "config", "metrics", "runtime", "tracking", "workspace"},
    "train": {"config", "contrastive", "encoders", "handlabels", "metrics", "runtime", "tracking", "workspace"},
    "tune": {
        *{"config", "contrastive", "encoders", "handlabels", "label", "metrics", "runtime", "tracking", "train"},
        "workspace",
    },
    "label": {"config", "encoders", "handlabels", "metrics", "runtime", "tracking", "workspace"},
    "report": {"config", "handlabels", "metrics", "runtime", "tracking", "workspace"},
    "explore": {"config", "handlabels", "label", "metrics", "report", "runtime", "workspace"},
}

# Modules of a room that know Ray, MLflow or storage; all its other modules are pure functions on arrays and tensors.
ADAPTERS: dict[str, tuple[str, ...]] = {
    "runtime": ("capacity", "ray_session", "ray_private"),
    "config": (),
    "metrics": (),
    "encoders": (),
    "contrastive": (),
    "workspace": ("*",),
    "archive": ("manifest", "layout_choice", "reading", "fdsn"),
    "tracking": ("*",),
    "handlabels": ("table", "matching", "sampling"),
    "synthesize": ("stage",),
    "detect": ("stage", "stage_*"),
    "train": ("stage", "stage_*"),
    "tune": ("stage", "stage_*"),
    "label": ("stage", "stage_*"),
    "report": ("stage", "stage_*"),
    "explore": ("explorer", "export", "listing", "map_points", "merge_tree", "saved"),
}

OUTSIDE_NUMERICS = (
    "ray",
    "mlflow",
    "s3fs",
    "fsspec",
    "pipelines.runtime.ray_session",
    "pipelines.tracking",
    "pipelines.workspace.storage",
    "pipelines.workspace.s3_requests",
    "pipelines.workspace.workspace",
)

# The only modules that may import a service's client.
HOMES: dict[str, str] = {
    "mlflow": "pipelines/tracking/",
    "s3fs": "pipelines/workspace/s3_requests.py",
    "fsspec": "pipelines/workspace/",
    "aiobotocore": "pipelines/workspace/s3_requests.py",
    "ray._raylet": "pipelines/runtime/ray_private.py",
    "ray._private": "pipelines/runtime/ray_private.py",
    "ray._common": "pipelines/runtime/ray_private.py",
}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def _is_import_call(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in ("import_module", "__import__")


def imports(path: Path, *, late: bool = True) -> list[str]:
    """Return the dotted names that a module imports; `late` includes those inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[str] = []
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # One dot stays inside the room: MLflow keeps a copy of encoders/ under another name.
            assert node.level <= 1, f"{path.relative_to(ROOT)} imports from a folder above by dots"
            package = ".".join(path.relative_to(ROOT).parent.parts)
            module = ".".join(filter(None, [package if node.level else "", node.module]))
            found.append(module)
            found += [f"{module}.{alias.name}" for alias in node.names]
        elif _is_import_call(node):
            # Of a computed name, such as f"jobs.{job}", the fixed beginning must say the package.
            argument = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            assert isinstance(argument, ast.Constant), f"{path.relative_to(ROOT)} imports a module by a computed name"
            found.append(argument.value.rstrip("."))
    return found


def belongs(name: str, packages) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "pipelines").parts[0]


def is_adapter(path: Path) -> bool:
    return any(path.match(f"{pattern}.py") for pattern in ADAPTERS[room_of(path)])


def test_every_module_stands_in_a_room():
    loose = [path.name for path in (ROOT / "pipelines").glob("*.py")]
    assert loose == ["__init__.py"]
    assert {path.name for path in (ROOT / "pipelines").iterdir() if (path / "__init__.py").exists()} == set(ROOMS)
    assert set(ADAPTERS) == set(ROOMS)


def test_the_rooms_form_no_circle():
    done: set[str] = set()
    while len(done) < len(ROOMS):
        ready = {room for room, below in ROOMS.items() if room not in done and below <= done}
        assert ready, f"a circle among {set(ROOMS) - done}"
        done |= ready


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room):
    for path in modules(f"pipelines/{room}"):
        found = {name.split(".")[1] for name in imports(path) if name.startswith("pipelines.")} & set(ROOMS)
        assert found <= ROOMS[room] | {room}, f"{path.relative_to(ROOT)} imports {found - ROOMS[room] - {room}}"
        assert not [name for name in imports(path) if belongs(name, ["jobs"])], path


@pytest.mark.parametrize("room", ROOMS)
def test_numerics_know_no_ray_no_mlflow_no_storage(room):
    for path in modules(f"pipelines/{room}"):
        if not is_adapter(path):
            found = [name for name in imports(path) if belongs(name, OUTSIDE_NUMERICS)]
            assert not found, f"{path.relative_to(ROOT)} imports {found}"


@pytest.mark.parametrize("folder", ["pipelines/encoders", "pipelines/contrastive"])
def test_the_training_step_needs_torch_alone(folder):
    allowed = ("torch", "numpy", "pipelines.encoders", "pipelines.contrastive", "safetensors")
    for path in modules(folder):
        foreign = [
            name
            for name in imports(path, late=False)
            if not belongs(name, allowed) and name.split(".")[0] not in sys.stdlib_module_names
        ]
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


@pytest.mark.parametrize("package", HOMES)
def test_each_service_is_known_in_one_place(package):
    knowing = [
        path.relative_to(ROOT).as_posix()
        for path in [*modules("pipelines"), *modules("jobs")]
        if any(belongs(name, [package]) for name in imports(path))
    ]
    assert [path for path in knowing if not path.startswith(HOMES[package])] == []


def test_the_architecture_page_names_every_room_and_what_it_imports():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `") and line.count("|") == 4]
    table = {row[0].strip().strip("`/"): {name.strip(" `") for name in row[2].split(",")} - {"", "-"} for row in rows}
    assert table == ROOMS


def test_the_architecture_page_names_every_module():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = [
        f"{room_of(path)}/{path.name}"
        for path in modules("pipelines")
        if path.name != "__init__.py" and f"{path.relative_to(ROOT / 'pipelines').as_posix()}" not in page
    ]
    # A room's package file holds code only in config/ and encoders/.
    assert missing == []


def test_the_architecture_page_says_where_each_rule_is():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("## Where is it decided?\n")[1].split("\n## ")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in section.splitlines() if ".py`" in line]
    assert len(rows) >= 15
    for question, module, function in rows:
        path = ROOT / module if module.startswith("jobs/") else ROOT / "pipelines" / module
        *owner, name = function.split(".")
        body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
        for kind in owner:
            body = next(node.body for node in body if isinstance(node, ast.ClassDef) and node.name == kind)
        assert name in {node.name for node in body if isinstance(node, ast.FunctionDef)}, f"{question}: {function}"


def test_the_example_of_the_architecture_page_is_code_that_exists():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    assert example.strip() in (ROOT / "jobs" / "label.py").read_text(encoding="utf-8")


def test_no_function_has_nine_positional_parameters() -> None:
    """Compiled loops are left out, and the code that writes one: numba passes by position."""
    long = []
    for path in sorted((ROOT / "pipelines").rglob("*.py")):
        if path.name == "lanes.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and not any("jit" in ast.unparse(one) for one in node.decorator_list):
                names = [one.arg for one in (*node.args.posonlyargs, *node.args.args) if one.arg not in ("self", "cls")]
                if len(names) >= 9:
                    long.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert long == []
