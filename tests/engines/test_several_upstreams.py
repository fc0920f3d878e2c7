"""Several upstream servers on real sockets, opened from a settings file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
import trio
from trio.testing import MockClock

from crucible_trio.engine import Capabilities, EngineInfo, Finish, engines_behind
from crucible_trio.engines import open_engine, watching
from crucible_trio.engines.upstream import open_upstream, retries
from crucible_trio.engines.watching import watch_all
from crucible_trio.errors import ConfigError, EngineError
from crucible_trio.output import Output
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.request import Request
from crucible_trio.settings import load_settings

from .test_upstream import (
    CHUNKED,
    DONE,
    ScriptedConnection,
    chunk,
    event,
    part,
    status,
    stream,
)

Answer: TypeAlias = bytes | Callable[[ScriptedConnection], object]


def models(*names: str) -> bytes:
    body = json.dumps({"data": [{"id": name} for name in names]}).encode()
    # On a connection that was used before, a reset may mean that the server had closed it, so the client sends again.
    return status(200, "Connection: close", body=body)


def text(*pieces: str) -> bytes:
    return stream(*(chunk(content=piece) for piece in pieces), chunk("stop"), DONE)


async def reset(connection: ScriptedConnection) -> None:
    connection.reset()


async def reset_behind_the_first_piece(connection: ScriptedConnection) -> None:
    await connection.send(CHUNKED + part(chunk(content="Blu")))
    connection.reset()


class Server:
    """A server with a list of models and one answer to every request."""

    def __init__(self, *names: str, answer: Answer = b"") -> None:
        self.listed: bytes = models(*names)
        self.answer = answer or text(f"{names[0]} says hello")
        self.chats: list[dict[str, object]] = []
        self.headers: list[dict[str, str]] = []
        self.lists = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, connection: trio.SocketStream) -> None:
        scripted = ScriptedConnection(connection)
        async with connection:
            while connection.socket.fileno() != -1 and (request := await scripted.read_request()) is not None:
                line, headers, body = request
                self.headers.append(headers)
                if line.startswith("GET /v1/models "):
                    self.lists += 1
                    await scripted.send(self.listed)
                    return
                self.chats.append(json.loads(body))
                if isinstance(self.answer, bytes):
                    await scripted.send(self.answer)
                else:
                    await self.answer(scripted)  # type: ignore[misc]

    async def start(self, nursery: trio.Nursery) -> None:
        """Listen, on the same port as before if it has listened before."""
        self.scope = trio.CancelScope()
        listeners = await nursery.start(self._run)
        self.port = listeners[0].socket.getsockname()[1]

    async def _run(self, task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
        with self.scope:
            await trio.serve_tcp(self.serve, self.port, host="127.0.0.1", task_status=task_status)

    def stop(self) -> None:
        self.scope.cancel()


OpenTables: TypeAlias = Callable[..., AbstractAsyncContextManager[Pipeline]]


@pytest.fixture
def open_tables(tmp_path: Path) -> OpenTables:
    """Open a pipeline over upstreams from a TOML text, in which `{name}` is the URL of a server."""

    @asynccontextmanager
    async def open_tables(toml: str, environment: dict[str, str] | None = None, **servers: Server):
        file = tmp_path / "crucible.toml"
        for name, server in servers.items():
            toml = toml.replace(f"{{{name}}}", server.url)
        file.write_text(toml)
        settings = load_settings(environment or {}, config_file=file)
        with trio.fail_after(30):
            async with open_engine(settings.engine) as engine, open_pipeline(engine) as pipeline:
                yield pipeline

    return open_tables


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "RETRY_DELAYS", (0.01, 0.02))
    monkeypatch.setattr(watching, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(watching, "LONGEST_DELAY", 0.05)


async def answer_of(pipeline: Pipeline, model: str | None = None) -> tuple[str, str]:
    """The text, and how it ended: `completed`, or the code of the failure."""
    made = await pipeline.start(Request("q", model=model), on_disconnect="continue")
    async with made.attach() as reader:
        async for _ in reader:
            pass
    snapshot = made.snapshot()
    return snapshot.output, made.status if snapshot.error is None else snapshot.error.code


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


TWO = """
[upstreams.one]
base_url = "{one}"

