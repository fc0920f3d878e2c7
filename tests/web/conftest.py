"""A driver that calls the application as a server calls it, in process and on virtual time.

Test modules cannot import one another, so everything here is reached through the fixture `open_api`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from math import inf
from pathlib import Path
from typing import TypeAlias, TypeVar

import pytest
import trio
from quart_trio import QuartTrio
from trio.testing import MockClock

from crucible_trio.apis.operations.prometheus import PipelineCollector
from crucible_trio.content import Reasoning
from crucible_trio.direct_writes import EXTENSION
from crucible_trio.engine import Capabilities, EngineInfo, Finish
from crucible_trio.output import Output
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.records import Usage
from crucible_trio.request import Request
from crucible_trio.settings import load_settings
from crucible_trio.web.app import create_app

T = TypeVar("T")
Headers: TypeAlias = Mapping[str, str] | Sequence[tuple[str, str]]
Json: TypeAlias = dict[str, object]
# A piece of a request's body, or a pause in seconds.
Chunk: TypeAlias = bytes | float

# Virtual seconds, longer than any test waits on purpose.
_NOTHING_CAN_HAPPEN_ANY_MORE = 1_000_000

# No virtual time passes in an endless loop, so a deadline cannot end it.
_MORE_STEPS_THAN_ANY_TEST_TAKES = 1_000_000
_MORE_THAN_ANY_BODY_HAS = 10_000

USAGE = Usage(3, 9, 4)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        is_ours = Path(__file__).parent in item.path.parents and isinstance(item, pytest.Function)
        if is_ours and inspect.iscoroutinefunction(item.obj):
            assert "autojump_clock" in item.fixturenames, f"{item.nodeid} must run on virtual time"
            item.obj = _fails_instead_of_hanging(item.obj)


def _fails_instead_of_hanging(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @wraps(test)
    async def guarded(**fixtures: object) -> None:
        await _in_bounds(test, **fixtures)

    return guarded


class _StepLimit(trio.abc.Instrument):
    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope
        self._left = _MORE_STEPS_THAN_ANY_TEST_TAKES

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


async def _in_bounds(function: Callable[..., Awaitable[T]], *args: object, **kwargs: object) -> T:
    with trio.fail_after(_NOTHING_CAN_HAPPEN_ANY_MORE) as scope:
        trio.lowlevel.add_instrument(_StepLimit(scope))
        return await function(*args, **kwargs)


class ScriptedEngine:
    """An engine that follows a script.

    Steps: a `str` is a piece of the answer and a `Reasoning` a piece of the trace. A number is a pause in seconds. The
    engine waits for an event, returns a `Finish` and raises an exception.

    Attributes:
        journal: A line for each thing that happened, in order. The driver writes to it too.
        requests: The requests of all calls.
        live: Number of calls that have not ended.
        written: Pieces whose call has returned.
    """

    def __init__(
        self,
        *steps: str | Reasoning | float | trio.Event | Finish | BaseException,
        models: tuple[str, ...] = ("scripted", "other"),
        sampling: Iterable[str] = (),
    ) -> None:
        self.info = EngineInfo(name="scripted", models=models, capabilities=Capabilities(sampling=frozenset(sampling)))
        self.steps = steps
        self.journal: list[str] = []
        self.requests: list[Request] = []
        self.live = 0
        self.written = 0

    async def generate(self, request: Request, output: Output) -> Finish:
        self.journal.append("engine called")
        self.requests.append(request)
        self.live += 1
        try:
            for step in self.steps:
                match step:
                    case str():
                        await output.delta(step)
                        self.written += 1
                    case Reasoning(text, segment):
                        await output.reasoning(text, segment)
                        self.written += 1
                    case int() | float():
                        await trio.sleep(step)
                    case trio.Event():
                        await step.wait()
                    case Finish():
                        return step
                    case _:
                        raise step
            return Finish(usage=USAGE)
        finally:
            self.live -= 1


@dataclass(kw_only=True)
class Exchange:
    """One request and its response so far.

    Attributes:
        status: None until the response has begun.
        headers: In the order sent, with names in lower case.
        messages: The body's messages as the server received them, without the empty last one.
        times: When each message arrived, in virtual seconds.
        ended: Whether the application has sent the last message of the body.
        cut_its_own_end: Whether the application cancelled itself while it sent that message.
        allowance: Number of messages of the body that the client still takes. 0 if it does not read.
        direct: Messages that were direct writes.
    """

    journal: list[str]
    status: int | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    ended: bool = False
    cut_its_own_end: bool = False
    allowance: float = inf
    direct: list[bytes] = field(default_factory=list)
    _is_sending: bool = False
    _held: bytes = b""
    _gone: trio.Event = field(default_factory=trio.Event)
    _news: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    _gate: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    @property
    def body(self) -> bytes:
        return b"".join(self.messages)

    @property
    def json(self) -> Json:
        return json.loads(self.body)

    @property
    def events(self) -> list[Json]:
        """The complete events of the body. Checks the shape of every line."""
        lines = self.body.decode().split("\n")
        assert lines.pop(0) == "retry: 1000"
        events, data = [], None
        for line in lines[:-1]:
            name, _, value = line.partition(": ")
            assert name in {"data", "id", ":", ""}, line
            if name == "data":
                assert data is None
                data = json.loads(value)
            elif name == "id":
                assert value.endswith(f".{data['seq']}")
            elif not name:
                assert data is not None
                events.append(data)
                data = None
            else:
                assert data is None, "a heartbeat inside an event"
        return events

    @property
    def types(self) -> list[str]:
        return [str(event["type"]) for event in self.events]

    @property
    def error(self) -> Json:
        """The error of a refused request. Checks its shape."""
        body = self.json
        assert set(body) == {"error"}
        error = body["error"]
        assert {"code", "message"} <= set(error) <= {"code", "message", "param"}
        assert all(isinstance(value, str) for value in error.values())
        assert self.header("content-type") == "application/json"
        return error

    @property
    def stream_id(self) -> str:
        """The id of the stream that the response names."""
        if self.header("content-type") == "application/json":
            return str(self.json["id"])
        return self.header("crucible-stream")

    def header(self, name: str) -> str:
        [value] = [value for other, value in self.headers if other == name]
        return value

    def has_header(self, name: str) -> bool:
        return any(other == name for other, _ in self.headers)

    def disconnect(self) -> None:
        """Disconnect the client."""
        self._gone.set()
        self.allow(inf)

    def allow(self, messages: float) -> None:
        """Let the client take this many more messages."""
        self.allowance += messages
        self._gate.unpark_all()

    async def until(self, condition: Callable[[Exchange], bool]) -> None:
        """Wait until the response fulfils a condition."""
        while not condition(self):
            assert not self.ended, self.body
            await self._news.park()

    async def until_event(self, count: int) -> None:
        """Wait until this many events have arrived."""
        await self.until(lambda self: self.body.count(b"\n\n") >= count)

    # The `DirectWriter` of a server that offers direct writes

    @property
    def ready(self) -> bool:
        return bool(self.messages) and not (self._is_sending or self._held or self.ended or self._gone.is_set())

    def write_nowait(self, data: bytes) -> bool:
        assert self.ready
        assert data
        if self.allowance < 1:  # take half of it, as a kernel can
            self._held = data[len(data) // 2 :]
            self._take(data[: len(data) // 2])
            return False
        self.allowance -= 1
        self.direct.append(data)
        self._take(data)
        return True

    def write_last_nowait(self, data: bytes) -> bool:
        return self.write_nowait(data)

    async def flush(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": True})

    def _take(self, data: bytes) -> None:
        self.messages.append(data)
        self.times.append(trio.current_time())
        self.journal.append(f"sent {data.decode(errors='replace')}")
        self._news.unpark_all()

    async def _send(self, message: Mapping[str, object]) -> None:
        assert not self._is_sending
        self._is_sending = True
        try:
            await self._send_one(message)
        finally:
            self._is_sending = False

    async def _send_one(self, message: Mapping[str, object]) -> None:
        if message["type"] == "http.response.start":
            assert self.status is None
            self.status = message["status"]
            self.headers = [(name.decode("ascii").lower(), value.decode()) for name, value in message["headers"]]
        else:
            assert self.status is not None
            assert not self.ended
            body = message["body"]
            if not message["more_body"]:
                assert body == b""
                self.ended = True
                self._news.unpark_all()
                # At the end of every response a server tells the application that the client is gone.
                self._gone.set()
                try:
                    for _ in range(3):
                        await trio.lowlevel.checkpoint()
                except trio.Cancelled:
                    self.cut_its_own_end = True
                    raise
            elif body or self._held:
                while self.allowance < 1:
                    await self._gate.park()
                self.allowance -= 1
                assert len(self.messages) < _MORE_THAN_ANY_BODY_HAS, "the body does not end"
                if not self._gone.is_set():
                    body, self._held = self._held + body, b""
                    self._take(body)
        self._news.unpark_all()
        await trio.lowlevel.checkpoint()


@dataclass(frozen=True)
class Api:
    """The application over a pipeline, called as a server calls it."""

    pipeline: Pipeline
    app: QuartTrio
    journal: list[str]

    @asynccontextmanager
    async def open(
        self,
        method: str,
        target: str,
        body: bytes | Sequence[Chunk] | Json = b"",
        *,
        allowance: float = inf,
        offers_direct_writes: bool = False,
        http_version: str = "1.1",
        **headers: str,
    ) -> AsyncIterator[Exchange]:
        """Send a request and yield its response while it arrives. Leaving the block disconnects the client.

        Args:
            method: The HTTP method.
            target: Path and query.
            body: Bytes, a sequence of pieces and pauses, or a dict to send as JSON.
            allowance: Number of messages of the body that the client takes before it stops reading.
            offers_direct_writes: Whether the server offers direct writes.
            http_version: The HTTP version that the server reports.
            headers: In the names `_` stands for `-`. By default JSON is declared and Host is localhost. An empty Host
                is left out.
        """
        exchange = Exchange(journal=self.journal, allowance=allowance)
        chunks: list[Chunk]
        if isinstance(body, dict):
            headers.setdefault("Content_Type", "application/json")
            chunks = [json.dumps(body).encode()]
        else:
            chunks = [body] if isinstance(body, bytes) else list(body)
        headers.setdefault("Host", "localhost")
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": http_version,
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(errors="surrogateescape"),
            "query_string": query.encode(errors="surrogateescape"),
            "root_path": "",
            "headers": [
                (name.replace("_", "-").lower().encode(), value.encode("latin-1"))
                for name, value in headers.items()
                if value or name != "Host"
            ],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
            "extensions": {EXTENSION: {"body": exchange}} if offers_direct_writes else {},
        }

        async def receive() -> Json:
            while chunks and not exchange._gone.is_set():
                chunk = chunks.pop(0)
                if isinstance(chunk, bytes):
                    await trio.lowlevel.checkpoint()
                    return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}
                with trio.move_on_after(chunk):
                    await exchange._gone.wait()
            await exchange._gone.wait()
            return {"type": "http.disconnect"}

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.app, scope, receive, exchange._send)
            yield exchange
            exchange.disconnect()

    async def ask(
        self, method: str, target: str, body: bytes | Sequence[Chunk] | Json = b"", **headers: str
    ) -> Exchange:
        """Send a request and read the whole response."""
        async with self.open(method, target, body, **headers) as exchange:
            await exchange.until(lambda exchange: exchange.ended)
        return exchange

    async def get(self, target: str, **headers: str) -> Exchange:
        return await self.ask("GET", target, **headers)

    async def post(self, target: str = "/v1/streams", body: bytes | Json = b"", **headers: str) -> Exchange:
        return await self.ask("POST", target, body, **headers)

    async def start(self, **fields: object) -> str:
        """Start a stream that does not wait for a reader.

        Returns:
            Its id.
        """
        answer = await self.post(body={"input": "Why?", **fields})
        assert answer.status == 201, answer.body
        return answer.stream_id

    def open_stream(
        self, body: Json | None = None, *, allowance: float = inf, **headers: str
    ) -> AbstractAsyncContextManager[Exchange]:
        """`open` for a stream over SSE."""
        headers.setdefault("Accept", "text/event-stream")
        return self.open("POST", "/v1/streams", body or {"input": "Why?"}, allowance=allowance, **headers)

    async def stream(self, body: Json | None = None, **headers: str) -> Exchange:
        """Start a stream over SSE and read it to its end."""
        headers.setdefault("Accept", "text/event-stream")
        return await self.post(body=body or {"input": "Why?"}, **headers)

    def number(self, name: str, **labels: str) -> float:
        """The value of one of the pipeline's metrics, or 0 if it was never counted."""
        samples = [sample for family in PipelineCollector(self.pipeline).collect() for sample in family.samples]
        return sum(
            sample.value
            for sample in samples
            if sample.name == f"crucible_{name}" and labels.items() <= sample.labels.items()
        )


@asynccontextmanager
async def _open_api(*steps: object, engine: object = None, **settings: object) -> AsyncIterator[Api]:
    engine = engine or ScriptedEngine(*steps)
    values = load_settings({}, **settings)
    async with open_pipeline(engine, values.pipeline) as pipeline:
        yield Api(pipeline, create_app(pipeline, values.apis), getattr(engine, "journal", []))


@pytest.fixture(scope="session")
def open_api() -> Callable[..., object]:
    """Open a pipeline and its application, with `engine` or a scripted engine. Other arguments are settings."""
    return _open_api


@pytest.fixture(scope="session")
def api_over() -> Callable[..., Api]:
    """Get a driver for an application that the test has created."""
    return lambda pipeline, app: Api(pipeline, app, [])


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedEngine]:
    """The class of engines that follow a script."""
    return ScriptedEngine


@pytest.fixture(scope="session")
def run_virtually() -> Callable[..., object]:
    """Run an async function in a new trio run on virtual time, for tests that need many runs."""

    def run_virtually(function: Callable[..., Awaitable[T]], *args: object) -> T:
        return trio.run(partial(_in_bounds, function, *args), clock=MockClock(autojump_threshold=0))

    return run_virtually
