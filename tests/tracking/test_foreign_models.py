"""Models of strangers: an encoder is read from its safetensors file, and nothing else in the model is loaded or run."""

import ast
import pickle
from pathlib import Path

import pytest
import torch

from pipelines import config as configuration
from pipelines.encoders import Encoder, NetworkConfig, build_network
from pipelines.label.stage_encoder import load_encoder
from pipelines.runtime.errors import InputError
from pipelines.tracking.server import as_default, open_tracking
from pipelines.workspace.workspace import open_workspace

ROOT = Path(__file__).resolve().parents[2]
MLMODEL = """
flavors:
  python_function:
    loader_module: mlflow.pyfunc.model
    python_model: python_model.pkl
    cloudpickle_version: 3.1.0
    code: code
    env: {virtualenv: python_env.yaml}
    python_version: 3.11.7
mlflow_version: 3.17.0
model_uuid: 00000000000000000000000000000000
"""


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "this code has run")


@pytest.fixture
def planted(tmp_path):
    return tmp_path / "planted"


@pytest.fixture
def model(tmp_path, planted):
    """Return a function that logs somebody's pyfunc model, with or without an encoder in it, and gives its URI."""
    workspace = open_workspace(str(tmp_path / "workspace"), create=True)
    workspace.update_state()
    tracking = open_tracking(workspace, None, None)

    def log(*, with_encoder):
        folder = tmp_path / "model"
        code = folder / "code" / "firnline_encoders"
        code.mkdir(parents=True)
        code.joinpath("__init__.py").write_text(f"open({str(planted)!r}, 'w').write('this code has run')\n")
        (folder / "MLmodel").write_text(MLMODEL)
        (folder / "python_model.pkl").write_bytes(pickle.dumps(Planted(planted)))
        if with_encoder:
            config = NetworkConfig(kind="spectrogram", num_samples=400, rate_hz=40.0, lead_samples=100, width=8, dim=6)
            torch.manual_seed(0)
            (folder / "artifacts").mkdir()
            encoder = Encoder(config, build_network(config))
            (folder / "artifacts" / "encoder.safetensors").write_bytes(encoder.to_bytes())
        client = tracking.client()
        run_id = client.create_run(tracking.experiment_id()).info.run_id
        client.log_artifacts(run_id, str(folder), "encoder")
        return workspace, tracking, f"runs:/{run_id}/encoder"

    return log


def test_the_code_of_a_foreign_model_with_an_encoder_is_never_run(model, planted):
    workspace, tracking, uri = model(with_encoder=True)
    config = configuration.resolve({"label": {"model": uri}})
    assert load_encoder(workspace.store, config, tracking).encoder.dim == 6
    assert not planted.exists()


def test_a_foreign_model_without_an_encoder_is_refused_by_name_and_never_run(model, planted):
    workspace, tracking, uri = model(with_encoder=False)
    config = configuration.resolve({"label": {"model": uri}})
    with pytest.raises(InputError, match=rf"label\.model {uri} holds no encoder"):
        load_encoder(workspace.store, config, tracking)
    assert not planted.exists()
    # The trap is a real one: what MLflow offers for loading a model would have run it.
    with as_default(tracking) as mlflow, pytest.raises(Exception):  # noqa: B017, PT011 - whatever MLflow makes of it
        mlflow.pyfunc.load_model(uri).predict([0])
    assert planted.exists()


def test_no_module_unpickles_or_loads_a_model_through_mlflow():
    # What a job itself sends to its own workers through Ray, and through a pipe to a process that decodes for it.
    own_processes = {("detect/stage_run.py", "pickle"), ("archive/crashes.py", "pickle")}
    banned = {"load_model", "unpickle", "Unpickler"}
    for path in [*(ROOT / "pipelines").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
            assert name not in banned, path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in ("load", "loads"):
                room_and_name = path.relative_to(ROOT / path.relative_to(ROOT).parts[0]).as_posix()
                if (room_and_name, node.value.id) not in own_processes:
                    assert node.value.id not in ("torch", "joblib", "pickle", "cloudpickle", "marshal"), path