[upstreams.two]
base_url = "{two}"
"""


async def test_two_upstreams_serve_their_models(nursery: trio.Nursery, open_tables: OpenTables) -> None:
    one, two = Server("small", "shared"), Server("large", "shared")
    await one.start(nursery)
    await two.start(nursery)
    async with open_tables(TWO, one=one, two=two) as pipeline:
        info = pipeline.engine.info
        assert (info.name, info.models) == ("one, two", ("small", "shared", "large"))
        assert await answer_of(pipeline) == ("small says hello", "completed")
        assert await answer_of(pipeline, "large") == ("large says hello", "completed")
        assert await answer_of(pipeline, "shared") == ("small says hello", "completed")
    assert [chat["model"] for chat in one.chats] == ["small", "shared"]
    assert [chat["model"] for chat in two.chats] == ["large"]


@pytest.mark.parametrize(
    "answer",
    [
        reset,
        *(status(number) for number in (401, 403, 404, 429, 500, 503)),
        status(200, body=b"<html>"),
        stream(event('{"error":{"message":"x","code":503}}')),
        stream(chunk(role="assistant")),
    ],
    ids=str,
)
async def test_the_other_upstream_takes_over_before_the_first_piece(
    answer: Answer, nursery: trio.Nursery, open_tables: OpenTables
) -> None:
    one, two = Server("m", answer=answer), Server("m", answer=text("Blue"))
    await one.start(nursery)
    await two.start(nursery)
    async with open_tables(TWO, one=one, two=two) as pipeline:
        assert await answer_of(pipeline) == ("Blue", "completed")
        assert pipeline.metrics.engine("one").failovers == 1
        assert pipeline.metrics.engine("two").ended["completed"] == 1
    assert (len(one.chats), len(two.chats)) == (1, 1)  # the first one is not asked again


async def test_an_upstream_that_has_gone_is_replaced_and_comes_back(
    nursery: trio.Nursery, open_tables: OpenTables, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = Server("m", answer=text("One")), Server("m", answer=text("Two"))
    await one.start(nursery)
    await two.start(nursery)
    async with open_tables(TWO, one=one, two=two) as pipeline:
        first = next(engines_behind(pipeline.engine))
        one.stop()
        with caplog.at_level(logging.INFO):
            assert await answer_of(pipeline) == ("Two", "completed")
            await until(lambda: "upstream one is down" in caplog.text)
            assert (first.info.models, first.info.is_up) == (("m",), False)  # it keeps its models
            await one.start(nursery)
            await until(lambda: "upstream one is up, models: m" in caplog.text)
        assert await answer_of(pipeline) == ("One", "completed")


async def test_after_the_first_piece_the_text_stays_and_no_other_upstream_is_asked(
    nursery: trio.Nursery, open_tables: OpenTables
) -> None:
    one, two = Server("m", answer=reset_behind_the_first_piece), Server("m")
    await one.start(nursery)
    await two.start(nursery)
    async with open_tables(TWO, one=one, two=two) as pipeline:
        assert await answer_of(pipeline) == ("Blu", "upstream_ended_early")
    assert two.chats == []


@pytest.mark.parametrize("number", [400, 413, 422])
async def test_a_rejected_request_is_not_sent_to_another_upstream(
    number: int, nursery: trio.Nursery, open_tables: OpenTables
) -> None:
    one, two = Server("m", answer=status(number)), Server("m")
    await one.start(nursery)
    await two.start(nursery)
    async with open_tables(TWO, one=one, two=two) as pipeline:
        assert await answer_of(pipeline) == ("", "upstream_rejected")
    assert two.chats == []


async def test_the_last_upstream_repeats_its_own_attempts(nursery: trio.Nursery, open_tables: OpenTables) -> None:
    one, two = Server("m", answer=reset), Server("m", answer=reset)
    await one.start(nursery)
    await two.start(nursery)
    async with open_tables(TWO, one=one, two=two) as pipeline:
        assert await answer_of(pipeline) == ("", "upstream_ended_early")
    assert (len(one.chats), len(two.chats)) == (1, 3)


async def test_an_upstream_that_is_down_at_start_appears_when_it_is_up(
    nursery: trio.Nursery, open_tables: OpenTables, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = Server("early"), Server("late")
    await one.start(nursery)
    await two.start(nursery)
    two.stop()
    with caplog.at_level(logging.INFO):
        async with open_tables(TWO, one=one, two=two) as pipeline:
            assert pipeline.engine.info.models == ("early",)
            assert [engine.info.is_up for engine in engines_behind(pipeline.engine)] == [True, False]
            assert f"upstream two is down, asking again: cannot get the list of models from {two.url}" in caplog.text
            await two.start(nursery)
            await until(lambda: "late" in pipeline.engine.info.models)
            assert await answer_of(pipeline, "late") == ("late says hello", "completed")
            assert "upstream two is up, models: late" in caplog.text
    assert caplog.text.count("upstream two is down") == 1


async def test_all_upstreams_may_be_down_at_start(nursery: trio.Nursery, open_tables: OpenTables) -> None:
    one, two = Server("m"), Server("m")
    for server in (one, two):
        await server.start(nursery)
        server.stop()
    async with open_tables(TWO, one=one, two=two) as pipeline:
        assert pipeline.engine.info.models == ()
        await one.start(nursery)
        await until(lambda: pipeline.engine.info.models == ("m",))
        assert await answer_of(pipeline) == ("m says hello", "completed")


async def test_a_list_of_models_that_changes_is_noticed(
    nursery: trio.Nursery, open_tables: OpenTables, caplog: pytest.LogCaptureFixture
) -> None:
    one = Server("old")
    await one.start(nursery)
    with caplog.at_level(logging.INFO):
        async with open_tables('[upstreams.one]\nbase_url = "{one}"', one=one) as pipeline:
            assert pipeline.engine.info.models == ("old",)
            one.listed = models("new", "newer")
            await until(lambda: pipeline.engine.info.models == ("new", "newer"))
            one.listed = status(500)
            await until(lambda: pipeline.engine.info.is_up is False)
            assert pipeline.engine.info.models == ("new", "newer")
    assert "upstream one is up, models: new, newer" in caplog.text


PEER = """
[upstreams.one]
base_url = "{one}"
kind = "crucible"
capabilities = { tools = false }

