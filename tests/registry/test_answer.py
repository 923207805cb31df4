"""What the server refuses, and that no stack trace leaves it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_workspace import CHANNELS, StandIn
from mlflow.exceptions import MlflowException

from ikddit.errors import InputError
from ikddit.registry.answer import MAX_WAFERS, answer, check_request
from ikddit.registry.door import refusal

PIXELS = 64 * 64


def frame(rows: int = 1, **columns: Any) -> pd.DataFrame:
    """Columns are given by the first wafer's value; the others have the same."""
    made = {"barcode": [f"W{i}" for i in range(rows)]}
    return pd.DataFrame(made | {name: [value] * rows for name, value in columns.items()})


@pytest.mark.parametrize(
    ("columns", "params"),
    [
        ({}, {}),
        ({"scanner_id": "NEVER-SEEN", "log_lines": ["text"]}, {"n": 256, "steps": 2}),
        ({"prev_map": [0.5] * 2 * PIXELS, "prev_valid": [1] * PIXELS, "log_features": [1.0, 2.0]}, {}),
        ({"prev_map": [None] * 2 * PIXELS, "log_features": [float("nan"), None]}, {"limit_nm": 0.5}),
        ({"prev_map": [], "prev_valid": [], "log_features": None}, {}),
    ],
)
def test_what_is_missing_or_unseen_is_allowed(columns: Any, params: Any) -> None:
    check_request(frame(2, **columns), len(CHANNELS), params)


@pytest.mark.parametrize(
    ("request_", "params", "message"),
    [
        (frame(0), {}, "wafers: 0; send 1 to 100"),
        (frame(1), {"n": None}, "n: null; send a number, or leave it out"),
        (frame(MAX_WAFERS + 1), {}, "wafers: 101; send 1 to 100"),
        (frame(), {"n": 0}, "n: 0; use 1 to 256"),
        (frame(), {"n": 257}, "n: 257"),
        (frame(), {"steps": 1}, "steps: 1; use 2"),
        (frame(), {"steps": 1001}, "steps: 1001"),
        (frame(100), {"n": 100, "steps": 100}, "wafers x n x steps: 100 x 100 x 100 exceed"),
        (frame(), {"limit_nm": 0.0}, "limit_nm: 0"),
        (frame(), {"limit_nm": float("nan")}, "limit_nm: nan"),
        (frame().assign(barcode=[" "]), {}, r"wafer 0 \( \): barcode"),
        (frame().assign(barcode=[None]), {}, "barcode: is not a text"),
        (frame(prev_map=[1.0]), {}, r"wafer 0 \(W0\): prev_map: 1 values, expected 8192"),
        (frame(prev_map=[np.inf] * 2 * PIXELS), {}, "prev_map: holds infinity"),
        (frame(prev_map=[-5e4] * 2 * PIXELS), {}, "prev_map: up to 50000, more than 1000 nm"),
        (frame(prev_valid=[2] * PIXELS), {}, "prev_valid: holds other values than 0 and 1"),
        (frame(log_features=["a", "b"]), {}, "log_features: not a flat list of numbers"),
        (frame(log_features=[1.0] * 3), {}, "log_features: 3 values, expected 2"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_wafer_and_field(request_, params, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_request(request_, len(CHANNELS), params)


class Failing(StandIn):
    def predict_frame(self, frame: pd.DataFrame, **params: Any) -> pd.DataFrame:
        raise RuntimeError("secret of line 17")


def test_every_failure_leaves_as_a_status_without_its_trace() -> None:
    with ThreadPoolExecutor(1) as worker:
        with pytest.raises(MlflowException, match="barcode") as bad:
            answer(StandIn(1.0), worker, frame().assign(barcode=[""]), {})
        with pytest.raises(MlflowException, match="the forecast failed; the server's log") as broken:
            answer(Failing(1.0), worker, frame(), {})
    assert (bad.value.get_http_status_code(), broken.value.get_http_status_code()) == (400, 500)
    for error in (bad.value, broken.value):
        assert "stack_trace" not in error.serialize_as_json()
        assert "secret" not in error.serialize_as_json()


def test_requests_are_computed_one_at_a_time_and_a_long_wait_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "1")
    held, release = threading.Event(), threading.Event()

    class Slow(StandIn):
        def predict_frame(self, frame: pd.DataFrame, **params: Any) -> pd.DataFrame:
            held.set()
            release.wait(30)
            return frame

    with ThreadPoolExecutor(1) as worker, ThreadPoolExecutor(1) as first:
        slow = first.submit(answer, Slow(1.0), worker, frame(), {})
        assert held.wait(30)
        with pytest.raises(MlflowException, match=r"no turn within 0\.5 s") as busy:
            answer(Slow(1.0), worker, frame(), {})
        release.set()
        assert len(slow.result(30)) == 1  # what had begun goes on
    assert busy.value.get_http_status_code() == 503


@pytest.mark.parametrize(
    ("content_type", "body", "status", "word"),
    [
        ("application/json; charset=utf-8", b'{"dataframe_records": [{"barcode": "W"}]}', None, ""),
        ("application/json", b"{no json", None, ""),
        ("application/json", b"[1]", None, ""),
        ("application/json", b'{"dataframe_records": [{"barcode": NaN}]}', None, ""),
        ("application/json", b'{"dataframe_records": [{"barcode": "W"}, {"colour": NaN}]}', 400, "colour"),
        ("application/json", b'{"dataframe_split": {"columns": ["barcod"], "data": []}}', 400, "barcod"),
        ("application/json", b'{"inputs": {"barcod": "W"}}', 400, "barcod"),
        ("application/json", b'{"inputs": ' + b"9" * 5000 + b"}", 400, "digits"),
        ("application/json", b"[" * 100_000, 400, "recursion"),
        ("application/json", b"[" * 1000 + b"]" * 1000, 400, "nested"),
        ("application/json", b'{"inputs": "\xff"}', 400, "UTF-8"),
        ("application/json", b'{"inputs": {}, "params": {"sample": 3}}', 400, "sample"),
        ("text/csv", b"barcode\nW", 415, "text/csv"),
        ("", b"{}", 415, "missing"),
    ],
)
def test_the_door_lets_json_with_known_fields_in(
    content_type: str, body: bytes, status: int | None, word: str
) -> None:
    refused = refusal(content_type, body, {"barcode", "prev_map"}, {"n"})
    assert (refused and refused[0]) == status
    assert refused is None or word in refused[1]
