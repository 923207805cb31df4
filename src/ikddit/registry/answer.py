"""What the server does with a request: checks it, computes one at a time, and never shows a stack trace.

MLflow's scoring server sends the stack trace of any exception to the caller, but only the message of an
`MlflowException`; so everything leaves here as one: 400 for the request, 503 when busy, 500 for the rest.
"""

import os
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any

import numpy as np

from ikddit.console import log
from ikddit.errors import InputError
from ikddit.mpom.schema import PIXELS

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.exceptions import MlflowException

    from ikddit.generator import Generator

MAX_WAFERS = 100
"""In one request; a folder of more goes through `ikddit generate`."""
MAX_SAMPLES = 256
MAX_STEPS = 1000
MAX_EVALUATIONS = 64_000
"""Wafers x samples x steps of one request: 100 wafers of 32 samples in 20 steps."""
MLFLOW_TIMEOUT_S = 60.0
"""MLflow's default of MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT."""
LARGEST_NM = 1000.0
"""A previous map beyond this is not in nm."""


def answer(
    generator: "Generator", worker: Executor, frame: "pd.DataFrame", params: dict[str, Any]
) -> "pd.DataFrame":
    """Answer a request on the worker's one thread, which also is the queue of those that wait.

    Args:
        generator: forecasts.
        worker: of one thread.
        frame: a wafer a row, columns as in the signature.
        params: `n`, `steps`, `seed`, `limit_nm`; those left out take the generator's defaults.

    Raises:
        MlflowException: BAD_REQUEST names wafer and field; TEMPORARILY_UNAVAILABLE; INTERNAL_ERROR, whose
            stack trace is in the server's log alone.
    """
    try:
        check_request(frame, len(generator.normaliser.log_names), params)
        return _in_turn(worker.submit(generator.predict_frame, frame, **params))
    except InputError as error:
        raise _as_status("BAD_REQUEST", str(error)) from None
    except BusyError as error:
        raise _as_status("TEMPORARILY_UNAVAILABLE", str(error)) from None
    except Exception:
        log.exception("a request failed")
        raise _as_status("INTERNAL_ERROR", "the forecast failed; the server's log says why") from None


class BusyError(Exception):
    """No turn came in time."""


def _in_turn(future: "Future[pd.DataFrame]") -> "pd.DataFrame":
    # MLflow gives up on a request after that time, but what has begun goes on: leave half for the forecast.
    wait_s = float(os.environ.get("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", MLFLOW_TIMEOUT_S)) / 2
    try:
        return future.result(wait_s)
    except TimeoutError:
        if future.cancel():  # it had not begun
            raise BusyError(f"no turn within {wait_s:g} s; try again later, with fewer wafers") from None
        return future.result()


def _as_status(code: str, message: str) -> "MlflowException":
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2

    return MlflowException(message, error_code=getattr(databricks_pb2, code))


def check_request(frame: "pd.DataFrame", channels: int, params: dict[str, Any]) -> None:
    """Refuse what cannot be meant, before anything is computed.

    Missing values stay allowed (an id or list left out, `null` or NaN among numbers): the model knows how to do
    without. Ids the model has not seen are allowed too, and count as unknown.

    Args:
        frame: a wafer a row.
        channels: numeric log channels of the model.
        params: as in `answer`.

    Raises:
        InputError: names the wafer and the field.
    """
    for name, value in params.items():
        if value is None:
            raise InputError("request", name, "null", "send a number, or leave it out")
    _check_size(len(frame), int(params.get("n", 1)), int(params.get("steps", 2)))
    limit = float(params.get("limit_nm", 8.0))
    if not 0 < limit < np.inf:
        raise InputError("request", "limit_nm", str(limit), "use a limit above 0 nm")
    sizes = {"log_features": channels, "prev_map": 2 * PIXELS, "prev_valid": PIXELS}
    for row, barcode in enumerate(frame["barcode"]):
        wafer = f"wafer {row} ({barcode})"
        if not isinstance(barcode, str) or not barcode.strip():
            raise InputError(wafer, "barcode", "is not a text", "give every wafer one, in dataframe_records")
        for name, size in sizes.items():
            if name in frame:
                _check_numbers(wafer, name, frame[name].iloc[row], size)


def _check_size(wafers: int, n: int, steps: int) -> None:
    if not 1 <= wafers <= MAX_WAFERS:
        raise InputError("request", "wafers", str(wafers), f"send 1 to {MAX_WAFERS} in one request")
    if not 1 <= n <= MAX_SAMPLES:
        raise InputError("request", "n", str(n), f"use 1 to {MAX_SAMPLES} samples")
    if not 2 <= steps <= MAX_STEPS:
        raise InputError("request", "steps", str(steps), f"use 2 to {MAX_STEPS}")
    if wafers * n * steps > MAX_EVALUATIONS:
        raise InputError(
            "request",
            "wafers x n x steps",
            f"{wafers} x {n} x {steps} exceed {MAX_EVALUATIONS}",
            "send fewer wafers at once",
        )


def _check_numbers(wafer: str, name: str, value: Any, size: int) -> None:
    if value is None or np.ndim(value) == 0 or len(value) == 0:  # missing
        return
    try:
        numbers = np.asarray([np.nan if v is None else v for v in value], np.float64)
    except (TypeError, ValueError):
        raise InputError(wafer, name, "not a flat list of numbers", f"send {size} numbers") from None
    if numbers.size != size:
        raise InputError(wafer, name, f"{numbers.size} values, expected {size}", "send a flat list")
    if np.isinf(numbers).any():
        raise InputError(wafer, name, "holds infinity", "send null where there is no value")
    if name == "prev_valid" and not np.isin(numbers, (0, 1)).all():
        raise InputError(wafer, name, "holds other values than 0 and 1", "1 where the map was measured")
    if name == "prev_map" and np.nanmax(np.abs(numbers), initial=0.0) > LARGEST_NM:
        found = f"up to {np.nanmax(np.abs(numbers)):g}"
        raise InputError(wafer, name, f"{found}, more than {LARGEST_NM:g} nm", "send nanometres")