[upstreams.two]
base_url = "{two}"
"""


@pytest.mark.slow
async def test_another_crucible_trio_is_one_of_several_upstreams(
    nursery: trio.Nursery, open_tables: OpenTables
) -> None:
    one, two = Server("m"), Server("m", answer=text("Two"))
    one.listed = status(
        200, body=b'{"data":[{"id":"m","sampling":["seed"],"capabilities":["tools","images"]},{"id":"n"}]}'
    )
    await one.start(nursery)
    await two.start(nursery)
    one.stop()
    async with open_tables(PEER, one=one, two=two) as pipeline:
        info = pipeline.engine.info
        assert info.models == ("m",)
        await one.start(nursery)
        await until(lambda: pipeline.engine.info.models == ("m", "n"))
        capabilities = pipeline.engine.info.capabilities_of("m")
        assert capabilities == Capabilities(images=True, sampling=frozenset({"seed"}))
        peer = next(engines_behind(pipeline.engine))
        assert peer.info.is_up
        one.answer = status(503)
        assert await answer_of(pipeline, "m") == ("Two", "completed")
        one.stop()
        assert await answer_of(pipeline, "m") == ("Two", "completed")
        assert pipeline.metrics.engine("one").failovers == 2
        await until(lambda: peer.info.is_up is False)
    assert len(one.chats) == 1  # with another upstream left it is not asked again


NAMED = """
[upstreams.one]
base_url = "{one}"
models = ["b", "a"]
key_variable = "ONE_KEY"
headers = { X-Team = "blue" }
extra_body = { top_k = 3 }
limit_field = "max_completion_tokens"
starts_in_trace = ["deep"]
think_tags = { "<a>" = "</a>" }
capabilities = { sampling = ["seed"] }

