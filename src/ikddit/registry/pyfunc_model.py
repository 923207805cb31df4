"""The pyfunc as code (no pickle): MLflow runs this file when it loads a version, here or in a server."""

from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class OverlayModel(PythonModel):  # type: ignore[misc, unused-ignore]
    """`ikddit.Generator` behind MLflow's interface; its columns are in `ikddit.registry.package`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model folder that was logged with the version."""
        from ikddit.generator import Generator

        self.generator = Generator.load(context.artifacts["model"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Forecast the overlay of each row (one wafer per row).

        Args:
            context: unused; the model was loaded before.
            model_input: rows with the columns of the signature.
            params: `n` samples, `steps` of the sampler, `seed`.
        """
        return self.generator.predict_frame(model_input, **(params or {}))


mlflow.models.set_model(OverlayModel())
