"""The code that MLflow stores with a registered encoder and runs to load it; nothing in the model is pickled.

`pipelines.train.stage` stores the package `pipelines/encoders` with it under the name `firnline_encoders`, so that the
model loads where Firnline is not installed and never mixes two versions of it.
"""

from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel  # type: ignore[attr-defined]


class EncoderModel(PythonModel):
    """Windows (n, 3, sample) float32, rows E, N, Z, absent samples NaN, to embeddings (n, dim) float32."""

    def load_context(self, context: Any) -> None:
        """Read the encoder from its safetensors file."""
        from firnline_encoders import load  # type: ignore[import-not-found]

        self.encoder = load(context.artifacts["encoder"])

    # MLflow makes no schema of an array's type hint, as it does of any other, and demands hints if there are none.
    def predict(self, context, model_input: np.ndarray, params=None):  # type: ignore[no-untyped-def]
        """Return the windows' embeddings."""
        return self.encoder.embed(np.asarray(model_input, dtype=np.float32))


set_model(EncoderModel())
