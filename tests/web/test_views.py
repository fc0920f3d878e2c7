"""`trace=segments|final|none` selects one of three dialects of a log. All have the same offsets."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.content import Reasoning

VIEWS = ("segments", "final", "none")
# Two runs of reasoning, with an answer between and after them.
STEPS = (
    Reasoning("one ", 0),
    0.1,
    Reasoning("ä\u2028 ", 0),
    0.1,
    Reasoning("two", 1),
    0.1,
    "Hel",
    0.1,
    Reasoning("three", 2),
    0.1,
    "lo",
    0.1,
    "!",
)
TYPES = {
    "segments": "c rrrD o rD oo e",
    "final": "c D o D oo e",
    "none": "c o oo e",
}
LETTERS = {
    "stream.created": "c",
    "reasoning.delta": "r",
    "reasoning.done": "D",
    "output.delta": "o",
    "stream.completed": "e",
}


def letters(exchange) -> str:
    return "".join(LETTERS[event_type] for event_type in exchange.types)


async def read_all_views(api) -> tuple[str, dict[str, list[dict]]]:
    stream = (await api.stream({"input": "Why?", "on_disconnect": "continue"})).stream_id
    return stream, {view: (await api.get(f"/v1/streams/{stream}/events?trace={view}")).events for view in VIEWS}


@pytest.mark.parametrize("default", [None, *VIEWS])
async def test_the_body_names_the_default_trace_and_the_query_overrides_it(
    open_api, default, autojump_clock: MockClock
) -> None:
    async with open_api(*STEPS) as api:
        answer = await api.stream({"input": "Why?"} | ({"trace": default} if default else {}))
        assert letters(answer) == TYPES[default or "segments"].replace(" ", "")
        stream = answer.stream_id
        for method, target, headers in (
            ("GET", f"/v1/streams/{stream}/events", {}),
            ("GET", f"/v1/generate?last_event_id={stream}.0", {}),
            ("POST", "/v1/streams", {"Last_Event_Id": f"{stream}.0"}),
        ):
            assert (await api.ask(method, target, **headers)).body == answer.body
            for view in VIEWS:
                viewed = await api.ask(method, f"{target}{'&' if '?' in target else '?'}trace={view}", **headers)
                assert letters(viewed) == TYPES[view].replace(" ", "")


async def test_final_has_the_texts_by_segment_in_reasoning_done(open_api, autojump_clock: MockClock) -> None:
    async with open_api(*STEPS) as api:
        stream, views = await read_all_views(api)
        assert [event for event in views["final"] if event["type"] == "reasoning.done"] == [
            {"type": "reasoning.done", "seq": 5, "segments": 2, "trace": ["one ä\u2028 ", "two"]},
            {"type": "reasoning.done", "seq": 8, "segments": 1, "trace": ["three"]},
        ]
        assert all("trace" not in event for event in views["segments"])
        body = (await api.get(f"/v1/streams/{stream}/events?trace=final")).body.decode()
        record = '{"type":"reasoning.done","seq":5,"segments":2,"trace":["one ä\\u2028 ","two"]}'
        assert f"data: {record}\nid: {stream}.5\n\n" in body


async def test_a_dialect_omits_records_and_changes_nothing_else(open_api, autojump_clock: MockClock) -> None:
    async with open_api(*STEPS) as api:
        _, views = await read_all_views(api)
        hidden = {"segments": (), "final": ("reasoning.delta",), "none": ("reasoning.delta", "reasoning.done")}
        for view in VIEWS:
            kept = [event for event in views["segments"] if event["type"] not in hidden[view]]
            assert [{**event, "trace": None} for event in views[view]] == [{**event, "trace": None} for event in kept]


@pytest.mark.parametrize("view", VIEWS)
async def test_an_offset_of_any_dialect_resumes_in_any_other(open_api, view, autojump_clock: MockClock) -> None:
    async with open_api(*STEPS) as api:
        stream, views = await read_all_views(api)
        whole = views[view]
        # Every offset of the log is valid in every dialect.
        for after in range(len(views["segments"])):
            rest = await api.get(f"/v1/streams/{stream}/events?trace={view}", Last_Event_Id=f"{stream}.{after}")
            assert rest.events == [event for event in whole if event["seq"] > after]


@pytest.mark.parametrize("view", ["final", "none"])
async def test_resuming_in_the_middle_of_a_long_trace_still_gives_all_of_it(
    open_api, view, autojump_clock: MockClock
) -> None:
    # More records than are folded at a time.
    steps = [step for number in range(200) for step in (Reasoning(f"{number:04}" * 200, number // 100), 0.01)]
    async with open_api(*steps, "a") as api:
        stream, views = await read_all_views(api)
        last = views["segments"][-1]["seq"]
        for after in (1, 99, 100, 101, last - 4, last - 3, last - 2, last - 1):
            rest = await api.get(f"/v1/streams/{stream}/events?trace={view}", Last_Event_Id=f"{stream}.{after}")
            assert rest.events == [event for event in views[view] if event["seq"] > after]
        if view == "final":
            assert [len(text) for text in views["final"][1]["trace"]] == [80_000, 80_000]


async def test_a_stream_that_ends_while_reasoning_sends_its_trace_at_the_end(
    open_api, autojump_clock: MockClock
) -> None:
    async with open_api(Reasoning("Hm", 0), ValueError()) as api:
        answer = await api.stream({"input": "Why?", "trace": "final"})
        assert answer.types == ["stream.created", "reasoning.done", "stream.failed"]
        assert answer.events[1]["trace"] == ["Hm"]


@pytest.mark.parametrize("view", ["final", "none"])
async def test_omitted_records_give_the_engine_room(open_api, scripted, view, autojump_clock: MockClock) -> None:
    engine = scripted(*[Reasoning("x", 0)] * 1000, trio.Event())
    async with (
        open_api(engine=engine, buffer_tokens=2) as api,
        api.open_stream({"input": "Why?", "trace": view}) as reader,
    ):
        await wait_all_tasks_blocked()
        assert engine.written == 1000
        assert reader.body.count(b"\n\n") == 1


@pytest.mark.parametrize("view", VIEWS)
async def test_an_unread_message_holds_back_the_engine_in_every_dialect(
    open_api, scripted, view, autojump_clock: MockClock
) -> None:
    engine = scripted("a", *[Reasoning("x", 0)] * 1000)
    async with open_api(engine=engine, buffer_tokens=2) as api:
        async with api.open_stream({"input": "Why?", "trace": view}, allowance=1) as reader:
            await trio.sleep(1000)  # the answer's first piece stays unread
            assert reader.body.count(b"\n\n") == 1
            assert engine.written <= 2 * 2 + 1
        # The engine does not continue when that reader has left.
        await trio.sleep(1)
        assert engine.written <= 2 * 2 + 1


async def test_a_dialect_that_omits_many_records_lets_others_run_and_ends(open_api, autojump_clock: MockClock) -> None:
    steps = [step for _ in range(300) for step in (Reasoning("x" * 200, 0), 0.001)]
    async with open_api(*steps) as api:
        stream = await api.start()
        await trio.sleep(10)
        answer = await api.get(f"/v1/streams/{stream}/events?trace=none")
        assert answer.types == ["stream.created", "stream.completed"]
