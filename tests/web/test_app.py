"""Three ways to create the application: from the environment, over a pipeline, as a blueprint in another app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.config import Settings
from crucible_trio.errors import ConfigError
from crucible_trio.pipeline import open_pipeline
from crucible_trio.settings import ApiSettings
from crucible_trio.stream import Stream
from crucible_trio.web import app as app_module
from crucible_trio.web.app import blueprint, create_app
from crucible_trio.web.connection import QuartConnection

BODY = {"input": "Why?"}


class Lifespan:
    """The server's end of an application's lifespan."""

    def __init__(self, app: QuartTrio) -> None:
        self._app = app
        self._to_app, self._receive = trio.open_memory_channel[dict](1)
        self._send, self.from_app = trio.open_memory_channel[dict](1)

    async def run(self) -> None:
        await self._app({"type": "lifespan", "asgi": {}, "state": {}}, self._receive.receive, self._send.send)

    async def say(self, what: str) -> dict:
        await self._to_app.send({"type": f"lifespan.{what}"})
        return await self.from_app.receive()


@asynccontextmanager
async def served(app: QuartTrio) -> AsyncIterator[Lifespan]:
    async with trio.open_nursery() as nursery:
        lifespan = Lifespan(app)
        nursery.start_soon(lifespan.run)
        assert await lifespan.say("startup") == {"type": "lifespan.startup.complete"}
        yield lifespan


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRUCIBLE_ENGINE", "replay")
    monkeypatch.setenv("CRUCIBLE_REPLAY_SPEED", "inf")


async def test_an_app_from_the_environment_runs_its_own_pipeline_while_it_is_served(
    api_over, replay, monkeypatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setenv("CRUCIBLE_KEYS", "alice:key")
    app = create_app()
    api = api_over(None, app)
    async with served(app) as lifespan:
        assert (await api.get("/v1/streams")).status == 401
        answer = await api.stream({"input": "Why?", "mode": "deep"}, Authorization="Bearer key")
        assert answer.types[0] == "stream.created"
        assert answer.types[-1] == "stream.completed"
        assert {"reasoning.delta", "reasoning.done", "output.delta"} < set(answer.types)
        assert (await api.get("/v1/models", Authorization="Bearer key")).json["data"][0]["owned_by"] == "replay"
        assert (await api.get("/x")).error["code"] == "not_found"
        assert await lifespan.say("shutdown") == {"type": "lifespan.shutdown.complete"}


async def test_shutdown_ends_a_running_stream_and_its_reader_gets_the_terminal_record(
    api_over, replay, autojump_clock: MockClock
) -> None:
    app = create_app()
    api = api_over(None, app)
    async with served(app) as lifespan, api.open_stream(allowance=1) as reader:
        await wait_all_tasks_blocked()
        assert await lifespan.say("shutdown") == {"type": "lifespan.shutdown.complete"}
        reader.allow(1000)
        await reader.until(lambda exchange: exchange.ended)
        assert (reader.types[-1], reader.events[-1]["by"]) == ("stream.cancelled", "shutdown")


async def test_a_wrong_environment_is_reported_immediately(monkeypatch, autojump_clock: MockClock) -> None:
    monkeypatch.setenv("CRUCIBLE_BUFFER_TOKENS", "none")
    with pytest.raises(ConfigError, match="buffer_tokens"):
        create_app()


async def test_an_engine_that_cannot_run_fails_the_start(replay, monkeypatch, autojump_clock: MockClock) -> None:
    @asynccontextmanager
    async def fail(settings: Settings) -> AsyncIterator[None]:
        await trio.lowlevel.checkpoint()
        message = "there is no model at /nowhere"
        raise ConfigError(message)
        yield

    monkeypatch.setattr(app_module, "open_engine", fail)
    lifespan = Lifespan(create_app())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lifespan.run)
        answer = await lifespan.say("startup")
        nursery.cancel_scope.cancel()
    assert answer["type"] == "lifespan.startup.failed"
    assert "there is no model at /nowhere" in answer["message"]


async def test_an_app_over_a_pipeline_neither_starts_nor_ends_it(api_over, scripted, autojump_clock: MockClock) -> None:
    async with open_pipeline(scripted("a")) as pipeline:
        for _ in range(2):
            app = create_app(pipeline)
            api = api_over(pipeline, app)
            async with served(app) as lifespan:
                assert (await api.stream()).types[-1] == "stream.completed"
                assert await lifespan.say("shutdown") == {"type": "lifespan.shutdown.complete"}
        assert len(await pipeline.list()) == 2


# In another application


@asynccontextmanager
async def foreign_app(pipeline, settings: ApiSettings | None = None, **options) -> AsyncIterator[QuartTrio]:
    app = QuartTrio("foreign")

    @app.get("/own")
    async def own() -> str:
        return "own"

    app.register_blueprint(blueprint(pipeline, settings), **options)
    async with served(app) as lifespan:
        yield app
        await lifespan.say("shutdown")


@pytest.mark.parametrize("prefix", ["", "/ai"])
async def test_the_blueprint_works_in_another_app_and_under_a_prefix(
    api_over, scripted, prefix, autojump_clock: MockClock
) -> None:
    options = {"url_prefix": prefix} if prefix else {}
    async with open_pipeline(scripted("a")) as pipeline, foreign_app(pipeline, **options) as app:
        api = api_over(pipeline, app)
        answer = await api.post(f"{prefix}/v1/streams", BODY, Accept="text/event-stream")
        assert answer.types == ["stream.created", "output.delta", "stream.completed"]
        stream = answer.stream_id
        url = f"{prefix}/v1/streams/{stream}"
        assert (await api.get(url)).json["output"] == "a"
        # The URLs in responses have the prefix, too.
        started = await api.post(f"{prefix}/v1/streams", BODY)
        assert (await api.get(started.header("location"))).status == 200
        assert (await api.get(started.json["events_url"])).types[-1] == "stream.completed"
        assert (await api.post(started.json["cancel_url"])).status == 200
        assert answer.header("location") == url
        assert (await api.get(f"{url}/events", Last_Event_Id=f"{stream}.3")).status == 204
        assert (await api.get(f"{prefix}/v1/generate")).error["param"] == "prompt"
        assert (await api.get(f"{prefix}/v1/streams/x")).error["code"] == "stream_not_found"
        assert (await api.get(f"{prefix}/v1/streams", Host="evil.example")).error["code"] == "forbidden"
        for path in ("/healthz", "/readyz"):
            assert (await api.get(f"{prefix}{path}", Host="evil.example")).status == 200
        slow = await api.post(f"{prefix}/v1/streams", [b"{", 1000.0], Content_Type="application/json")
        assert slow.error["code"] == "request_timeout"


async def test_other_routes_still_belong_to_the_other_app(api_over, scripted, autojump_clock: MockClock) -> None:
    async with open_pipeline(scripted("a")) as pipeline, foreign_app(pipeline) as app:
        api = api_over(pipeline, app)
        own = await api.get("/own", Host="evil.example", Sec_Fetch_Site="cross-site")
        assert (own.status, own.body) == (200, b"own")
        for method, path, status in (("GET", "/x", 404), ("PUT", "/v1/streams", 405)):
            answer = await api.ask(method, path)
            assert (answer.status, answer.header("content-type")) == (status, "text/html; charset=utf-8")


async def test_a_lower_limit_of_the_other_app_is_413_too(api_over, scripted, autojump_clock: MockClock) -> None:
    async with open_pipeline(scripted("a")) as pipeline, foreign_app(pipeline) as app:
        app.config["MAX_CONTENT_LENGTH"] = 20
        headers = {"Content_Type": "application/json", "Content_Length": "24"}
        answer = await api_over(pipeline, app).post(body=b'{"input":"Why are you?"}', **headers)
        assert answer.status == 413
        assert answer.error == {"code": "body_too_large", "message": "the body is larger than 20 bytes"}


async def test_our_limit_holds_where_the_other_app_takes_more(api_over, scripted, autojump_clock: MockClock) -> None:
    async with (
        open_pipeline(scripted("a")) as pipeline,
        foreign_app(pipeline, ApiSettings(max_request_bytes=20)) as app,
    ):
        headers = {"Content_Type": "application/json"}
        for body, more in (([b"{", 1000.0], {"Content_Length": "21"}), ([b"{" * 15, 0.1, b"{" * 15], {})):
            answer = await api_over(pipeline, app).post(body=body, **headers, **more)
            assert answer.error == {"code": "body_too_large", "message": "the body is larger than 20 bytes"}


async def test_no_time_limit_of_the_other_app_cuts_a_stream(api_over, scripted, autojump_clock: MockClock) -> None:
    async with open_pipeline(scripted("a", 119, "b")) as pipeline, foreign_app(pipeline) as app:
        assert app.config["RESPONSE_TIMEOUT"] == 60
        answer = await api_over(pipeline, app).stream()
        assert answer.types[-1] == "stream.completed"


async def test_quarts_connection_class_is_corrected_and_another_is_kept(scripted, autojump_clock: MockClock) -> None:
    class Own(TrioASGIHTTPConnection):
        pass

    async with open_pipeline(scripted("a")) as pipeline:
        assert create_app(pipeline).asgi_http_class is QuartConnection
        for before, after in ((TrioASGIHTTPConnection, QuartConnection), (Own, Own)):
            app = QuartTrio("foreign")
            app.asgi_http_class = before
            app.register_blueprint(blueprint(pipeline))
            assert app.asgi_http_class is after
        assert QuartTrio.asgi_http_class is TrioASGIHTTPConnection


@pytest.mark.parametrize("correction", [True, False])
async def test_without_the_correction_every_request_is_cancelled_at_its_end(
    open_api, correction, autojump_clock: MockClock
) -> None:
    async with open_api("a") as api:
        if not correction:
            api.app.asgi_http_class = TrioASGIHTTPConnection
        for answer in (await api.stream(), await api.get("/v1/streams"), await api.get("/x")):
            assert answer.ended
            assert answer.cut_its_own_end is not correction


async def test_no_handler_runs_in_a_thread(open_api, monkeypatch, autojump_clock: MockClock) -> None:
    # Quart runs a plain function in a thread. That is slow, and a virtual clock jumps meanwhile.
    async def no_thread(*args: object, **kwargs: object) -> None:
        raise AssertionError

    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
    async with open_api("a") as api:
        stream = (await api.stream()).stream_id
        for method, target in (
            ("GET", "/"),
            ("GET", "/healthz"),
            ("GET", "/readyz"),
            ("GET", "/metrics"),
            ("GET", "/v1/models"),
            ("GET", "/v1/streams"),
            ("GET", f"/v1/streams/{stream}"),
            ("GET", f"/v1/streams/{stream}/events"),
            ("POST", f"/v1/streams/{stream}/cancel"),
            ("DELETE", f"/v1/streams/{stream}"),
            ("GET", "/v1/generate"),
            ("POST", "/v1/streams"),
            ("OPTIONS", "/v1/streams"),
            ("GET", "/x"),
            ("PUT", "/v1/streams"),
        ):
            assert (await api.ask(method, target)).status < 500, (method, target)


async def test_an_unexpected_error_is_500_in_json_and_reveals_nothing(
    open_api, monkeypatch, caplog, autojump_clock: MockClock
) -> None:
    async with open_api("a") as api:
        stream = await api.start()

        def broken(_: Stream) -> None:
            message = "secret"
            raise RuntimeError(message)

        monkeypatch.setattr(Stream, "snapshot", broken)
        answer = await api.get(f"/v1/streams/{stream}")
        assert answer.status == 500
        assert answer.error == {"code": "internal_server_error", "message": "Internal Server Error"}
        assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("apis", "missing"),
    [
        (("openai", "anthropic"), {"/"}),
        (("openai", "page"), {"/v1/messages"}),
        (("anthropic",), {"/", "/v1/chat/completions", "/v1/responses", "/v1/embeddings"}),
        ((), {"/", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/messages"}),
    ],
)
async def test_an_api_can_be_left_out(open_api, apis, missing: set[str], autojump_clock: MockClock) -> None:
    paths = {"/", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/messages", "/v1/streams"}
    async with open_api("a", apis=apis) as api:
        assert {path for path in paths if (await api.ask("OPTIONS", path)).status == 404} == missing
        listed = (await api.ask("GET", "/v1/models", Anthropic_Version="2023-06-01")).json
        assert ("object" in listed) != ("anthropic" in apis)
