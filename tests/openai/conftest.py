"""Shared fixtures of the OpenAI API tests: the application in process on virtual time, and the SDK on real sockets.

Test modules cannot import one another, so they use fixtures.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar

import pytest
import trio

from crucible_trio import Pipeline, open_pipeline
from crucible_trio.apis.operations.prometheus import PipelineCollector
from crucible_trio.request import Request
from crucible_trio.server import Config, serve
from crucible_trio.settings import load_settings
from crucible_trio.testing import ScriptedEngine
from crucible_trio.web import create_app
from tests.sdks import REAL_SECONDS, async_runner, left_generators, sync_runner

T = TypeVar("T")
Json: TypeAlias = dict[str, Any]

# In virtual time, and longer than any test waits on purpose.
VIRTUAL_SECONDS = 20_000


class TwoModelEngine(ScriptedEngine):
    """A scripted engine with two models.

    Attributes:
        requests: The requests that it was called with.
    """

    def __init__(self, *steps: Any, models: Sequence[str] = ("scripted", "other"), **more: Any) -> None:
        super().__init__(*steps, models=models, **more)

    @property
    def requests(self) -> list[Request]:
        return [run.request for run in self.runs]


@dataclass
class OpenAIExchange:
    """One request and the response so far.

    Attributes:
        status: None until the response has begun.
        headers: By name in lower case. Each name occurs once.
        messages: The body's messages as the application sent them, without empty ones.
        times: When each message was sent, in virtual seconds.
        ended: Whether the application has marked the body as complete.
        broken: Whether the application raised after the status line. A server resets the connection then.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    messages: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    ended: bool = False
    broken: bool = False
    _gone: trio.Event = field(default_factory=trio.Event)
    _news: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    @property
    def body(self) -> bytes:
        return b"".join(self.messages)

    @property
    def json(self) -> Json:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of the complete events, with `[DONE]` as text. Checks the shape of every line."""
        assert self.headers["content-type"] == "text/event-stream; charset=utf-8"
        *blocks, _ = self.body.replace(b":\n", b"").decode().split("\n\n")
        events = []
        for block in blocks:
            *first, last = block.split("\n")
            assert len(first) <= 1
            assert all(line.startswith("event: ") for line in first)
            assert last.startswith("data: ")
            data = last.removeprefix("data: ")
            events.append(data if data == "[DONE]" else json.loads(data))
            assert not first or first == [f"event: {events[-1]['type']}"]
        return events

    @property
    def error(self) -> Json:
        """The error of a refused request. Checks its shape."""
        assert set(self.json) == {"error"}
        error: Json = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert self.status is not None
        assert self.status >= 400
        assert self.status != 409
        # Either a retry may help and `Retry-After` says when, or the SDKs are told not to retry.
        assert ("retry-after" in self.headers) != (self.headers.get("x-should-retry") == "false")
        return error

    def header(self, name: str) -> str:
        return self.headers[name]

    def has_header(self, name: str) -> bool:
        return name in self.headers

    def disconnect(self) -> None:
        """The client leaves."""
        self._gone.set()

    async def until(self, condition: Callable[[OpenAIExchange], bool]) -> None:
        """Wait until the response so far meets a condition."""
        while not condition(self):
            assert not self.ended, self.body
            await self._news.park()

    async def until_event(self, count: int) -> None:
        """Wait until `count` events have been sent."""
        await self.until(lambda self: self.body.count(b"\n\n") >= count)

    async def until_sent(self, piece: bytes) -> None:
        """Wait until the body contains `piece`."""
        await self.until(lambda self: piece in self.body)


@dataclass(frozen=True)
class OpenAIApi:
    """The application on a pipeline, called as a server calls it.

    Attributes:
        pipeline: The pipeline that the application serves.
        engine: The engine of the pipeline.
    """

    pipeline: Pipeline
    engine: Any
    app: Any

    @asynccontextmanager
    async def open(
        self, method: str, target: str, body: bytes | Json = b"", **headers: str
    ) -> AsyncIterator[OpenAIExchange]:
        """Send a request and observe the response while it arrives. Leaving the block disconnects.

        Args:
            method: The request's method.
            target: The request's path and query.
            body: Bytes, or a dict that is sent as JSON.
            headers: In names, `_` stands for `-`. A JSON body gets `Content-Type: application/json` by default.
        """
        exchange = OpenAIExchange()
        if isinstance(body, dict):
            headers.setdefault("Content_Type", "application/json")
            body = json.dumps(body).encode()
        path, _, query = target.partition("?")
        requests = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Json:
            await trio.lowlevel.checkpoint()
            if requests:
                return requests.pop()
            await exchange._gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Mapping[str, Any]) -> None:
            await trio.lowlevel.checkpoint()
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                names = [name.decode("ascii").lower() for name, _ in message["headers"]]
                assert len(names) == len(set(names))
                exchange.headers = dict(zip(names, [value.decode() for _, value in message["headers"]], strict=True))
            elif not exchange._gone.is_set():
                if message["body"]:
                    exchange.messages.append(message["body"])
                    exchange.times.append(trio.current_time())
                exchange.ended = not message["more_body"]
                if exchange.ended:  # a server reports a disconnect at the end of every response
                    exchange._gone.set()
            exchange._news.unpark_all()

        async def run() -> None:
            try:
                await self.app(
                    {
                        "type": "http",
                        "asgi": {"version": "3.0"},
                        "http_version": "1.1",
                        "method": method,
                        "scheme": "http",
                        "path": path,
                        "raw_path": path.encode(),
                        "query_string": query.encode(),
                        "root_path": "",
                        "headers": [
                            (name.replace("_", "-").lower().encode(), value.encode())
                            for name, value in ({"Host": "localhost"} | headers).items()
                        ],
                        "client": ("127.0.0.1", 50000),
                        "server": ("127.0.0.1", 8000),
                        "extensions": {},
                    },
                    receive,
                    send,
                )
            except Exception:
                if exchange.status is None:
                    raise
                exchange.broken = True

        with trio.fail_after(VIRTUAL_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                yield exchange
                exchange.disconnect()

    async def ask(self, method: str, target: str, body: bytes | Json = b"", **headers: str) -> OpenAIExchange:
        """Send a request and wait for the whole response."""
        async with self.open(method, target, body, **headers) as exchange:
            await exchange.until(lambda exchange: exchange.ended)
        return exchange

    async def get(self, target: str, **headers: str) -> OpenAIExchange:
        return await self.ask("GET", target, **headers)

    async def post(self, target: str, body: bytes | Json = b"", **headers: str) -> OpenAIExchange:
        return await self.ask("POST", target, body, **headers)

    async def start(self, **fields: Any) -> str:
        """Start a native stream that does not wait for a reader.

        Returns:
            The stream's id.
        """
        answer = await self.post("/v1/streams", {"input": "Why?"} | fields)
        assert answer.status == 201, answer.body
        return answer.json["id"]

    async def chat(self, headers: Mapping[str, str] | None = None, **fields: Any) -> OpenAIExchange:
        """A chat completion with one question and the given fields."""
        return await self.post("/v1/chat/completions", chat_body(**fields), **(headers or {}))

    def open_chat(
        self, headers: Mapping[str, str] | None = None, **fields: Any
    ) -> AbstractAsyncContextManager[OpenAIExchange]:
        """`open` for a chat completion."""
        return self.open("POST", "/v1/chat/completions", chat_body(**fields), **(headers or {}))

    def number(self, name: str, **labels: str) -> float:
        """The value of one of the pipeline's metrics, or 0 if it has never been counted."""
        samples = [sample for family in PipelineCollector(self.pipeline).collect() for sample in family.samples]
        return sum(
            sample.value
            for sample in samples
            if sample.name == f"crucible_{name}" and labels.items() <= sample.labels.items()
        )


