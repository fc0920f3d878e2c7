"""Errors in OpenAI's format on its routes only, and the general rules that also apply to these routes."""

from __future__ import annotations

import json

import pytest
import trio
from quart_trio import QuartTrio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.apis.kit.bodies import BODY_SECONDS
from crucible_trio.pipeline import Pipeline
from crucible_trio.testing import Gate
from crucible_trio.web import blueprint

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Why?"}]}
KEYS = {"keys": {"alice": "a-key", "bob": "b-key"}}


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", {}, 400, "invalid_request"),
        (b"", {}, 400, "invalid_request"),
        (b"[]", {}, 400, "invalid_request"),
        (b"\xff", {}, 400, "invalid_request"),
        (b"[" * 100_000, {}, 400, "invalid_request"),
        (b'{"messages": []}', {}, 400, "invalid_request"),
        (b'{"messages": ' + b"[" * 100_000, {}, 400, "invalid_request"),
        (b"{}", {"Content_Type": "text/plain"}, 415, "unsupported_media_type"),
        (b"\x28\xb5", {"Content_Encoding": "zstd"}, 415, "unsupported_media_type"),
        (b"x" * 2000, {}, 413, "body_too_large"),
    ],
)
async def test_an_invalid_body_is_refused(open_api, body, headers, status, code, autojump_clock: MockClock) -> None:
    async with open_api("a", max_request_bytes=200_000 if body[-1:] == b"[" else 1000) as api:
        answer = await api.post(CHAT, body, **({"Content_Type": "application/json"} | headers))
        assert (answer.status, answer.error["code"]) == (status, code)
        assert answer.error["type"] == "invalid_request_error"


