"""The layers of docs/architecture.md, read off the imports."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("synthesize", "detect", "tune", "train", "label", "report")
ADAPTERS = ("stage", "explore", "compare", "manifest", "reading")
OUTSIDE_NUMERICS = ("ray", "mlflow", "s3fs", "fsspec", "pipelines.storage", "pipelines.tracking", "pipelines.cluster")
TORCH_ONLY = ("pipelines/encoders", "pipelines/contrastive")


def modules(folder):
    return sorted(path for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py")


def imports(path, *, late=True):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def belongs(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def is_adapter(path):
    return path.stem.split("_")[0] in ADAPTERS


@pytest.mark.parametrize("stage", [*STAGES, "archive", "encoders", "contrastive"])
def test_numerics_know_no_ray_no_mlflow_no_storage(stage):
    for path in modules(f"pipelines/{stage}"):
        if not is_adapter(path):
            found = [name for name in imports(path) if belongs(name, OUTSIDE_NUMERICS)]
            assert not found, f"{path.relative_to(ROOT)} imports {found}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_other_stage(stage):
    # Tuning is a search over trainings; labels and reports draw on tables alone.
    others = [f"pipelines.{other}" for other in STAGES if other != stage and (stage, other) != ("tune", "train")]
    for path in modules(f"pipelines/{stage}"):
        found = [name for name in imports(path) if belongs(name, others)]
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_nothing_imports_upwards():
    for path in modules("pipelines"):
        assert not [name for name in imports(path) if belongs(name, ["jobs"])], path


@pytest.mark.parametrize("folder", TORCH_ONLY)
def test_the_training_step_needs_torch_alone(folder):
    allowed = ("torch", "numpy", "pipelines.encoders", "pipelines.contrastive", "safetensors")
    for path in modules(folder):
        foreign = [
            name
            for name in imports(path, late=False)
            if not belongs(name, allowed) and name.split(".")[0] not in sys.stdlib_module_names
        ]
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


# encoder_model.py is the code that MLflow runs to load a model, model_registry.py what puts it there.
HOMES = {"mlflow": ("tracking.py", "model_registry.py", "encoder_model.py"), "s3fs": ("storage.py",)}


@pytest.mark.parametrize("package", HOMES)
def test_the_modules_that_know_a_service_are_few(package):
    knowing = {
        path.relative_to(ROOT).as_posix()
        for path in [*modules("pipelines"), *modules("jobs")]
        if any(belongs(name, [package]) for name in imports(path))
    }
    assert knowing <= {f"pipelines/{name}" for name in HOMES[package]}
