"""The bytes of a body: records, heartbeats, control events, messages, ends."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.content import Reasoning
from crucible_trio.engine import Finish
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage

MESSAGE_BYTES = 16 * 1024


def limits() -> Iterator[int]:
    """The largest size of each message of a body."""
    limit = 1024
    while True:
        yield limit
        limit = min(2 * limit, MESSAGE_BYTES)


UNKNOWN = '"usage":{"input_tokens":null,"output_tokens":null,"reasoning_tokens":null}'


def ended(exchange) -> bool:
    return exchange.ended


async def test_every_record_of_a_completed_stream_has_its_exact_bytes(open_api, autojump_clock: MockClock) -> None:
    steps = (0.25, Reasoning("First, ", 0), Reasoning("ä\u2028", 1), 1, "Hel", 0.5, "lo \x85", 1)
    async with open_api(*steps) as api:
        answer = await api.stream({"input": "Why?", "mode": "deep", "model": "other"})
        stream = answer.stream_id
        created_at = (await api.pipeline.find(stream)).created_at
        records = [
            f'{{"type":"stream.created","seq":1,"stream":"{stream}","mode":"deep","model":"other","created_at":{created_at}}}',
            '{"type":"reasoning.delta","seq":2,"segment":0,"delta":"First, "}',
            '{"type":"reasoning.delta","seq":3,"segment":1,"delta":"ä\\u2028"}',
            '{"type":"reasoning.done","seq":4,"segments":2}',
            '{"type":"output.delta","seq":5,"delta":"Hel"}',
            '{"type":"output.delta","seq":6,"delta":"lo \\u0085"}',
            '{"type":"stream.completed","seq":7,"finish_reason":"stop",'
            '"usage":{"input_tokens":3,"output_tokens":9,"reasoning_tokens":4},'
            '"timings":{"first_token_ms":250.0,"total_ms":2750.0}}',
        ]
        expected = "retry: 1000\n" + "".join(
            f"data: {record}\nid: {stream}.{seq}\n\n" for seq, record in enumerate(records, 1)
        )
        assert answer.body.decode() == expected


@pytest.mark.parametrize(
    ("steps", "fields", "last"),
    [
        (
            ["a", EngineError("upstream_timeout", "It took too long.", retryable=True)],
            {},
            '{"type":"stream.failed","seq":3,"error":{"code":"upstream_timeout","message":"It took too long.",'
            f'"retryable":true}},{UNKNOWN},"timings":{{"first_token_ms":0.0,"total_ms":0.0}}}}',
        ),
        (
            [5, Finish(usage=Usage(input_tokens=1))],
            {},
            '{"type":"stream.completed","seq":2,"finish_reason":"stop",'
            '"usage":{"input_tokens":1,"output_tokens":null,"reasoning_tokens":null},'
            '"timings":{"first_token_ms":null,"total_ms":5000.0}}',
        ),
        (
            ["a", Finish("length")],
            {},
            f'{{"type":"stream.incomplete","seq":3,"reason":"max_output_tokens",{UNKNOWN},'
            '"timings":{"first_token_ms":0.0,"total_ms":0.0}}',
        ),
        *(
            (
                steps,
                {"deadlines": {f"{name}_seconds": 2}},
                f'{{"type":"stream.incomplete","seq":{seq},"reason":"{name}_deadline",{UNKNOWN},'
                f'"timings":{{"first_token_ms":{first},"total_ms":2000.0}}}}',
            )
            for name, steps, seq, first in (
                ("first_token", [60, "a"], 2, "null"),
                ("idle", ["a", 60, "b"], 3, "0.0"),
                ("total", ["a", 60, "b"], 3, "0.0"),
            )
        ),
    ],
)
async def test_every_other_end_has_its_exact_bytes(open_api, steps, fields, last, autojump_clock: MockClock) -> None:
    async with open_api(*steps) as api:
        answer = await api.stream({"input": "Why?", **fields})
        lines = answer.body.decode().split("\n")
        seq = answer.events[-1]["seq"]
        assert lines[-4:] == [f"data: {last}", f"id: {answer.stream_id}.{seq}", "", ""]


async def test_a_full_log_ends_as_incomplete_with_everything_recorded(open_api, autojump_clock: MockClock) -> None:
    async with open_api(*["x" * 1000, 0.1] * 20, stream_log_bytes=10_240) as api:
        answer = await api.stream()
        assert answer.events[-1]["reason"] == "log_limit"
        assert answer.types == ["stream.created", *["output.delta"] * 3, "stream.incomplete"]


async def test_a_cancelled_stream_has_its_exact_bytes(open_api, autojump_clock: MockClock) -> None:
    async with open_api(Reasoning("Hm", 0), trio.Event()) as api, api.open_stream() as reader:
        await reader.until_event(2)
        await trio.sleep(1.5)
        await api.post(f"/v1/streams/{reader.stream_id}/cancel")
        await reader.until(ended)
        tail = (
            f'data: {{"type":"reasoning.done","seq":3,"segments":1}}\nid: {reader.stream_id}.3\n\n'
            f'data: {{"type":"stream.cancelled","seq":4,"by":"client",{UNKNOWN},'
            f'"timings":{{"first_token_ms":0.0,"total_ms":1500.0}}}}\nid: {reader.stream_id}.4\n\n'
        )
        assert reader.body.endswith(tail.encode())


async def test_an_unexpected_failure_reveals_nothing(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", ValueError("secret prompt")) as api:
        answer = await api.stream()
        assert b"secret" not in answer.body
        assert answer.events[-1]["error"] == {
            "code": "engine_error",
            "message": "The engine failed.",
            "retryable": False,
        }


async def test_every_body_begins_with_retry_and_has_the_headers_of_the_protocol(
    open_api, autojump_clock: MockClock
) -> None:
    async with open_api("a", retry_milliseconds=1000) as api:
        first = await api.stream(Idempotency_Key="k")
        stream = first.stream_id
        for answer in (
            first,
            await api.stream(Idempotency_Key="k"),
            await api.stream(Last_Event_Id=f"{stream}.1"),
            await api.stream(Last_Event_Id=f"{stream}.3"),
            await api.get(f"/v1/streams/{stream}/events"),
            await api.get(f"/v1/streams/{stream}/events?trace=none"),
            await api.get("/v1/generate?prompt=x"),
        ):
            assert answer.body.startswith(b"retry: 1000\ndata: ")
            assert answer.body.count(b"retry:") == 1
            assert answer.body.endswith(b"\n\n")
            assert b"event:" not in answer.body
            assert b"\r" not in answer.body
            headers = dict(answer.headers)
            for name in ("location", "crucible-replayed"):
                headers.pop(name, None)
            assert headers == {
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-store, no-transform",
                "x-accel-buffering": "no",
                "x-content-type-options": "nosniff",
                "crucible-stream": answer.stream_id,
            }


async def test_nothing_is_compressed_and_no_connection_header_is_sent(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a" * 10_000) as api:
        answer = await api.stream(Accept_Encoding="gzip, br", Connection="keep-alive")
        for name in ("content-encoding", "connection", "keep-alive", "content-length", "transfer-encoding"):
            assert not answer.has_header(name)


async def test_a_streams_id_has_128_random_bits_in_the_letters_of_the_protocol(
    open_api, autojump_clock: MockClock
) -> None:
    async with open_api("a") as api:
        ids = {await api.start() for _ in range(50)}
        assert len(ids) == 50
        assert all(re.fullmatch(r"str_[A-Za-z0-9_-]{22}", stream) for stream in ids)


async def test_text_never_holds_half_a_character(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a\ud83d", 1, "\ude00b", 1, "\udc00", 1, "\ud83d", 1, "c") as api:
        answer = await api.stream()
        text = "".join(event.get("delta", "") for event in answer.events)
        assert text == "a\U0001f600b\ufffd\ufffdc"


async def test_the_reconnection_time_can_be_set(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", retry_milliseconds=1) as api:
        assert (await api.stream()).body.startswith(b"retry: 1\ndata: ")


# Heartbeats


async def test_a_heartbeat_is_one_comment_line_after_silence_on_the_wire(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", 25, "b", 9, "c", 9, Finish()) as api:
        begin = trio.current_time()
        reader = await api.stream()
        assert [message if message == b":\n" else b"event" for message in reader.messages] == [
            b"event",  # record 1
            b"event",
            b":\n",
            b":\n",
            b"event",
            b"event",
            b"event",
        ]
        assert [time - begin for time in reader.times] == [0, 0, 10, 20, 25, 34, 43]
        assert reader.types == ["stream.created", *["output.delta"] * 3, "stream.completed"]


async def test_the_time_between_heartbeats_is_a_setting(open_api, autojump_clock: MockClock) -> None:
    async with open_api(10, "a", heartbeat_seconds=3) as api:
        answer = await api.stream()
        assert answer.messages.count(b":\n") == 3


@pytest.mark.parametrize("view", ["final", "none"])
async def test_records_that_a_dialect_omits_do_not_delay_heartbeats(open_api, view, autojump_clock: MockClock) -> None:
    steps = [step for number in range(12) for step in (2, Reasoning(f"{number} ", 0))]
    async with open_api(*steps, "a") as api:
        answer = await api.stream({"input": "Why?", "trace": view})
        assert answer.messages.count(b":\n") == 2  # at 10 and at 20 of 24 seconds
        assert answer.messages[0].count(b"\n\n") == 1
        assert answer.messages[1:3] == [b":\n", b":\n"]


async def test_silence_begins_when_the_last_message_has_been_taken(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", trio.Event()) as api, api.open_stream(allowance=1) as reader:
        await trio.sleep(100)  # the client takes the second message only now
        reader.allow(9)
        await reader.until_event(2)
        await trio.sleep(9)
        assert b":\n" not in reader.messages
        await trio.sleep(2)
        assert reader.messages[-1] == b":\n"


# Messages


async def test_messages_grow_to_16_kib_and_hold_as_many_frames_as_fit(open_api, autojump_clock: MockClock) -> None:
    async with open_api(*[step for _ in range(300) for step in ("x" * 400, 0.001)]) as api:
        answer = await api.stream({"input": "Why?", "on_disconnect": "continue"})
        again = await api.get(f"/v1/streams/{answer.stream_id}/events")
        assert again.body == answer.body
        # A message holds complete events only, as many as fit.
        for limit, message, following in zip(limits(), again.messages, again.messages[1:], strict=False):
            assert message.endswith(b"\n\n")
            assert len(message) <= limit < len(message) + len(following.partition(b"\n\n")[0]) + 2


async def test_a_client_that_is_always_cut_in_its_second_chunk_gets_everything(
    open_api, autojump_clock: MockClock
) -> None:
    async with open_api(*[step for _ in range(100) for step in ("x" * 100, 0.001)]) as api:
        answer = await api.stream({"input": "Why?", "on_disconnect": "continue"})
        url = f"/v1/streams/{answer.stream_id}/events"
        kept: list[dict[str, object]] = []
        while not kept or kept[-1]["type"] != "stream.completed":
            after = kept[-1]["seq"] if kept else 0
            async with api.open("GET", url, Last_Event_Id=f"{answer.stream_id}.{after}", allowance=1) as reader:
                await reader.until(lambda exchange: exchange.messages)
                [*events] = reader.events
            assert 1 <= len(events) <= 10
            kept += events
        assert kept == answer.events


async def test_a_larger_frame_is_sent_in_pieces_without_a_heartbeat_inside(open_api, autojump_clock: MockClock) -> None:
    trace = "".join(f"{number} " for number in range(12_000))
    steps = [Reasoning(trace[start : start + 1000], 0) for start in range(0, len(trace), 1000)]
    async with (
        open_api(*steps, "a", trio.Event()) as api,
        api.open_stream({"input": "Why?", "trace": "final"}, allowance=1) as reader,
    ):
        for taken in range(1, 8):
            await trio.sleep(100)
            assert len(reader.messages) == taken
            reader.allow(1)
        await reader.until_event(3)
        assert [len(message) for message in reader.messages[1:6]] == [2048, 4096, 8192, MESSAGE_BYTES, MESSAGE_BYTES]
        assert b"\n\n" not in b"".join(reader.messages[1:6])
        assert [event.get("trace") for event in reader.events] == [None, [trace], None]


async def test_the_cursor_moves_only_after_a_frames_last_piece(open_api, scripted, autojump_clock: MockClock) -> None:
    engine = scripted(*[Reasoning("x" * 1000, 0)] * 50, *"abcdefgh")
    async with (
        open_api(engine=engine, buffer_tokens=1) as api,
        api.open_stream({"input": "Why?", "trace": "final"}, allowance=1) as reader,
    ):
        # `reasoning.done` and "a" are recorded, and "b" is buffered. An unmoved cursor allows no more.
        for _ in range(6):  # pieces of the trace: 50,000 bytes
            await wait_all_tasks_blocked()
            assert engine.written == 52
            reader.allow(1)
        await wait_all_tasks_blocked()
        assert engine.written > 52


# Ends and control events


async def test_a_body_ends_cleanly_with_the_terminal_record(open_api, autojump_clock: MockClock) -> None:
    for steps in (["a"], [], [EngineError("x", "x")]):
        async with open_api(*steps) as api:
            answer = await api.stream()
            assert answer.ended
            assert not answer.cut_its_own_end
            assert answer.types.count(answer.types[-1]) == 1
            assert answer.types[-1] in {"stream.completed", "stream.failed"}


async def test_draining_is_announced_once_to_each_reader_and_bodies_still_end_with_the_terminal_record(
    open_api, autojump_clock: MockClock
) -> None:
    announcement = b'data: {"type":"server.draining","reconnect_in_ms":1000}\n\n'
    async with open_api("a", over := trio.Event(), "b") as api, trio.open_nursery() as nursery:
        stream = await api.start()
        url = f"/v1/streams/{stream}/events"
        async with api.open("GET", url) as first, api.open("GET", f"{url}?trace=none") as second:
            await first.until_event(2)
            await second.until_event(2)
            nursery.start_soon(api.pipeline.drain, 1000)
            await first.until_event(3)
            await second.until_event(3)
            assert first.messages[-1] == second.messages[-1] == announcement
            # A reader that was cut can attach again. It receives the announcement, too.
            async with api.open("GET", url, Last_Event_Id=f"{stream}.2") as third:
                await third.until(lambda exchange: announcement in exchange.body)
                await trio.sleep(45)
                over.set()
                for reader in (first, second, third):
                    await reader.until(ended)
                    assert reader.body.count(announcement) == 1
                    assert reader.messages.count(b":\n") == 4
                    assert b'"type":"stream.completed"' in reader.messages[-1]


async def test_drained_streams_end_cancelled_by_shutdown(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", trio.Event()) as api, api.open_stream() as reader:
        await reader.until_event(2)
        await api.pipeline.drain(5)
        await reader.until(ended)
        types = [line for line in reader.body.decode().split("\n") if line.startswith("data: ")]
        assert '"type":"server.draining"' in types[-2]
        assert '"type":"stream.cancelled"' in types[-1]
        assert '"by":"shutdown"' in types[-1]


async def test_a_reconnect_while_readers_are_at_their_limit_gets_busy_and_a_clean_end(
    open_api, autojump_clock: MockClock
) -> None:
    async with open_api("a", over := trio.Event(), max_readers_per_stream=1) as api:
        async with api.open_stream(Idempotency_Key="k") as first:
            await first.until_event(2)
            stream = first.stream_id
            for method, target, headers in (
                ("GET", f"/v1/streams/{stream}/events", {}),
                ("GET", f"/v1/streams/{stream}/events", {"Last_Event_Id": f"{stream}.2"}),
                ("GET", f"/v1/generate?last_event_id={stream}.1", {}),
                ("POST", "/v1/streams", {"Last_Event_Id": f"{stream}.1"}),
            ):
                busy = await api.ask(method, target, **headers)
                assert busy.status == 200
                assert busy.body == b'retry: 1000\ndata: {"type":"server.busy","reconnect_in_ms":1000}\n\n'
                assert busy.ended
            busy = await api.stream(Idempotency_Key="k")
            assert busy.header("crucible-replayed") == "true"
            assert b"server.busy" in busy.body
            assert api.number("readers") == 1
        over.set()
        again = await api.stream(Idempotency_Key="k")
        assert again.types == ["stream.created", "output.delta", "stream.completed"]