[upstreams.one.thinking.deep]
reasoning_effort = "high"
"""


async def test_a_table_says_how_its_server_is_asked(nursery: trio.Nursery, open_tables: OpenTables) -> None:
    one = Server("c", answer=text("Hm</a>Blue"))
    await one.start(nursery)
    async with open_tables(NAMED, {"ONE_KEY": "sk-1"}, one=one) as pipeline:
        info = pipeline.engine.info
        assert (info.name, info.models, info.capabilities.sampling) == ("one", ("b", "a"), frozenset({"seed"}))
        made = await pipeline.start(Request("q", mode="deep", max_output_tokens=5), on_disconnect="continue")
        async with made.attach() as reader:
            async for _ in reader:
                pass
    snapshot = made.snapshot()
    assert (snapshot.trace, snapshot.output) == (["Hm"], "Blue")
    [sent] = one.chats
    assert sent | {"messages": None, "stream_options": None} == {
        "model": "b",
        "messages": None,
        "stream": True,
        "stream_options": None,
        "reasoning_effort": "high",
        "max_completion_tokens": 5,
        "top_k": 3,
    }
    assert all(headers["authorization"] == "Bearer sk-1" for headers in one.headers)
    assert all(headers["x-team"] == "blue" for headers in one.headers)


@pytest.mark.parametrize(("listed", "is_up"), [(status(404), True), (status(401), True), (status(502), False)])
async def test_a_server_whose_models_are_named_needs_no_list(
    listed: bytes, is_up: bool, nursery: trio.Nursery, open_tables: OpenTables
) -> None:
    one = Server("other")
    one.listed = listed
    await one.start(nursery)
    async with open_tables('[upstreams.one]\nbase_url = "{one}"\nmodels = ["m"]', one=one) as pipeline:
        await until(lambda: pipeline.engine.info.is_up is is_up)
        assert pipeline.engine.info.models == ("m",)
        assert (await answer_of(pipeline))[1] == "completed"


async def test_the_only_server_must_list_its_models_unless_one_is_named(nursery: trio.Nursery, tmp_path: Path) -> None:
    server = Server("m")
    await server.start(nursery)
    server.stop()
    settings = load_settings({}, upstream_base_url=server.url)
    assert settings.engine.engine == "upstream"
    with pytest.raises(ConfigError, match=r"start the server, check the base URL.*--model"):
        async with open_engine(settings.engine):
            pass
    async with open_engine(load_settings({}, upstream_base_url=server.url, model="m").engine) as engine:
        assert (engine.info.name, engine.info.models, engine.info.is_up) == ("upstream", ("m",), None)


async def test_a_server_whose_only_model_is_named_is_not_asked(nursery: trio.Nursery) -> None:
    server = Server("m")
    await server.start(nursery)
    settings = load_settings({}, upstream_base_url=server.url, model="m")
    async with open_engine(settings.engine) as engine, open_pipeline(engine) as pipeline:
        assert await answer_of(pipeline) == ("m says hello", "completed")
    assert server.lists == 0


@pytest.mark.slow
async def test_requests_say_whether_a_server_responds(nursery: trio.Nursery) -> None:
    server = Server("m")
    await server.start(nursery)
    async with open_upstream(server.url, name="one", models=["m"]) as engine, open_pipeline(engine) as pipeline:
        states = [engine.info.is_up]
        for number in (200, 503):
            server.answer = status(number)
            await answer_of(pipeline)
            states.append(engine.info.is_up)
        server.stop()
        assert (await answer_of(pipeline))[1] == "upstream_unreachable"
        states.append(engine.info.is_up)
        server.answer = reset
        await server.start(nursery)
        assert (await answer_of(pipeline))[1] == "upstream_ended_early"  # this server accepts connections
        states.append(engine.info.is_up)
        server.answer = text("Blue")
        await answer_of(pipeline)
        states.append(engine.info.is_up)
    assert states == [None, True, True, False, False, True]


async def test_the_only_server_is_asked_again_too(nursery: trio.Nursery) -> None:
    server = Server("old")
    await server.start(nursery)
    with trio.fail_after(10):
        async with open_engine(load_settings({}, upstream_base_url=server.url).engine) as engine:
            server.listed = models("new")
            await until(lambda: engine.info.models == ("new",))


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ('base_url = "ftp://a"', "upstreams.one: the base URL of the upstream must look like"),
        ('base_url = "http://a"\nthink_tags = {" a" = "b"}', "upstreams.one: no think tag may be empty"),
        ('base_url = "http://a"\nkey_variable = "KEY"', "upstreams.one: the upstream's key is empty or holds"),
    ],
)
async def test_an_error_found_at_opening_names_the_table_and_the_file(
    table: str, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "crucible.toml"
    file.write_text(f"[upstreams.one]\n{table}")
    settings = load_settings({"KEY": "s3 cret"}, config_file=file)
    with pytest.raises(ConfigError) as refusal, settings.errors_name_origins():
        async with open_engine(settings.engine):
            pass
    assert str(refusal.value).startswith(sentence)
    assert str(refusal.value).endswith(f"(file {file})")
    assert "s3 cret" not in str(refusal.value)


# Watching, in virtual time


class Discovered:
    """An engine whose server answers as the test says."""

    def __init__(self, *answers: tuple[str, ...] | Exception) -> None:
        self.info = EngineInfo(name="one", models=())
        self.answers = list(answers)
        self.times: list[float] = []

    async def discover(self) -> None:
        self.times.append(trio.current_time())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            self.info = EngineInfo(name="one", models=self.info.models, is_up=False)
            raise answer
        self.info = EngineInfo(name="one", models=answer, is_up=True)

    async def generate(self, request: Request, output: Output) -> Finish:
        raise AssertionError


DOWN = EngineError("upstream_unreachable", "down")


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real delays, without chance."""
    monkeypatch.setattr(watching, "FIRST_DELAY", 1.0)
    monkeypatch.setattr(watching, "LONGEST_DELAY", 30.0)
    monkeypatch.setattr(watching.random, "uniform", lambda low, high: high)


