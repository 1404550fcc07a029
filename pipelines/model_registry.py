"""Logs an encoder to MLflow so that it loads anywhere by its URI, without executing pickled code; says which one is."""

import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.encoders import Encoder
from pipelines.tracking import StageRun, Tracking, fluent_run

_HERE = Path(__file__).resolve().parent


def log_encoder(run: StageRun, encoder: Encoder, *, example: NDArray[np.float32]) -> str:
    """Log an encoder to a run as a pyfunc model and return the logged model's URI.

    The model is the code of `pipelines/encoder_model.py`, a copy of the package that builds the network, and the
    weights as safetensors; `mlflow.pyfunc.load_model(uri).predict(windows)` gives embeddings.

    Args:
        run: the run that trained it.
        encoder: what is logged.
        example: (n, 3, sample) float32 windows without absent samples, kept as the input example.
    """
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    windows = TensorSpec(np.dtype(np.float32), (-1, 3, encoder.num_samples))
    embeddings = TensorSpec(np.dtype(np.float32), (-1, encoder.dim))
    with tempfile.TemporaryDirectory(prefix="firnline-") as folder, fluent_run(run) as mlflow:
        weights = Path(folder) / "encoder.safetensors"
        weights.write_bytes(encoder.to_bytes())
        code = Path(folder) / "firnline_encoders"
        shutil.copytree(_HERE / "encoders", code, ignore=shutil.ignore_patterns("__pycache__"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            info = mlflow.pyfunc.log_model(
                name="encoder",
                python_model=str(_HERE / "encoder_model.py"),
                artifacts={"encoder": str(weights)},
                code_paths=[str(code)],
                signature=ModelSignature(Schema([windows]), Schema([embeddings])),
                input_example=example,
                pip_requirements=[
                    f"torch=={torch.__version__.partition('+')[0]}",
                    f"numpy=={np.__version__}",
                    "safetensors",
                ],
                metadata={"firnline.content_hash": encoder.content_hash},
            )
    return str(info.model_uri)


def model_version(tracking: Tracking, uri: str) -> tuple[str, str]:
    """Return the version that a model's URI (an alias, `latest`, a version) stands for now, as a URI, and its run.

    Args:
        tracking: where it is registered.
        uri: of a model that exists; one without a registered version is returned as it is, with its run if it has one.
    """
    if uri.startswith("runs:/"):
        return uri, uri.split("/")[1]
    if not uri.startswith("models:/"):
        return uri, ""
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    client = tracking.client()
    name, *version = get_model_name_and_version(client, uri)  # type: ignore[no-untyped-call]
    if not version:
        return uri, str(client.get_logged_model(name).source_run_id or "")
    return f"models:/{name}/{version[0]}", str(client.get_model_version(name, version[0]).run_id or "")
