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
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

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


class Door:
    """ASGI middleware: reads what comes to `/invocations`, as far as it may be long; refuses it or hands it on."""

    def __init__(self, app: "ASGIApp", columns: set[str], params: set[str]) -> None:
        self.app, self.columns, self.params = app, columns, params

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Hand a request on with its body, or answer it here."""
        if scope["type"] != "http" or scope["path"] != "/invocations" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            body = await read_body(request)
        except ClientDisconnect:
            return
        if body is None:
            refused: tuple[int, str] | None = (413, f"more than {LARGEST_BODY} bytes; send fewer wafers")
        else:
            refused = refusal(request.headers.get("content-type", ""), body, self.columns, self.params)
        if refused is not None:
            status, message = refused
            # With the connection left open the server would take the rest of the body, to throw it away.
            headers = {"connection": "close"} if body is None else {}
            answer = JSONResponse({"error_code": "BAD_REQUEST", "message": message}, status, headers)
            await answer(scope, receive, send)
            return
        whole: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def read_again() -> "Message":
            return next(whole, None) or await receive()

        await self.app(scope, read_again, send)


async def read_body(request: Request) -> bytes | None:
    """The whole body, None if it is longer than `LARGEST_BODY`; then it is read no further than that.

    A body sent in chunks need not say how long it is, nor end.
    """
    if int(request.headers.get("content-length", 0)) > LARGEST_BODY:
        return None
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST_BODY:
            return None
        parts.append(part)
    return b"".join(parts)


def make_app(model_uri: str) -> "FastAPI":
    """The scoring server of a registered model, with the door before `/invocations`."""
    model = load_model(model_uri)
    signature = model.metadata.signature
    columns = set(signature.inputs.input_names())
    params = {param.name for param in signature.params.params}
    app: FastAPI = scoring_server.init(model)
    app.add_middleware(Door, columns=columns, params=params)
    return app


if __name__ == "__main__":
    import uvicorn

    uri, host, port = sys.argv[1:]
    uvicorn.run(make_app(uri), host=host, port=int(port), log_level="warning")