async def test_a_parameter_in_the_query_is_refused_by_name(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        answer = await api.post(f"{CHAT}?x=1", BODY)
        assert (answer.status, answer.error["param"]) == (400, "x")


async def test_an_api_key_is_required_if_keys_are_configured(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", **KEYS) as api:
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic a-key"}):
            for method, target in (("POST", CHAT), ("GET", "/v1/models/scripted")):
                answer = await api.ask(method, target, BODY, **headers)
                assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
                assert answer.error["type"] == "authentication_error"
                assert answer.headers["www-authenticate"] == "Bearer"
        assert api.number("requests_refused_total", code="invalid_api_key") == 6
        answer = await api.post(CHAT, BODY, Authorization="Bearer a-key")
        assert answer.status == 200
        location = answer.headers["location"]
        assert (await api.get(location, Authorization="Bearer b-key")).status == 404
        assert (await api.get(location, Authorization="Bearer a-key")).status == 200


async def test_a_foreign_page_is_refused_and_an_allowed_page_can_read_the_answer(
    open_api, autojump_clock: MockClock
) -> None:
    async with open_api("a", allowed_origins=("https://ok.example",)) as api:
        for headers in ({"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}, {"Host": "evil.example"}):
            answer = await api.post(CHAT, BODY, **headers)
            assert (answer.status, answer.error["type"]) == (403, "permission_error")
        for body, status in ((BODY, 200), ({}, 400)):
            answer = await api.post(CHAT, body, Origin="https://ok.example")
            assert answer.status == status
            assert answer.headers["access-control-allow-origin"] == "https://ok.example"
        answer = await api.ask("OPTIONS", CHAT, Origin="https://ok.example")
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, "https://ok.example")


async def test_a_reached_limit_is_429_or_503_with_a_retry_after(open_api, autojump_clock: MockClock) -> None:
    async with (
        open_api("a", gate := Gate(), max_streams_per_owner=1, max_streams=2, **KEYS) as api,
        api.open("POST", CHAT, BODY, Authorization="Bearer a-key"),
        trio.open_nursery() as nursery,
    ):
        await gate.wait_reached()
        answer = await api.post(CHAT, BODY, Authorization="Bearer a-key")
        assert (answer.status, answer.error["code"]) == (429, "too_many_streams")
        assert answer.error["type"] == "rate_limit_error"
        assert answer.headers["retry-after"] == "5"
        async with api.open("POST", CHAT, BODY, Authorization="Bearer b-key"):
            await wait_all_tasks_blocked()
            answer = await api.post(CHAT, BODY, Authorization="Bearer b-key")
            assert answer.status == 429
        nursery.start_soon(api.pipeline.drain, 100)
        await wait_all_tasks_blocked()
        answer = await api.post(CHAT, BODY, Authorization="Bearer b-key")
        assert (answer.status, answer.error["code"]) == (503, "draining")
        assert answer.error["type"] == "server_error"
        gate.open()


async def test_a_slow_body_is_408(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:

        async def receive() -> dict[str, object]:
            await trio.sleep_forever()
            raise AssertionError

        sent: list[dict[str, object]] = []

        async def send(message: dict[str, object]) -> None:
            await trio.lowlevel.checkpoint()
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": CHAT,
            "raw_path": CHAT.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"9")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "extensions": {},
        }
        async with trio.open_nursery() as nursery:
            nursery.start_soon(api.app, scope, receive, send)
            await trio.sleep(BODY_SECONDS + 1)
            nursery.cancel_scope.cancel()
        assert sent[0]["status"] == 408
        assert json.loads(sent[1]["body"])["error"]["code"] == "request_timeout"


async def test_an_internal_error_is_500_and_tells_the_client_not_to_retry(
    open_api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    def fail(*_: object, **__: object) -> None:
        message = "a secret"
        raise RuntimeError(message)

    async with open_api("a") as api:
        monkeypatch.setattr(Pipeline, "start_or_join", fail)
        answer = await api.post(CHAT, BODY)
        assert answer.error == {
            "message": "Internal Server Error",
            "type": "server_error",
            "param": None,
            "code": "internal_server_error",
        }
        assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat",
        "/v1/chat/x",
        "/v1/chat/completions/",
        "/v1/chat/completions/x",
        "/v1/chats",
        "/v1/moderations",
        "/v1/images/generations",
        "/v1/audio/speech",
        "/v1/responsesx",
        "/v1/streamsx",
    ],
)
async def test_a_path_without_a_route_is_404(open_api, path, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        for method in ("GET", "POST"):
            answer = await api.ask(method, path, BODY)
            assert (answer.status, answer.error["code"]) == (404, "not_found")
            assert answer.error["type"] == "invalid_request_error"


async def test_a_method_that_a_route_does_not_support_is_405(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        for method, path, allowed in (
            ("GET", CHAT, "OPTIONS, POST"),
            ("POST", "/v1/models/x", "GET, HEAD, OPTIONS"),
            ("POST", "/v1/models", "GET, HEAD, OPTIONS"),
        ):
            answer = await api.ask(method, path)
            assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
            assert ", ".join(sorted(answer.headers["allow"].split(", "))) == allowed


async def test_the_native_routes_keep_their_error_format(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", keys={"alice": "key"}) as api:
        for method, path in (
            ("GET", "/v1/streams"),
            ("GET", "/v1/models"),
            ("PUT", "/v1/streams"),
            ("GET", "/v1/streams/x/y"),
            ("POST", "/v1/generate"),
            ("GET", "/v1"),
            ("GET", "/v1/"),
            ("GET", "/x"),
            ("GET", "/chat/completions"),
        ):
            answer = await api.ask(method, path)
            assert set(answer.json["error"]) == {"code", "message"}, path
            assert "x-should-retry" not in answer.headers


@pytest.mark.parametrize("prefix", ["", "/ai"])
async def test_in_another_application_only_our_routes_use_our_error_format(
    open_api, prefix, autojump_clock: MockClock
) -> None:
    async with open_api("a") as api:
        app = QuartTrio("foreign")
        app.register_blueprint(blueprint(api.pipeline), url_prefix=prefix or None, name="other" if prefix else None)
        foreign = type(api)(api.pipeline, api.engine, app)
        answer = await foreign.post(f"{prefix}{CHAT}", BODY)
        assert answer.status == 200
        assert (await foreign.get(answer.headers["location"])).json["output"] == "a"
        assert (await foreign.post(f"{prefix}{CHAT}", {})).error["param"] == "messages"
        assert (await foreign.get(f"{prefix}{CHAT}")).headers["content-type"].startswith("text/html")
