"""MLflow's model registry: encoders logged without pickled code, registered, and moved by alias."""

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.encoders import Encoder
from pipelines.runtime.errors import InputError
from pipelines.runtime.redaction import scrub, without_secrets
from pipelines.tracking import mlflow_private
from pipelines.tracking.runs import StageRun, fluent_run
from pipelines.tracking.server import Tracking, as_default, missing_database

CHAMPION = "champion"
CANDIDATE = "candidate"
_HERE = Path(__file__).resolve().parent


def log_encoder(run: StageRun, encoder: Encoder, *, example: NDArray[np.float32]) -> str:
    """Log an encoder to a run as a pyfunc model and return the logged model's URI.

    The model is the code of `pipelines/tracking/encoder_model.py`, a copy of the package that builds the network, and
    the weights as safetensors; `mlflow.pyfunc.load_model(uri).predict(windows)` gives embeddings.

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
        shutil.copytree(_HERE.parent / "encoders", code, ignore=shutil.ignore_patterns("__pycache__"))
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
    """Return the version that a model's URI (an alias, `latest`, a version) points to now, as a URI, and its run.

    Args:
        tracking: where it is registered.
        uri: of a model that exists; one without a registered version is returned as it is, with its run if it has one.
    """
    if uri.startswith("runs:/"):
        return uri, uri.split("/")[1]
    if not uri.startswith("models:/"):
        return uri, ""
    client = tracking.client()
    name, *version = mlflow_private.model_name_and_version(client, uri)
    if not version:
        return uri, str(client.get_logged_model(name).source_run_id or "")
    return f"models:/{name}/{version[0]}", str(client.get_model_version(name, version[0]).run_id or "")


def register_model(run: StageRun, model_uri: str, model_name: str, *, tags: Mapping[str, str]) -> str:
    """Register a logged model under a name and return its version."""
    from mlflow.exceptions import MlflowException

    client = run.tracking.client()
    # It may exist.
    with contextlib.suppress(MlflowException):
        client.create_registered_model(model_name)
    with as_default(run.tracking):
        version = client.create_model_version(
            model_name,
            source=model_uri,
            run_id=run.run_id,
            tags=dict(tags),
            # The server requires the logged model's id as well as its address models:/<id>.
            model_id=model_uri.removeprefix("models:/"),
        )
    return str(version.version)


def alias_version(tracking: Tracking, model_name: str, alias: str) -> Any | None:
    """Return the model version that an alias points to; None if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return tracking.client().get_model_version_by_alias(model_name, alias)
    except MlflowException:
        return None


def is_registered(tracking: Tracking, uri: str) -> bool:
    """Whether MLflow has the registered model's version that a URI such as `models:/firnline-encoder/3` names."""
    from mlflow.exceptions import MlflowException

    if missing_database(tracking) is not None:
        return False
    name, _, version = uri.removeprefix("models:/").rpartition("/")
    try:
        tracking.client().get_model_version(name, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def set_alias(tracking: Tracking, model_name: str, alias: str, version: str) -> None:
    """Point an alias at a version."""
    tracking.client().set_registered_model_alias(model_name, alias, version)


def download_artifact(tracking: Tracking, uri: str, folder: Path) -> Path:
    """Download a `models:/` or `runs:/` artifact into a folder and return its local path.

    Raises:
        InputError: there is no such model or artifact.
    """
    from mlflow.exceptions import MlflowException

    database = missing_database(tracking)
    if database is not None and uri.startswith(("models:/", "runs:/")):
        raise InputError(f"the model {uri} cannot be read from MLflow: there is no {database}")
    try:
        # The arguments of download_artifacts do not reach the lookup of a model's version.
        with as_default(tracking) as mlflow:
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        reason = scrub(" ".join(str(error).split()), [tracking.uri])
        raise InputError(f"the model {without_secrets(uri)} cannot be read from MLflow: {reason}") from None