def chat_body(**fields: Any) -> Json:
    return {"messages": [{"role": "user", "content": "Why?"}]} | fields


@asynccontextmanager
async def _open_api(
    *steps: Any, engine: Any = None, sampling: Iterable[str] = (), **settings: Any
) -> AsyncIterator[OpenAIApi]:
    engine = engine or TwoModelEngine(*steps, sampling=sampling)
    values = load_settings({}, **settings)
    async with open_pipeline(engine, values.pipeline) as pipeline:
        yield OpenAIApi(pipeline, engine, create_app(pipeline, values.apis))


@pytest.fixture(scope="session")
def open_api() -> Callable[..., AbstractAsyncContextManager[OpenAIApi]]:
    """`async with open_api(*steps, **settings) as api`, on virtual time. `engine=` replaces the scripted engine."""
    return _open_api


@pytest.fixture(scope="session")
def scripted() -> type[TwoModelEngine]:
    """The class of engines that follow a script: `scripted(*steps, models=..., sampling=...)`."""
    return TwoModelEngine


# On sockets


@dataclass(frozen=True)
class ServedApp:
    """A running server.

    Attributes:
        pipeline: The pipeline that it serves.
        port: The server's port on 127.0.0.1, or that of a proxy in front of it.
    """

    pipeline: Pipeline
    port: int

    @property
    def url(self) -> str:
        """The server's URL, without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """The value for the `base_url` of OpenAI's SDK."""
        return f"{self.url}/v1"


@asynccontextmanager
async def _serving(engine: Any, **settings: Any) -> AsyncIterator[ServedApp]:
    values = load_settings({}, **settings)
    with trio.fail_after(REAL_SECONDS):
        async with open_pipeline(engine, values.pipeline) as pipeline, trio.open_nursery() as nursery:
            config = Config.from_settings(values.server, values.pipeline)
            config.bind = ["127.0.0.1:0"]
            urls: list[str] = await nursery.start(partial(serve, create_app(pipeline, values.apis), config))
            yield ServedApp(pipeline, int(urls[0].rpartition(":")[2]))
            nursery.cancel_scope.cancel()


@pytest.fixture(scope="session")
def serving() -> Callable[..., AbstractAsyncContextManager[ServedApp]]:
    """`async with serving(engine, **settings) as served`: our own server on a free port."""
    return _serving


@pytest.fixture(scope="session")
def with_sync_client() -> Callable[..., Awaitable[Any]]:
    """`await with_sync_client(served, use, **options)` calls `use(client)` with an `OpenAI` in another thread."""
    return sync_runner(pytest.importorskip("openai").OpenAI, attrgetter("base_url"))


@pytest.fixture(params=["trio", "asyncio"])
def with_async_client(request: pytest.FixtureRequest) -> Iterator[Callable[..., Awaitable[Any]]]:
    """`await with_async_client(served, use, **options)` awaits `use(client)` with an `AsyncOpenAI`.

    On trio the client shares the event loop of the server. On asyncio it runs in another thread.
    """
    with left_generators("openai"):
        yield async_runner(pytest.importorskip("openai").AsyncOpenAI, attrgetter("base_url"), request.param)
