"""A new API needs its folder and one line of registration: an API that only exists here gets everything else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
import trio
from quart import Blueprint, Response, request
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.apis.kit import starting
from crucible_trio.apis.kit.context import ApiContext
from crucible_trio.apis.kit.errors import ErrorAnswer, ErrorRule
from crucible_trio.apis.kit.parsing import idempotency_key
from crucible_trio.apis.kit.registration import ApiRegistry
from crucible_trio.apis.native.errors import NATIVE_ERRORS
from crucible_trio.apis.native.routes import NativeApi
from crucible_trio.apis.openai.models.routes import ModelsApi
from crucible_trio.errors import CrucibleError, InvalidRequestError
from crucible_trio.records import OutputDelta, decode_frame
from crucible_trio.request import Request as EngineRequest
from crucible_trio.web import app as app_module


class LettersDialect:
    """One letter for each record of the answer, and a word for everything else that a wire may have."""

    resume_offset = 0

    def __init__(self, busy: bytes | None) -> None:
        self._busy = busy

    def opening(self) -> bytes:
        return b"opening "

    def feed(self, frames: Sequence[bytes]) -> bytes:
        records = map(decode_frame, frames)
        return b"".join(record.delta.encode() for record in records if isinstance(record, OutputDelta))

    def keep_alive(self) -> bytes:
        return b" ping "

    def draining(self) -> bytes:
        return b" draining "

    def busy(self) -> bytes | None:
        return self._busy


class LettersErrors:
    rules: ClassVar[Mapping[type[CrucibleError], ErrorRule]] = {InvalidRequestError: ErrorRule(418, "teapot")}

    def body(self, answer: ErrorAnswer) -> object:
        return [answer.code, answer.message]

    def headers(self, answer: ErrorAnswer) -> Mapping[str, str]:
        return {"X-Letters": str(answer.status)}


class LettersApi:
    name: ClassVar[str] = "letters"
    error_shape: ClassVar[LettersErrors] = LettersErrors()
    path_prefixes: ClassVar[tuple[str, ...]] = ("/letters",)
    open_endpoints: ClassVar[frozenset[str]] = frozenset({"cancel"})
    busy: ClassVar[bytes | None] = b"busy"

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._pipeline = context.pipeline
        self._access = context.access

    def add_to(self, blueprint: Blueprint) -> None:
        # The native API has endpoints of these names, too.
        blueprint.add_url_rule("/letters", view_func=self.start, methods=["POST"])
        blueprint.add_url_rule("/letters/open", endpoint="cancel", view_func=self.open, methods=["GET"])

    async def start(self) -> Response:
        if "bad" in request.args:
            message = "no"
            raise InvalidRequestError(message)
        started = await starting.start_or_join(
            self._pipeline,
            EngineRequest("Why?"),
            owner=self._access.owner(request),
            key=idempotency_key(request.headers.get("Idempotency-Key")),
        )
        response = starting.event_stream(self._context, started.stream, LettersDialect(self.busy))
        return starting.locate_stream(response, started)

    async def open(self) -> Response:
        return Response("open")


@pytest.fixture
def open_letters(monkeypatch: pytest.MonkeyPatch, open_api: Callable) -> Callable:
    @asynccontextmanager
    async def open_letters(*steps: object, **settings: object) -> AsyncIterator[object]:
        apis = ApiRegistry((NativeApi, LettersApi, ModelsApi), default_shape=NATIVE_ERRORS)
        monkeypatch.setattr(app_module, "APIS", apis)
        async with open_api(*steps, **settings) as api:
            yield api

    return open_letters


async def test_its_wire_is_the_dialects(open_letters: Callable, autojump_clock: MockClock) -> None:
    async with open_letters("a", 11, "b") as api:
        answer = await api.post("/letters")
        assert answer.body == b"opening a ping b"
        assert answer.header("location") == f"/v1/streams/{answer.header('crucible-stream')}"
        assert (await api.get(answer.header("location"))).json["output"] == "ab"


async def test_its_client_is_told_of_a_shutdown_once(open_letters: Callable, autojump_clock: MockClock) -> None:
    gate = trio.Event()
    async with open_letters("a", gate, "b") as api, trio.open_nursery() as nursery:
        async with api.open("POST", "/letters") as exchange:
            await exchange.until(lambda exchange: exchange.body.endswith(b"a"))
            nursery.start_soon(api.pipeline.drain)
            await wait_all_tasks_blocked()
            gate.set()
            await exchange.until(lambda exchange: exchange.ended)
        assert exchange.body == b"opening a draining b"


@pytest.mark.parametrize(("busy", "body"), [(b"busy", b"opening busy"), (None, None)])
async def test_a_reader_too_many_is_told_on_its_wire_or_by_its_error(
    busy: bytes | None,
    body: bytes | None,
    open_letters: Callable,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    monkeypatch.setattr(LettersApi, "busy", busy)
    gate = trio.Event()
    async with (
        open_letters("a", gate, max_readers_per_stream=1) as api,
        api.open("POST", "/letters", Idempotency_Key="k") as first,
    ):
        await first.until(lambda exchange: exchange.body.endswith(b"a"))
        second = await api.post("/letters", Idempotency_Key="k")
        if body is not None:
            assert (second.status, second.body, second.header("crucible-replayed")) == (200, body, "true")
        else:
            assert (second.status, second.header("retry-after")) == (429, "5")
            assert json.loads(second.body)[0] == "too_many_readers"
        gate.set()
        await first.until(lambda exchange: exchange.ended)


async def test_its_errors_have_its_shape_and_are_counted(open_letters: Callable, autojump_clock: MockClock) -> None:
    async with open_letters("a", keys={"alice": "k"}) as api:
        for target, status, error in (
            ("/letters?bad", 418, ["teapot", "no"]),
            ("/letters", 401, ["unauthorized", "a valid key is needed: Authorization: Bearer ..."]),
            ("/letters/x", 404, ["not_found", "there is no such path"]),
        ):
            answer = await api.post(target)
            assert (answer.status, answer.json) == (status, error)
            assert answer.header("x-letters") == str(status)
        assert api.number("requests_refused_total", code="teapot") == 1
        assert api.number("requests_refused_total", code="unauthorized") == 1


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/letters", "letters"),
        ("/letters/x/y", "letters"),
        ("/letterspress", "native"),
        ("/v1/models/", "openai"),
        ("/v1/models", "openai"),
        ("/v1/x", "openai"),
        ("/v1/streams/x/y/z", "native"),
        ("/v1", "native"),
        ("/", "native"),
    ],
)
async def test_unknown_paths_belong_to_the_api_with_their_prefix(
    path: str, shape: str, open_letters: Callable, autojump_clock: MockClock
) -> None:
    async with open_letters("a") as api:
        answer = await api.ask("PUT", path)
        assert answer.status in {404, 405}
        assert answer.has_header("x-letters") == (shape == "letters")
        if shape != "letters":
            assert set(answer.json["error"]) == (
                {"code", "message"} if shape == "native" else {"code", "message", "type", "param"}
            )


async def test_only_its_own_open_endpoints_are_open(open_letters: Callable, autojump_clock: MockClock) -> None:
    async with open_letters("a") as api:
        stream = await api.start()
        assert (await api.get("/letters/open", Host="evil.example")).status == 200
        for target in ("/letters", f"/v1/streams/{stream}/cancel"):  # `cancel` is open, but only the one of letters
            assert (await api.post(target, Host="evil.example")).status == 403
