"""The door of a registered version: how much of a request it reads."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ikddit.params import Params
from ikddit.registry.door import LARGEST_BODY, make_app
from ikddit.registry.register import register
from ikddit.registry.store import Store, open_store

CHUNK = b" " * 2**20
JSON = {"content-type": "application/json"}


@pytest.fixture
def app(stand_in: type, workspace: Path, store: Store) -> Any:
    register(Params(), workspace, store)
    open_store(store, "ikddit")
    return make_app("models:/ikddit/1")


def post(app: Any, **request: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door") as client:
            return await client.post("/invocations", **request)

    return asyncio.run(ask())


def test_endless_chunked_body_is_read_no_further_than_its_limit(app: Any) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while read < 4 * LARGEST_BODY:
            read += len(CHUNK)
            yield CHUNK

    answer = post(app, content=endless(), headers=JSON)
    assert (answer.status_code, answer.json()["error_code"]) == (413, "BAD_REQUEST")
    assert answer.headers["connection"] == "close"
    assert read == LARGEST_BODY + len(CHUNK)


def test_body_that_says_that_it_is_too_long_is_not_read_at_all(app: Any) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("read")
        yield CHUNK

    answer = post(app, content=unread(), headers=JSON | {"content-length": str(LARGEST_BODY + 1)})
    assert answer.status_code == 413


def test_body_in_chunks_within_the_limit_arrives_whole(app: Any) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b'{"dataframe_records": [{"barcode": "W1", "prev_map": ['
        yield b",".join([b"0.5"] * 8192)
        yield b"]}]}"

    answer = post(app, content=parts(), headers=JSON)
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["barcode"] == "W1"