async def asked_at(engine: Discovered, seconds: float) -> list[float]:
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        await watch_all([engine], nursery)
        await trio.sleep_until(begin + seconds)
        nursery.cancel_scope.cancel()
    return [time - begin for time in engine.times]


@pytest.mark.usefixtures("steady")
async def test_a_server_that_is_down_is_asked_more_and_more_rarely(autojump_clock: MockClock) -> None:
    assert await asked_at(Discovered(DOWN), 100) == [0, 1, 3, 7, 15, 31, 61, 91]


@pytest.mark.usefixtures("steady")
async def test_a_server_that_is_up_is_asked_every_half_minute(autojump_clock: MockClock) -> None:
    engine = Discovered(DOWN, ("m",), ("m",), DOWN, DOWN, ("m",))
    assert await asked_at(engine, 100) == [0, 1, 31, 61, 62, 64, 94]


@pytest.mark.usefixtures("steady")
async def test_a_bug_in_one_engine_does_not_stop_the_service(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Discovered(ValueError("odd"), ("m",))
    assert await asked_at(engine, 2) == [0, 1]
    assert "upstream one: internal error" in caplog.text


async def test_the_start_waits_a_few_seconds_for_a_silent_server(autojump_clock: MockClock) -> None:
    class Silent(Discovered):
        async def discover(self) -> None:
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        begin = trio.current_time()
        nursery.cancel_scope.deadline = begin + 60
        await watch_all([Silent(("m",)), Discovered(("m",))], nursery)
        assert trio.current_time() - begin == watching.START_PATIENCE
        nursery.cancel_scope.cancel()


async def test_the_delays_are_not_the_same_for_all(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "FIRST_DELAY", 1.0)
    times = {(await asked_at(Discovered(DOWN), 1.5))[1] for _ in range(5)}
    assert len(times) > 1
    assert all(0.5 <= time <= 1 for time in times)


async def test_a_long_list_of_models_is_cut_in_the_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await asked_at(Discovered(("a\nb", *map(str, range(20)))), 0)
    assert r"models: 'a\nb', 0, 1, 2, 3, 4, 5, 6, 7, 8 and 11 more" in caplog.text


async def test_the_watches_end_with_their_engine(nursery: trio.Nursery, open_tables: OpenTables) -> None:
    one = Server("m")
    await one.start(nursery)
    before = trio.lowlevel.current_statistics().tasks_living
    async with open_tables('[upstreams.one]\nbase_url = "{one}"', one=one):
        await until(lambda: one.lists > 2)
    await until(lambda: trio.lowlevel.current_statistics().tasks_living == before)  # also the server's connections
