"""MLflow's scoring server behind a door: JSON only, no field that nobody knows. Run as a file by `ikddit serve`.

MLflow ignores fields that are not in the signature, so that a misspelt `prev_map` would be a missing one, and its
CSV and Parquet doors answer what they cannot read with a stack trace. This file imports nothing of ikddit: the
version to be served brings its own.
"""

import json
import sys
from typing import TYPE_CHECKING, Any

import orjson
from mlflow.pyfunc import load_model, scoring_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi import FastAPI, Request, Response

LARGEST_BODY = 64 * 2**20
"""Bytes: three times what 100 wafers need."""
DEEPEST = 16
"""Levels of lists and objects in a request; the deepest that means something has five."""


def refusal(content_type: str, body: bytes, columns: set[str], params: set[str]) -> tuple[int, str] | None:
    """Status and message for a request that does not get in; None lets it pass.

    What is no JSON, or JSON of another shape, passes: MLflow says what is wrong with it.

    >>> refusal("application/json", b'{"dataframe_records": [{"barcod": "W1"}]}', {"barcode"}, {"n"})
    (400, "barcod: unknown field; use ['barcode']")
    """
    if content_type.partition(";")[0].strip() != "application/json":
        return 415, f"Content-Type: {content_type or 'missing'}; send application/json"
    if len(body) > LARGEST_BODY:
        return 413, f"{len(body)} bytes, at most {LARGEST_BODY}; send fewer wafers at once"
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:  # NaN among numbers is not strict JSON, but MLflow reads it
        try:
            request = json.loads(body)
        except json.JSONDecodeError:
            return None
        except (ValueError, RecursionError) as error:  # MLflow would answer these with a bare 500
            return 400, f"body: {error}; send JSON in UTF-8, as docs/serving.md shows it"
    if _nested_beyond(request, DEEPEST):
        return 400, f"body: nested more than {DEEPEST} levels deep; send JSON as docs/serving.md shows it"
    if not isinstance(request, dict):
        return None
    for known, given in ((columns, sorted(_fields(request))), (params, sorted(_keys(request.get("params"))))):
        for name in given:
            if name not in known:
                return 400, f"{name}: unknown field; use {sorted(known)}"
    return None


def _nested_beyond(value: Any, levels: int) -> bool:
    """Whether there are lists or objects below so many levels of them; orjson takes more than MLflow's parser."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not {dict, list} & set(map(type, inside)):  # nearly all: lists of numbers
        return False
    return levels == 0 or any(_nested_beyond(v, levels - 1) for v in inside if type(v) in (dict, list))


def _fields(request: dict[str, Any]) -> set[str]:
    records = request.get("dataframe_records") or request.get("instances")
    found = {key for record in records for key in _keys(record)} if isinstance(records, list) else set()
    split = request.get("dataframe_split")
    if isinstance(split, dict) and isinstance(split.get("columns"), list):
        found |= {str(name) for name in split["columns"]}
    return found | _keys(request.get("inputs"))


def _keys(value: Any) -> set[str]:
    return set(value) if isinstance(value, dict) else set()


def make_app(model_uri: str) -> "FastAPI":
    """The scoring server of a registered model, with the door before `/invocations`."""
    from fastapi.responses import JSONResponse

    model = load_model(model_uri)
    signature = model.metadata.signature
    columns = set(signature.inputs.input_names())
    params = {param.name for param in signature.params.params}
    app: FastAPI = scoring_server.init(model)

    @app.middleware("http")
    async def door(request: "Request", call_next: "Callable[[Request], Awaitable[Response]]") -> "Response":
        if request.url.path == "/invocations" and request.method == "POST":
            content_type = request.headers.get("content-type", "")
            refused = refusal(content_type, await request.body(), columns, params)
            if refused is not None:
                status, message = refused
                return JSONResponse({"error_code": "BAD_REQUEST", "message": message}, status)
        return await call_next(request)

    return app


if __name__ == "__main__":
    import uvicorn

    uri, host, port = sys.argv[1:]
    uvicorn.run(make_app(uri), host=host, port=int(port), log_level="warning")
