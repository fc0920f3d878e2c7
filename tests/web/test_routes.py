"""The routes that answer in JSON or text, unknown paths, and wrong methods."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.content import Reasoning
from crucible_trio.engine import EngineInfo, Finish
from crucible_trio.engines.router import RouterEngine
from crucible_trio.errors import EngineError
from crucible_trio.output import Output
from crucible_trio.records import new_stream_id
from crucible_trio.request import Request

NO_USAGE = {"input_tokens": None, "output_tokens": None, "reasoning_tokens": None}
USAGE = {"input_tokens": 3, "output_tokens": 9, "reasoning_tokens": 4}


# The snapshot


async def test_a_snapshot_holds_the_stream_so_far(open_api, autojump_clock: MockClock) -> None:
    over = trio.Event()
    steps = (0.5, Reasoning("First, ", 0), Reasoning("ä", 1), Reasoning("!", 1), "Hel", "lo", over, " there")
    async with open_api(*steps) as api:
        stream = await api.start(mode="deep", model="other")
        await trio.sleep(1)
        head = (await api.pipeline.find(stream)).log.head  # how many records there are depends on who runs when
        expected = {
            "id": stream,
            "status": "running",
            "paused": False,
            "progress": {"activity": "generating", "pieces": 5, "buffered": 0},
            "mode": "deep",
            "model": "other",
            "created_at": (await api.pipeline.find(stream)).created_at,
            "last_seq": head,
            "output": "Hello",
            "trace": ["First, ", "ä!"],
            "refusal": None,
            "tool_calls": [],
            "upstream_fields": {},
            "finish_reason": None,
            "reason": None,
            "error": None,
            "by": None,
            "usage": None,
            "timings": None,
            "events_url": f"/v1/streams/{stream}/events",
            "cancel_url": f"/v1/streams/{stream}/cancel",
        }
        answer = await api.get(f"/v1/streams/{stream}")
        assert (answer.status, answer.json) == (200, expected)
        assert answer.header("cache-control") == "no-store"
        # The snapshot holds exactly the records up to `last_seq`, and the events after it are the rest.
        over.set()
        rest = await api.get(f"/v1/streams/{stream}/events", Last_Event_Id=f"{stream}.{answer.json['last_seq']}")
        assert [event.get("delta") for event in rest.events] == [" there", None]
        assert (await api.get(f"/v1/streams/{stream}")).json == expected | {
            "status": "completed",
            "progress": {"activity": "ended", "pieces": 6, "buffered": 0},
            "last_seq": head + 2,
            "output": "Hello there",
            "finish_reason": "stop",
            "usage": USAGE,
            "timings": {"first_token_ms": 500.0, "total_ms": 1000.0},
        }


@pytest.mark.parametrize(
    ("steps", "fields", "expected"),
    [
        (["a", Finish("length")], {}, {"status": "incomplete", "reason": "max_output_tokens"}),
        (["a", 9], {"deadlines": {"idle_seconds": 1}}, {"status": "incomplete", "reason": "idle_deadline"}),
        (
            [EngineError("busy", "Come later.", retryable=True)],
            {},
            {"status": "failed", "error": {"code": "busy", "message": "Come later.", "retryable": True}},
        ),
    ],
)
async def test_a_snapshot_says_how_the_stream_ended(
    open_api, steps, fields, expected, autojump_clock: MockClock
) -> None:
    async with open_api(*steps) as api:
        stream = await api.start(**fields)
        await trio.sleep(60)
        snapshot = (await api.get(f"/v1/streams/{stream}")).json
        assert expected.items() <= snapshot.items()
        assert snapshot["usage"] == NO_USAGE
        assert snapshot["timings"] is not None


async def test_a_snapshot_says_when_the_stream_waits_for_a_reader(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", trio.Event()) as api:
        async with api.open_stream() as reader:
            await reader.until_event(2)
            assert (await api.get(f"/v1/streams/{reader.stream_id}")).json["paused"] is False
        snapshot = (await api.get(f"/v1/streams/{reader.stream_id}")).json
        assert (snapshot["status"], snapshot["paused"]) == ("running", True)


# The list


async def test_the_list_is_newest_first_with_running_and_finished_ones(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", 5) as api:
        assert (await api.get("/v1/streams")).json == {"data": []}
        one = await api.start()
        await trio.sleep(10)
        two = await api.start(mode="deep")
        three = await api.start()
        answer = await api.get("/v1/streams")
        assert answer.status == 200
        assert [(entry["id"], entry["status"], entry["mode"]) for entry in answer.json["data"]] == [
            (three, "running", "standard"),
            (two, "running", "deep"),
            (one, "completed", "standard"),
        ]
        assert set(answer.json["data"][0]) == {
            "id",
            "status",
            "mode",
            "model",
            "events_url",
            "cancel_url",
            "created_at",
        }


# Models, health, metrics


async def test_models_lists_the_models_that_a_request_may_name(open_api, scripted, autojump_clock: MockClock) -> None:
    async with open_api(engine=scripted("a", sampling=["top_p", "seed"])) as api:
        answer = await api.get("/v1/models")
        assert answer.status == 200
        assert answer.json == {
            "object": "list",
            "data": [
                {
                    "id": model,
                    "object": "model",
                    "created": 0,
                    "owned_by": "scripted",
                    "sampling": ["seed", "top_p"],
                    "capabilities": [],
                }
                for model in ("scripted", "other")
            ],
        }


async def test_the_root_is_the_demo_page(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        assert (await api.get("/")).status == 200


async def test_health_and_readiness_while_serving_and_draining(open_api, autojump_clock: MockClock) -> None:
    async with open_api(over := trio.Event()) as api, trio.open_nursery() as nursery:
        await api.start()
        assert [(await api.get(path)).status for path in ("/healthz", "/readyz")] == [200, 200]
        nursery.start_soon(api.pipeline.drain, 1000)
        await wait_all_tasks_blocked()
        assert [(await api.get(path)).status for path in ("/healthz", "/readyz")] == [200, 503]
        assert (await api.get("/readyz")).json == {"status": "draining"}
        assert [(await api.ask("HEAD", path)).status for path in ("/healthz", "/readyz")] == [200, 503]
        over.set()


class Upstream:
    """An engine whose server comes and goes."""

    def __init__(self, name: str, *models: str, is_up: bool | None = None) -> None:
        self.info = EngineInfo(name=name, models=models, is_up=is_up)

    async def generate(self, request: Request, output: Output) -> Finish:
        return Finish()


async def test_readiness_names_the_upstreams_that_are_down(open_api, autojump_clock: MockClock) -> None:
    spare = Upstream("spare", is_up=False)
    router = RouterEngine([RouterEngine([Upstream("vllm", "m", is_up=True)]), spare, Upstream("local", "x")])
    async with open_api(engine=router) as api:
        answer = await api.get("/readyz")
        assert (answer.status, answer.json) == (200, {"status": "ready", "upstreams": {"vllm": "up", "spare": "down"}})
        spare.info = EngineInfo(name="spare", models=("m",), is_up=True)
        assert (await api.get("/readyz")).json["upstreams"] == {"vllm": "up", "spare": "up"}


async def test_without_any_model_the_server_is_not_ready(open_api, autojump_clock: MockClock) -> None:
    late = Upstream("late", is_up=False)
    async with open_api(engine=late, openai_models={"o3": "m"}) as api:
        answer = await api.get("/readyz")
        assert (answer.status, answer.json) == (503, {"status": "no_model", "upstreams": {"late": "down"}})
        assert (await api.get("/v1/models")).json == {"object": "list", "data": []}
        assert (await api.get("/v1/models/o3")).status == 404
        late.info = EngineInfo(name="late", models=("m",), is_up=True)
        assert (await api.get("/readyz")).status == 200
        assert (await api.get("/v1/models/o3")).status == 200
        # A server that goes down keeps its models: their requests fail with an error that says so.
        late.info = EngineInfo(name="late", models=("m",), is_up=False)
        assert (await api.get("/readyz")).status == 200


async def test_metrics_are_in_the_text_format_of_prometheus(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", "b") as api:
        await api.stream({"input": "Why?", "mode": "deep"})
        answer = await api.get("/metrics")
        assert answer.status == 200
        assert answer.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"
        lines = answer.body.decode().split("\n")
        for line in (
            'crucible_streams_started_total{engine="scripted",mode="deep"} 1.0',
            'crucible_streams_ended_total{engine="scripted",status="completed"} 1.0',
            'crucible_pieces_total{engine="scripted",mode="deep"} 2.0',
            "crucible_streams_kept 1.0",
            "crucible_streams_running 0.0",
            "crucible_readers 0.0",
        ):
            assert line in lines


# Unknown paths, methods, streams and parameters


@pytest.mark.parametrize(
    "path",
    ["/v1", "/v1/", "/v1/streams/", "/V1/streams", "/v2/streams", "/v1/streams/x/y", "/x", "/static/x"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_unknown_path_is_404_in_json(open_api, method, path, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        answer = await api.ask(method, path)
        assert answer.status == 404
        assert answer.error == {"code": "not_found", "message": "there is no such path"}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/streams", "GET, HEAD, OPTIONS, POST"),
        ("DELETE", "/v1/streams", "GET, HEAD, OPTIONS, POST"),
        ("POST", "/v1/streams/x", "DELETE, GET, HEAD, OPTIONS"),
        ("POST", "/v1/streams/x/events", "GET, HEAD, OPTIONS"),
        ("GET", "/v1/streams/x/cancel", "OPTIONS, POST"),
        ("DELETE", "/v1/streams/x/cancel", "OPTIONS, POST"),
        ("POST", "/v1/generate", "GET, HEAD, OPTIONS"),
        ("PATCH", "/healthz", "GET, HEAD, OPTIONS"),
        ("POST", "/", "GET, HEAD, OPTIONS"),
        ("BREW", "/v1/streams", "GET, HEAD, OPTIONS, POST"),
    ],
)
async def test_a_wrong_method_is_405_in_json(open_api, method, path, allowed, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        answer = await api.ask(method, path)
        assert answer.status == 405
        assert answer.error == {"code": "method_not_allowed", "message": "the path has no such method"}
        assert ", ".join(sorted(answer.header("allow").split(", "))) == allowed


async def test_an_unknown_stream_is_404_on_every_route(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        for name in (new_stream_id(), "x", "%00", "ä", "..", "str_", "." * 300, "{}"):
            url = f"/v1/streams/{name}"
            for method, target in (
                ("GET", url),
                ("GET", f"{url}/events"),
                ("HEAD", f"{url}/events"),
                ("POST", f"{url}/cancel"),
                ("DELETE", url),
            ):
                answer = await api.ask(method, target)
                assert (answer.status, answer.error["code"]) == (404, "stream_not_found"), (method, target)


async def test_leading_slashes_do_not_bypass_access_checks(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", keys={"alice": "key"}) as api:
        for path in ("//v1/streams", "///v1/streams"):
            assert (await api.get(path)).status == 401
            assert (await api.get(path, Sec_Fetch_Site="cross-site")).status == 403
            assert (await api.get(path, Authorization="Bearer key")).json == {"data": []}


@pytest.mark.parametrize("query", ["x=1", "last_event_id", "trace=x", "trace=", "trace=FINAL", "done=", "done=true"])
async def test_events_refuse_an_unknown_parameter(open_api, query, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        stream = await api.start()
        answer = await api.get(f"/v1/streams/{stream}/events?{query}")
        if query == "last_event_id":  # empty, which counts as absent
            assert answer.status == 200
        else:
            assert answer.status == 400
            assert answer.error["param"] == query.partition("=")[0]
        assert (await api.ask("HEAD", f"/v1/streams/{stream}/events?{query}")).status == answer.status
