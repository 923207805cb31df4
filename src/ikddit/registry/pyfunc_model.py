"""The pyfunc as code (no pickle): MLflow runs this file when it loads a version, here or in a server."""

from concurrent.futures import ThreadPoolExecutor
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
        # MLflow's server calls `predict` from many threads, and torch would start a team of workers for each.
        self.worker = ThreadPoolExecutor(1, "forecast")

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Forecast the overlay of each row (one wafer per row).

        Args:
            context: unused; the model was loaded before.
            model_input: rows with the columns of the signature.
            params: `n` samples, `steps` of the sampler, `seed`, `limit_nm` of the out-of-spec probability.

        Raises:
            MlflowException: with the status of the answer; see `ikddit.registry.answer`.
        """
        from ikddit.registry.answer import answer

        return answer(self.generator, self.worker, model_input, params or {})


mlflow.models.set_model(OverlayModel())
