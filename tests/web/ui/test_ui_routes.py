"""The routes of the UI message stream: chats, resuming, stopping, owners."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.content import Reasoning
from crucible_trio.engine import Finish
from crucible_trio.engines.upstream.request_body import UPSTREAM_CAPABILITIES
from crucible_trio.errors import EngineError
from crucible_trio.request import Message
from crucible_trio.testing import CallTool, ScriptedEngine

CHAT = "/v1/ui/chat"
STREAM = "/v1/ui/chat/chat 1/stream"
STOP = "/v1/ui/chat/chat 1/stop"
KEYS = {"alice": "a" * 20, "bob": "b" * 20}


def bearer(owner: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[owner]}"}


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["delta"] for chunk in chunks if chunk["type"] == "text-delta")


async def test_the_answer_is_a_ui_message_stream_with_the_headers_that_pages_need(
    autojump_clock: MockClock, open_api: Any, scripted: Any, ask_body: Any, chunks_of: Any
) -> None:
    engine = scripted(Reasoning("Hm."), "Hel", "lo")
    async with open_api(engine=engine) as api:
        answer = await api.post(CHAT, ask_body())
        [stream] = await api.pipeline.list()
    assert answer.status == 200
    expected = {
        "content-type": "text/event-stream; charset=utf-8",
        "x-vercel-ai-ui-message-stream": "v1",
        "cache-control": "no-store, no-transform",
        "x-accel-buffering": "no",
        "x-workflow-run-id": stream.id,
        "crucible-stream": stream.id,
        "location": f"/v1/streams/{stream.id}",
    }
    assert {name: answer.header(name) for name in expected} == expected
    assert text_of(chunks_of(answer.body)) == stream.snapshot().output == "Hello"
    assert engine.requests[0].input == (Message("user", "Why?"),)
    assert stream.on_disconnect == "continue"


async def test_a_page_that_comes_back_gets_the_same_bytes_from_the_start(
    autojump_clock: MockClock, open_api: Any, ask_body: Any
) -> None:
    async with open_api("Hel", 5.0, "lo", 5.0, "!") as api:
        async with api.open("POST", CHAT, ask_body()) as first:
            await first.until(lambda answer: b"Hel" in answer.body)
        async with api.open("GET", STREAM) as second:
            await second.until(lambda answer: b'"lo"' in answer.body)
            whole = await api.get(STREAM)
            await second.until(lambda answer: answer.ended)
        assert second.body == whole.body
        assert whole.body.startswith(first.body)
        assert len(api.journal) > 1
        assert sum(line == "engine called" for line in api.journal) == 1


async def test_an_end_that_no_page_was_sent_is_replayed(
    autojump_clock: MockClock, open_api: Any, ask_body: Any, chunks_of: Any
) -> None:
    async with open_api("Hel", 5.0, "lo") as api:
        async with api.open("POST", CHAT, ask_body()) as first:
            await first.until(lambda answer: b"Hel" in answer.body)
        await trio.sleep(60)  # the stream goes on, and ends
        [stream] = await api.pipeline.list()
        assert stream.status == "completed"
        for _ in range(3):  # each time the connection may be cut before the end has arrived
            again = await api.get(STREAM)
            assert text_of(chunks_of(again.body)) == "Hello"
            await trio.sleep(59)
        await trio.sleep(2)
        nothing = await api.get(STREAM)
        assert (nothing.status, nothing.body) == (204, b"")


async def test_without_doubt_a_page_that_was_sent_the_end_gets_204_immediately(
    autojump_clock: MockClock, open_api: Any, ask_body: Any
) -> None:
    async with open_api("Hello", ui_replay_seconds=0) as api:
        await api.post(CHAT, ask_body())
        assert (await api.get(STREAM)).status == 204


async def test_a_page_that_was_sent_the_end_gets_204_after_a_minute(
    autojump_clock: MockClock, open_api: Any, ask_body: Any
) -> None:
    async with open_api("Hello") as api:
        assert (await api.get(STREAM)).status == 204  # no stream yet
        first = await api.post(CHAT, ask_body())
        await trio.sleep(59)
        assert (await api.get(STREAM)).body == first.body
        await trio.sleep(61)
        assert (await api.get(STREAM)).status == 204
        assert (await api.get("/v1/ui/chat/another/stream")).status == 204


async def test_a_tab_that_was_cut_gets_the_end_although_another_tab_had_it(
    autojump_clock: MockClock, open_api: Any, ask_body: Any, chunks_of: Any
) -> None:
    steps = "Hel", 5.0, "lo"
    async with open_api(*steps, ui_replay_seconds=0) as api, api.open("POST", CHAT, ask_body()) as first:
        await first.until(lambda answer: b"Hel" in answer.body)
        async with api.open("GET", STREAM) as second:
            await second.until(lambda answer: b"Hel" in answer.body)
        await first.until(lambda answer: answer.ended)
        again = await api.get(STREAM)
        assert text_of(chunks_of(again.body)) == "Hello"
        assert (await api.get(STREAM)).status == 204


async def test_readers_of_other_apis_do_not_count_as_the_page(
    autojump_clock: MockClock, open_api: Any, ask_body: Any, chunks_of: Any
) -> None:
    async with open_api("Hel", 5.0, "lo") as api:
        async with api.open("POST", CHAT, ask_body()) as first:
            await first.until(lambda answer: b"Hel" in answer.body)
        await api.get(f"/v1/streams/{first.header('crucible-stream')}/events")
        assert text_of(chunks_of((await api.get(STREAM)).body)) == "Hello"


async def test_a_new_question_stops_the_answer_that_still_runs(
    autojump_clock: MockClock, open_api: Any, ask_body: Any, chunks_of: Any
) -> None:
    async with open_api("Hel", 5.0, "lo") as api, api.open("POST", CHAT, ask_body()) as first:
        await first.until(lambda answer: b"Hel" in answer.body)
        second = await api.post(CHAT, ask_body("And?"))
        await first.until(lambda answer: answer.ended)
        abort, finish = chunks_of(first.body)[-2:]
        assert (abort["type"], finish["finishReason"]) == ("abort", "other")
        assert text_of(chunks_of(second.body)) == "Hello"
        newest, oldest = await api.pipeline.list()
        assert (newest.status, oldest.status) == ("completed", "cancelled")
        assert oldest.id == first.header("crucible-stream")


async def test_the_stopped_answer_ends_before_the_engine_is_called_again(
    autojump_clock: MockClock, open_api: Any, ask_body: Any
) -> None:
    async with open_api("Hel", 5.0, "lo") as api, api.open("POST", CHAT, ask_body()) as first:
        await first.until(lambda answer: b"Hel" in answer.body)
        async with api.open("POST", CHAT, ask_body("And?"), allowance=0) as second:
            await second.until(lambda answer: answer.status is not None)
            await wait_all_tasks_blocked()
            newest, oldest = await api.pipeline.list()
            assert (newest.status, oldest.status) == ("running", "cancelled")
            assert api.journal.count("engine called") == 1


async def test_a_refused_question_stops_nothing(autojump_clock: MockClock, open_api: Any, ask_body: Any) -> None:
    async with open_api("Hel", 5.0, "lo") as api, api.open("POST", CHAT, ask_body()) as first:
        await first.until(lambda answer: b"Hel" in answer.body)
        refused = await api.post(CHAT, ask_body(model="none"))
        assert (refused.status, refused.header("crucible-error")) == (404, "model_not_found")
        await first.until(lambda answer: answer.ended)
        [stream] = await api.pipeline.list()
        assert stream.status == "completed"


async def test_a_repeated_request_with_a_key_joins_and_stops_nothing(
    autojump_clock: MockClock, open_api: Any, ask_body: Any
) -> None:
    async with open_api("Hel", 5.0, "lo") as api:
        async with api.open("POST", CHAT, ask_body(), Idempotency_Key="k") as first:
            await first.until(lambda answer: b"Hel" in answer.body)
        second = await api.post(CHAT, ask_body(), Idempotency_Key="k")
        assert second.header("crucible-replayed") == "true"
        assert second.body.startswith(first.body)
        assert b'"finishReason":"stop"' in second.body
        conflict = await api.post(CHAT, ask_body(chat="chat 2"), Idempotency_Key="k")
        assert (conflict.status, conflict.header("crucible-error")) == (422, "idempotency_conflict")


async def test_stop_ends_the_stream_of_the_chat(
    autojump_clock: MockClock, open_api: Any, ask_body: Any, chunks_of: Any
) -> None:
    async with open_api("Hel", 5.0, "lo") as api, api.open("POST", CHAT, ask_body()) as first:
        await first.until(lambda answer: b"Hel" in answer.body)
        stopped = await api.post(STOP)
        assert (stopped.status, stopped.body) == (204, b"")
        await first.until(lambda answer: answer.ended)
        assert [chunk["type"] for chunk in chunks_of(first.body)[-2:]] == ["abort", "finish"]
        assert (await api.post(STOP)).status == 204
        [stream] = await api.pipeline.list()
        assert stream.status == "cancelled"
        unknown = await api.post("/v1/ui/chat/another/stop")
        assert (unknown.status, unknown.header("crucible-error")) == (404, "stream_not_found")


async def test_a_chat_belongs_to_its_owner(
    autojump_clock: MockClock, open_api: Any, ask_body: Any, chunks_of: Any
) -> None:
    async with open_api("Hel", 5.0, "lo", keys=KEYS) as api:
        async with api.open("POST", CHAT, ask_body(), **bearer("alice")) as first:
            await first.until(lambda answer: b"Hel" in answer.body)
            stream_id = first.header("crucible-stream")
            for name in ("chat 1", stream_id):
                assert (await api.get(f"{CHAT}/{name}/stream", **bearer("bob"))).status == 204
                assert (await api.post(f"{CHAT}/{name}/stop", **bearer("bob"))).status == 404
            assert (await api.get(STREAM)).status == (await api.post(STOP)).status == 401
            # The same id is another chat of another owner, and stops nothing.
            await api.post(CHAT, ask_body(), **bearer("bob"))
            await first.until(lambda answer: answer.ended)
        assert text_of(chunks_of(first.body)) == "Hello"
        assert [stream.status for stream in await api.pipeline.list(owner="alice")] == ["completed"]


async def test_a_stream_token_opens_the_events_of_its_stream_and_nothing_else(
    autojump_clock: MockClock, open_api: Any, ask_body: Any, chunks_of: Any
) -> None:
    async with open_api("Hel", 5.0, "lo", keys=KEYS) as api:
        async with api.open("POST", CHAT, ask_body(), **bearer("alice")) as first:
            await first.until(lambda answer: b"Hel" in answer.body)
        stream_id = first.header("crucible-stream")
        shown = (await api.get(f"/v1/streams/{stream_id}", **bearer("alice"))).json
        token = str(shown["events_url"]).partition("token=")[2]
        read = await api.get(f"{CHAT}/{stream_id}/stream?token={token}")
        assert text_of(chunks_of(read.body)) == "Hello"
        assert (await api.get(f"{STREAM}?token={token}")).status == 401
        assert (await api.post(f"{CHAT}/{stream_id}/stop?token={token}")).status == 401
        assert (await api.post(f"{CHAT}?token={token}", ask_body())).status == 401


async def test_a_chat_that_is_named_like_a_stream_is_not_open_to_the_streams_token(
    autojump_clock: MockClock, open_api: Any, ask_body: Any, chunks_of: Any
) -> None:
    async with open_api("Hello", keys=KEYS) as api:
        first = await api.post(CHAT, ask_body(), **bearer("alice"))
        stream_id = first.header("crucible-stream")
        await api.post(CHAT, ask_body("Secret?", chat=stream_id), **bearer("alice"))
        shown = (await api.get(f"/v1/streams/{stream_id}", **bearer("alice"))).json
        token = str(shown["events_url"]).partition("token=")[2]
        read = await api.get(f"{CHAT}/{stream_id}/stream?token={token}")
        assert read.body == first.body


async def test_any_stream_is_read_by_its_id_as_often_as_wanted(
    autojump_clock: MockClock, open_api: Any, ask_body: Any, chunks_of: Any
) -> None:
    engine = ScriptedEngine(
        Reasoning("Hm."),
        "Hel",
        5.0,
        CallTool("weather", ('{"city":', '"Rome"}'), "c1"),
        capabilities=UPSTREAM_CAPABILITIES,
    )
    async with open_api(engine=engine) as api:
        native = {"input": "Why?", "parameters": {"tools": [{"name": "weather"}]}}
        async with api.open("POST", "/v1/streams", native, Accept="text/event-stream") as first:
            await first.until(lambda answer: b"Hel" in answer.body)
            url = f"{CHAT}/{first.header('crucible-stream')}/stream"
            read = await api.get(url)
            await first.until(lambda answer: answer.ended)
        assert (await api.get(url)).body == read.body
        [call] = [chunk for chunk in chunks_of(read.body) if chunk["type"] == "tool-input-available"]
        assert call == {
            "type": "tool-input-available",
            "toolCallId": "c1",
            "toolName": "weather",
            "input": {"city": "Rome"},
        }
        assert b"tool_call.done" in first.body
        assert (await api.get(f"{CHAT}/str_7Q2M4kWcT0aXn3v9LzB1pg/stream")).status == 204
        assert (await api.post(f"{CHAT}/{first.header('crucible-stream')}/stop")).status == 204


async def test_a_stream_of_a_chat_is_read_on_the_native_wire_at_the_same_time(
    autojump_clock: MockClock, open_api: Any, ask_body: Any, chunks_of: Any
) -> None:
    async with open_api("Hel", 5.0, "lo") as api, api.open("POST", CHAT, ask_body()) as first:
        await first.until(lambda answer: b"Hel" in answer.body)
        native = await api.get(f"/v1/streams/{first.header('crucible-stream')}/events")
        await first.until(lambda answer: answer.ended)
        assert "".join(str(event.get("delta", "")) for event in native.events) == text_of(chunks_of(first.body))


async def test_a_client_that_counts_chunks_gets_the_rest(
    autojump_clock: MockClock, open_api: Any, ask_body: Any, chunks_of: Any
) -> None:
    async with open_api("Hel", 5.0, "lo") as api:
        async with api.open("POST", CHAT, ask_body()) as first:
            await first.until(lambda answer: b"Hel" in answer.body)
            url = f"{CHAT}/{first.header('x-workflow-run-id')}/stream"
            rest = await api.get(f"{url}?startIndex=2")
            await first.until(lambda answer: answer.ended)
        whole = chunks_of(first.body)
        assert chunks_of(rest.body) == whole[2:]
        tail = await api.get(f"{url}?startIndex=-3")
        assert chunks_of(tail.body) == whole[-3:]
        assert tail.header("x-workflow-stream-tail-index") == str(len(whole) - 1)
        assert chunks_of((await api.get(f"{url}?startIndex=-99")).body) == whole
        assert (await api.get(f"{url}?startIndex={len(whole)}")).status == 204
        assert (await api.get(f"{STREAM}?startIndex=0")).body == first.body  # with a number, the chat is read again
        wrong = await api.get(f"{url}?startIndex=x")
        assert (wrong.status, wrong.body) == (400, b"startIndex is an integer")


async def test_an_answer_to_tool_results_goes_on_with_the_message_and_a_replay_has_its_earlier_parts(
    autojump_clock: MockClock, open_api: Any, ask_body: Any, chunks_of: Any
) -> None:
    engine = ScriptedEngine("It is 31.", capabilities=UPSTREAM_CAPABILITIES)
    parts = [
        {"type": "step-start"},
        {"type": "reasoning", "text": "Hm."},
        {"type": "text", "text": "Let me see."},
        {
            "type": "tool-weather",
            "toolCallId": "c1",
            "state": "output-available",
            "input": {"n": 1},
            "output": {"t": 31},
        },
        {"type": "dynamic-tool", "toolName": "x", "toolCallId": "c2", "state": "output-error", "errorText": "No."},
        {"type": "tool-weather", "toolCallId": "c3", "state": "input-available", "input": {}},
        {"type": "tool-weather", "toolCallId": "c4", "state": "output-denied", "input": {}},
        {
            "type": "tool-weather",
            "toolCallId": "c5",
            "state": "approval-responded",
            "input": {},
            "approval": {"id": "a", "approved": False},
        },
        {"type": "data-mood", "data": 1},
    ]
    body = ask_body()
    body["messages"] = [*body["messages"], {"id": "m1", "role": "assistant", "parts": parts}]
    async with open_api(engine=engine) as api:
        async with api.open("POST", CHAT, body, allowance=1) as first:
            await first.until(lambda answer: b"start-step" in answer.body)
        await trio.sleep(300)
        run_id = first.header("x-workflow-run-id")
        replay = await api.get(STREAM)
        plain = await api.get(f"{CHAT}/{run_id}/stream?startIndex=0")
    plain_chunks, chunks = chunks_of(plain.body), chunks_of(replay.body)
    assert plain.body.startswith(first.body)
    assert chunks[0] == plain_chunks[0]
    assert chunks[0]["messageId"] == "m1"
    assert chunks[-len(plain_chunks) + 1 :] == plain_chunks[1:]
    assert chunks[1 : -len(plain_chunks) + 1] == [
        {"type": "start-step"},
        {"type": "reasoning-start", "id": "earlier-1"},
        {"type": "reasoning-delta", "id": "earlier-1", "delta": "Hm."},
        {"type": "reasoning-end", "id": "earlier-1"},
        {"type": "text-start", "id": "earlier-2"},
        {"type": "text-delta", "id": "earlier-2", "delta": "Let me see."},
        {"type": "text-end", "id": "earlier-2"},
        {"type": "tool-input-start", "toolCallId": "c1", "toolName": "weather"},
        {"type": "tool-input-delta", "toolCallId": "c1", "inputTextDelta": '{"n":1}'},
        {"type": "tool-output-available", "toolCallId": "c1", "output": {"t": 31}},
        {"type": "tool-input-start", "toolCallId": "c2", "toolName": "x", "dynamic": True},
        {"type": "tool-input-delta", "toolCallId": "c2", "inputTextDelta": "{}"},
        {"type": "tool-output-error", "toolCallId": "c2", "errorText": "No."},
        {"type": "tool-input-start", "toolCallId": "c3", "toolName": "weather"},
        {"type": "tool-input-delta", "toolCallId": "c3", "inputTextDelta": "{}"},
        {"type": "tool-input-start", "toolCallId": "c4", "toolName": "weather"},
        {"type": "tool-input-delta", "toolCallId": "c4", "inputTextDelta": "{}"},
        {"type": "tool-output-denied", "toolCallId": "c4"},
        {"type": "tool-input-start", "toolCallId": "c5", "toolName": "weather"},
        {"type": "tool-input-delta", "toolCallId": "c5", "inputTextDelta": "{}"},
        {"type": "tool-output-denied", "toolCallId": "c5"},
    ]


async def test_a_silent_model_is_followed_by_pings(autojump_clock: MockClock, open_api: Any, ask_body: Any) -> None:
    async with open_api(25.0, "Hello", heartbeat_seconds=10) as api:
        answer = await api.post(CHAT, ask_body())
    assert answer.body.count(b": ping\n\n") == 2


async def test_a_failed_stream_says_so_and_ends_with_finish(
    autojump_clock: MockClock, open_api: Any, ask_body: Any, chunks_of: Any
) -> None:
    async with open_api("Hel", EngineError("model_failed", "It broke.")) as api:
        answer = await api.post(CHAT, ask_body())
    assert chunks_of(answer.body)[-2:] == [
        {"type": "error", "errorText": "It broke."},
        {"type": "finish", "finishReason": "error"},
    ]


async def test_a_reader_too_many_is_refused(autojump_clock: MockClock, open_api: Any, ask_body: Any) -> None:
    steps = "Hel", 5.0, "lo"
    async with open_api(*steps, max_readers_per_stream=1) as api, api.open("POST", CHAT, ask_body()) as first:
        await first.until(lambda answer: b"Hel" in answer.body)
        refused = await api.get(STREAM)
        assert (refused.status, refused.header("retry-after")) == (429, "5")
        await first.until(lambda answer: answer.ended)


async def test_without_a_chat_id_there_is_no_chat(autojump_clock: MockClock, open_api: Any, ask_body: Any) -> None:
    async with open_api("Hello") as api:
        first = await api.post(CHAT, ask_body(chat=None))
        [stream] = await api.pipeline.list()
        assert stream.facts.label is None
        assert (await api.get(f"{CHAT}/{stream.id}/stream")).body == first.body


async def test_a_chat_id_may_have_slashes(autojump_clock: MockClock, open_api: Any, ask_body: Any) -> None:
    async with open_api("Hel", 5.0, "lo") as api, api.open("POST", CHAT, ask_body(chat="a/b/stream")) as first:
        await first.until(lambda answer: b"Hel" in answer.body)
        assert (await api.get(f"{CHAT}/a/b/stream/stream")).status == 200


async def test_head_opens_no_stream(autojump_clock: MockClock, open_api: Any, ask_body: Any) -> None:
    async with open_api("Hel", 5.0, "lo") as api, api.open("POST", CHAT, ask_body()) as first:
        await first.until(lambda answer: b"Hel" in answer.body)
        head = await api.ask("HEAD", STREAM)
        assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize("chat", ["", "x" * 257, 7])
async def test_an_id_that_no_chat_can_have_is_refused(
    autojump_clock: MockClock, open_api: Any, ask_body: Any, chat: object
) -> None:
    async with open_api("Hello") as api:
        refused = await api.post(CHAT, ask_body(chat=chat))
        assert refused.status == 400
        assert refused.body.endswith(b" (in id)")
        assert b"$" not in refused.body
        assert refused.header("content-type") == "text/plain; charset=utf-8"


async def test_a_forgotten_stream_leaves_its_chat(autojump_clock: MockClock, open_api: Any, ask_body: Any) -> None:
    async with open_api("Hel", 5.0, Finish()) as api:
        async with api.open("POST", CHAT, ask_body()) as first:
            await first.until(lambda answer: b"Hel" in answer.body)
        assert (await api.ask("DELETE", f"/v1/streams/{first.header('crucible-stream')}")).status == 204
        assert (await api.get(STREAM)).status == 204
        assert (await api.post(STOP)).status == 404


@pytest.mark.parametrize("apis", [("openai", "page"), ()])
async def test_the_api_can_be_left_out(
    autojump_clock: MockClock, open_api: Any, ask_body: Any, apis: tuple[str, ...]
) -> None:
    async with open_api("a", apis=apis) as api:
        assert (await api.post(CHAT, ask_body())).status == 404
        assert (await api.ask("OPTIONS", "/v1/chat/completions")).status == (204 if apis else 404)
        assert (await api.stream()).status == 200


async def test_a_reader_that_cannot_be_counted_does_not_stay_attached(
    autojump_clock: MockClock, open_api: Any, ask_body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        message = "the store is away"
        raise OSError(message)

    async with open_api("Hel", 5.0, "lo") as api:
        monkeypatch.setattr(api.pipeline.owed_ends, "reader_came", fail)
        with pytest.raises(ExceptionGroup):
            await api.post(CHAT, ask_body())
        [stream] = await api.pipeline.list()
        assert stream.log.readers == 0
        assert api.number("readers") == 0
