"""`window=n`: a client asks for a number of records, and the model waits until the client asks again."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

WORDS = [f"{number} " for number in range(40)]


def numbers(exchange) -> list[int]:
    return [event["seq"] for event in exchange.events]


@pytest.mark.parametrize("offers_direct_writes", [False, True])
async def test_after_its_window_a_client_gets_only_keep_alives_and_the_model_waits(
    open_api, scripted, offers_direct_writes, autojump_clock: MockClock
) -> None:
    engine = scripted(*[step for word in WORDS for step in (word, 0.1)])
    async with open_api(engine=engine, buffer_tokens=2) as api:
        stream = await api.start(on_disconnect="pause")
        first = f"/v1/streams/{stream}/events?window=5"
        async with api.open("GET", first, offers_direct_writes=offers_direct_writes) as reader:
            await trio.sleep(25)
            assert numbers(reader) == [1, 2, 3, 4, 5]
            assert reader.body.endswith(b"\n\n:\n:\n")
            assert not reader.ended
            assert bool(reader.direct) == offers_direct_writes
            progress = (await api.get(f"/v1/streams/{stream}")).json["progress"]
            assert progress == {"activity": "waiting", "pieces": engine.written + 1, "buffered": 3}
            assert engine.written == 4 + 2  # the four words that were sent, and a full buffer
            # The client asks again, with its last id. That is its acknowledgement.
            then = f"/v1/streams/{stream}/events?window=2&last_event_id={stream}.5"
            async with api.open("GET", then, offers_direct_writes=offers_direct_writes) as next_reader:
                await trio.sleep(1)
                reader.disconnect()
                await trio.sleep(25)
                assert numbers(next_reader) == [6, 7]
        rest = await api.get(f"/v1/streams/{stream}/events?last_event_id={stream}.7")
        assert numbers(rest)[0] == 8
        assert rest.types[-1] == "stream.completed"


async def test_a_window_that_reaches_the_terminal_record_ends_the_body(open_api, autojump_clock: MockClock) -> None:
    async with open_api("one") as api:
        exchange = await api.post("/v1/streams?window=3", {"input": "Why?"}, Accept="text/event-stream")
        assert exchange.types == ["stream.created", "output.delta", "stream.completed"]


async def test_a_finished_stream_waits_for_its_reader_too(open_api, autojump_clock: MockClock) -> None:
    async with open_api("one") as api:
        stream = await api.start()
        await wait_all_tasks_blocked()
        async with api.open("GET", f"/v1/streams/{stream}/events?window=1") as reader:
            await trio.sleep(25)
            assert (reader.types, reader.ended) == (["stream.created"], False)


async def test_another_reader_is_not_held_back(open_api, autojump_clock: MockClock) -> None:
    async with open_api(*[step for word in WORDS for step in (word, 0.1)], buffer_tokens=2) as api:
        stream = await api.start(on_disconnect="pause")
        async with api.open("GET", f"/v1/streams/{stream}/events?window=1") as slow:
            assert (await api.get(f"/v1/streams/{stream}/events")).types[-1] == "stream.completed"
            assert slow.types == ["stream.created"]


@pytest.mark.parametrize("value", ["0", "-1", "x", "", "1.5", "\u0663", "1234567890"])
async def test_a_window_that_is_no_number_is_refused_before_anything_starts(
    open_api, value, autojump_clock: MockClock
) -> None:
    async with open_api("one") as api:
        for method, path in (("POST", "/v1/streams?"), ("GET", "/v1/generate?prompt=x&")):
            answer = await api.ask(method, f"{path}window={value}", {"input": "x"} if method == "POST" else b"")
            assert (answer.status, answer.error["param"]) == (400, "window")
        assert (await api.get("/v1/streams")).json == {"data": []}
