"""An answer whose connection was lost goes on in another request, or the stream fails. Never a doubled text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from crucible_trio import Request, Sampling, open_pipeline
from crucible_trio.content import Continued, Reasoning, Refusal, Text
from crucible_trio.engine import Finish
from crucible_trio.engines.upstream import open_upstream, retries
from crucible_trio.engines.upstream.continuing import MAX_CONTINUATIONS, MIN_REPEATED, ContinuedAnswer, RepeatCheck
from crucible_trio.errors import EngineError
from crucible_trio.records import AnyRecord, OutputDelta, StreamContinued, UpstreamFields, Usage
from crucible_trio.request import JsonObjectFormat, Message, Parameters, Tool
from crucible_trio.settings.upstreams import Prefill

VLLM = Prefill(body={"continue_final_message": True, "add_generation_prompt": False})
ASK = Request("Why?")
TEXT = "The quick brown fox jumps over the lazy dog."
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(delta: dict[str, Any], **more: Any) -> bytes:
    data = {"choices": [{"index": 0, "delta": delta, "finish_reason": more.pop("finish", None)}]} | more
    event = f"data: {json.dumps(data)}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


def words(text: str) -> list[bytes]:
    """One chunk for each word."""
    return [chunk({"content": word}) for word in text.replace(" ", " \0").split("\0")]


END = [chunk({}, finish="stop"), b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"]


def usage(prompt: int, completion: int) -> bytes:
    event = f"data: {json.dumps({'choices': [], 'usage': {'prompt_tokens': prompt, 'completion_tokens': completion}})}"
    return b"%x\r\n%b\n\n\r\n" % (len(event) + 2, event.encode())


@asynccontextmanager
async def upstream(*answers: list[bytes] | bytes) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives the answers in order, each on a connection that it closes then.

    Yields:
        Its base URL, and the bodies of the requests.
    """
    bodies: list[dict[str, Any]] = []
    rest = list(answers)

    async def handle(stream: trio.SocketStream) -> None:
        bodies.append(await read_request(stream))
        answer = rest.pop(0)
        await stream.send_all(answer if isinstance(answer, bytes) else HEAD + b"".join(answer))

    async with serving(handle) as url:
        yield url, bodies


@asynccontextmanager
async def serving(handle: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
            yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1"
            nursery.cancel_scope.cancel()


async def read_request(stream: trio.SocketStream) -> dict[str, Any]:
    received = b""
    while b"\r\n\r\n" not in received:
        received += await stream.receive_some()
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += await stream.receive_some()
    return json.loads(body)


async def run(url: str, request: Request = ASK, prefill: Prefill | None = VLLM, **options: Any) -> tuple[Any, ...]:
    """The final snapshot and the records of a stream with this upstream."""
    async with (
        open_upstream(url, model="m", prefill=prefill, **options) as engine,
        open_pipeline(engine) as pipeline,
    ):
        stream = await pipeline.start(request)
        async with stream.attach() as reader:
            records = [record async for record in reader]
        return stream.snapshot(), records


def continued(records: list[AnyRecord]) -> list[int]:
    return [record.characters for record in records if isinstance(record, StreamContinued)]


async def test_fields_that_are_passed_on_do_not_stop_an_answer_from_going_on() -> None:
    first = [chunk({"content": TEXT[:20]}, tier="flex"), chunk({}, last=1)]
    second = [chunk({}, tier="flex", last=1, next=2), *words(TEXT[20:]), *END]
    async with upstream(first, second) as (url, _):
        snapshot, records = await run(url)
    assert (snapshot.status, snapshot.output) == ("completed", TEXT)
    assert continued(records) == [20]
    fields = [record.fields for record in records if isinstance(record, UpstreamFields)]
    assert fields == [{"tier": "flex"}, {"last": 1}, {"next": 2}]  # each once, over both requests


async def test_a_lost_answer_goes_on_in_another_request() -> None:
    async with upstream(words(TEXT[:20]), [*words(TEXT[20:]), *END]) as (url, bodies):
        snapshot, records = await run(url, Request("Why?", mode="deep"))
    assert (snapshot.status, snapshot.output) == ("completed", TEXT)
    assert continued(records) == [20]
    [at] = [index for index, record in enumerate(records) if isinstance(record, StreamContinued)]
    before = "".join(record.delta for record in records[:at] if isinstance(record, OutputDelta))
    assert before == TEXT[:20]
    first, second = bodies
    assert second["messages"] == [
        *first["messages"],
        {"role": "assistant", "content": TEXT[:19]},
    ]  # no space at its end
    assert (second["continue_final_message"], second["add_generation_prompt"]) == (True, False)
    assert "continue_final_message" not in first
    # The trace is over.
    assert first["chat_template_kwargs"] == {"enable_thinking": True}
    assert second["chat_template_kwargs"] == {"enable_thinking": False}


async def test_the_stop_string_that_ended_a_continued_answer_is_in_the_result() -> None:
    end = chunk({}, finish="stop", stopping_word="END")
    async with upstream(words(TEXT[:20]), [*words(TEXT[20:]), end, *END[1:]]) as (url, _):
        _, records = await run(url, Request("Why?", sampling=Sampling(stop=("END",))))
    assert continued(records) == [20]
    assert records[-1].stop_string == "END"


async def test_fields_of_the_last_message_are_sent() -> None:
    prefill = Prefill(message={"prefix": True}, echoes=True)
    async with upstream(words(TEXT[:9]), [*words(TEXT), *END]) as (url, bodies):
        snapshot, _ = await run(url, prefill=prefill)
    assert snapshot.output == TEXT
    assert bodies[1]["messages"][-1] == {"role": "assistant", "content": TEXT[:9], "prefix": True}


async def test_without_the_setting_a_lost_answer_is_a_failure() -> None:
    async with upstream(words(TEXT[:20])) as (url, bodies):
        snapshot, records = await run(url, prefill=None)
    assert (snapshot.status, snapshot.output, len(bodies)) == ("failed", TEXT[:20], 1)
    assert continued(records) == []


async def test_after_the_trace_the_answer_goes_on() -> None:
    trace = chunk({"reasoning_content": "Hm. "})
    tags = [chunk({"content": "<think>So."}), chunk({"content": "</think>\n\n"})]
    for first in ([trace], tags):
        async with upstream([*first, *words(TEXT[:20])], [*words(TEXT[20:]), *END]) as (url, _):
            snapshot, records = await run(url, Request("Why?", mode="deep"), starts_in_trace=["standard"] * (not tags))
        assert (snapshot.status, snapshot.output) == ("completed", TEXT)
        assert continued(records) == [20]
        assert len(snapshot.trace) == 1


async def test_a_text_that_began_inside_the_trace_goes_on_outside_it() -> None:
    modes: Any = ["standard", "deep"]
    async with upstream(words(f"Hm. </think>{TEXT[:20]}"), [*words(TEXT[20:]), *END]) as (url, _):
        snapshot, _ = await run(url, Request("Why?", mode="deep"), starts_in_trace=modes)
    assert (snapshot.status, snapshot.output, snapshot.trace) == ("completed", TEXT, ["Hm. "])


@pytest.mark.parametrize("losses", [MAX_CONTINUATIONS, MAX_CONTINUATIONS + 1])
async def test_an_answer_goes_on_a_bounded_number_of_times(losses: int) -> None:
    parts = [TEXT[:10], TEXT[10:20], TEXT[20:30], TEXT[30:]][: losses + 1]
    answers = [words(part) for part in parts[:-1]]
    async with upstream(*answers, [*words(parts[-1]), *END]) as (url, bodies):
        snapshot, records = await run(url)
    assert len(bodies) == MAX_CONTINUATIONS + 1
    assert continued(records) == [10, 20]
    if losses == MAX_CONTINUATIONS:
        assert (snapshot.status, snapshot.output) == ("completed", TEXT[:30])
    else:
        assert (snapshot.status, snapshot.output) == ("failed", TEXT[:30])
        assert snapshot.error.code == "upstream_ended_early"


@pytest.mark.parametrize(
    "first",
    [
        [chunk({"reasoning_content": "Hm"})],
        [*words(TEXT), chunk({"reasoning_content": "Hm"})],
        [*words(TEXT), chunk({"refusal": "No"})],
        [*words(TEXT), chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}]})],
        [chunk({"content": " \n "})],
        [chunk({"content": "x\ud83c"})],
    ],
    ids=[
        "in the trace",
        "in a second trace",
        "in a refusal",
        "in a tool call",
        "space",
        "half a character",
    ],
)
async def test_only_text_of_the_answer_is_continued(first: list[bytes]) -> None:
    async with upstream(first, [*words(" More."), *END]) as (url, bodies):
        snapshot, _ = await run(url)
    assert (snapshot.status, len(bodies)) == ("failed", 1)
    assert snapshot.error.code == "upstream_ended_early"


async def test_a_clean_end_without_a_finish_is_not_continued() -> None:
    # The server may never send one: then the text is whole, and would get a second end.
    async with upstream([*words(TEXT), b"0\r\n\r\n"]) as (url, bodies):
        snapshot, _ = await run(url)
    assert (snapshot.status, len(bodies)) == ("failed", 1)


async def test_a_cut_behind_the_finish_is_not_continued() -> None:
    early = chunk({"content": "Hi"}, finish="stop")
    async with upstream([early]) as (url, bodies):
        snapshot, _ = await run(url)
    assert (snapshot.status, len(bodies)) == ("failed", 1)


@pytest.mark.parametrize(
    "request_",
    [
        Request("Why?", parameters=Parameters(response_format=JsonObjectFormat())),
        Request("Why?", parameters=Parameters(tools=(Tool("f"),), tool_choice="required")),
        Request("Why?", extra={"guided_regex": "a"}),
        Request((Message("user", "Why?"), Message("assistant", "Because"))),
        Request("Why?", max_output_tokens=2),
    ],
    ids=["format", "tool choice", "extra", "prefilled", "limit"],
)
def test_a_request_whose_text_may_not_go_on_freely_is_not_continued(request_: Request) -> None:
    answer = ContinuedAnswer(request_, VLLM)
    list(answer.pass_on([Text("a"), Text("b")]))
    answer.lose(Usage(), may_lack_text=False)
    assert answer.next_request() is None


def test_skipped_text_is_not_continued() -> None:
    answer = ContinuedAnswer(ASK, VLLM)
    list(answer.pass_on([Text("a")]))
    answer.lose(Usage(), may_lack_text=True)
    assert answer.next_request() is None


@pytest.mark.parametrize(("counted", "rest"), [(None, 7), (5, 5)])
def test_the_rest_of_the_limit_is_asked_for(counted: int | None, rest: int) -> None:
    answer = ContinuedAnswer(Request("Why?", max_output_tokens=10), VLLM)
    list(answer.pass_on([Reasoning("a", 0), Text("b"), Text("c")]))
    answer.lose(Usage(3, counted, None), may_lack_text=False)
    following = answer.next_request()
    assert following is not None
    assert following.max_output_tokens == rest


async def test_a_stream_without_a_cut_is_as_without_the_setting() -> None:
    async with upstream([*words(TEXT), usage(3, 5), *END]) as (url, bodies):
        snapshot, records = await run(url)
    assert (snapshot.status, snapshot.output, snapshot.usage) == ("completed", TEXT, Usage(3, 5, None))
    assert (len(bodies), continued(records)) == (1, [])


async def test_usage_is_the_sum() -> None:
    first = [*words(TEXT[:20]), usage(3, 5)]
    async with upstream(first, [*words(TEXT[20:]), usage(8, 6), *END]) as (url, _):
        snapshot, _ = await run(url)
    assert snapshot.usage == Usage(11, 11, None)


@pytest.mark.parametrize(
    ("before", "last", "total"),
    [
        ([Usage(3, 5, 2)], Usage(8, 6, None), Usage(11, 11, 2)),
        ([Usage(3, 5, 2), Usage(1, 1, 0)], Usage(8, 6, 0), Usage(12, 12, 2)),
        ([Usage()], Usage(8, 6, 0), Usage()),
    ],
)
def test_a_count_that_one_reply_lacks_is_not_guessed(before: list[Usage], last: Usage, total: Usage) -> None:
    answer = ContinuedAnswer(ASK, VLLM)
    for counts in before:
        answer.lose(counts, may_lack_text=False)
    assert answer.finish(Finish("stop", last)) == Finish("stop", total)


@pytest.mark.parametrize(
    "reply",
    [TEXT, TEXT[:20], f"  {TEXT}", f"{TEXT[:MIN_REPEATED]} but now different."],
    ids=["begins again", "repeats", "with spaces before", "changes its mind"],
)
async def test_a_reply_that_repeats_the_answer_is_a_failure_and_never_a_doubled_text(reply: str) -> None:
    async with upstream(words(TEXT[:20]), [*words(reply), *END]) as (url, bodies):
        snapshot, records = await run(url)
    assert (snapshot.status, snapshot.output, len(bodies)) == ("failed", TEXT[:20], 2)
    assert snapshot.error.code == "upstream_ended_early"
    assert "repeats the answer" in snapshot.error.message
    assert continued(records) == []


async def test_a_server_that_echoes_goes_on_behind_the_echo() -> None:
    async with upstream(words(TEXT[:20]), [*words(TEXT), *END]) as (url, _):
        snapshot, records = await run(url, prefill=Prefill(echoes=True))
    assert (snapshot.status, snapshot.output, continued(records)) == ("completed", TEXT, [20])


@pytest.mark.parametrize("reply", [TEXT[20:], TEXT[:10], "T", ""])
async def test_a_server_that_should_echo_and_does_not_is_a_failure(reply: str) -> None:
    answer = [*words(reply), *END] if reply else END
    async with upstream(words(TEXT[:20]), answer) as (url, _):
        snapshot, _ = await run(url, prefill=Prefill(echoes=True))
    assert (snapshot.status, snapshot.output) == ("failed", TEXT[:20])


async def test_a_reply_that_reasons_again_is_a_failure() -> None:
    for reply in ([chunk({"reasoning_content": "Hm"})], words("<think>Hm</think>fox")):
        async with upstream(words(TEXT[:20]), [*reply, *END]) as (url, _):
            snapshot, _ = await run(url)
        assert (snapshot.status, snapshot.output, snapshot.trace) == ("failed", TEXT[:20], [])


async def test_a_reply_without_text_ends_the_answer() -> None:
    async with upstream(words(TEXT), END) as (url, _):
        snapshot, records = await run(url)
    assert (snapshot.status, snapshot.output, continued(records)) == ("completed", TEXT, [len(TEXT)])


async def test_a_reply_that_is_lost_before_it_is_decided_is_asked_for_again() -> None:
    async with upstream(words(TEXT[:20]), words("The "), [*words(TEXT[20:]), *END]) as (url, bodies):
        snapshot, records = await run(url)
    assert (snapshot.status, snapshot.output, continued(records)) == ("completed", TEXT, [20])
    assert bodies[1] == bodies[2]


@pytest.mark.parametrize("status", [b"400 Bad Request", b"500 Oops", b"429 Busy"])
async def test_a_refused_continuation_ends_as_the_lost_connection(
    status: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "RETRY_DELAYS", (0.001,))
    refusal = b"HTTP/1.1 %b\r\nContent-Length: 2\r\n\r\n{}" % status
    async with upstream(words(TEXT[:20]), refusal, refusal) as (url, _):
        snapshot, _ = await run(url)
    assert (snapshot.status, snapshot.output) == ("failed", TEXT[:20])
    assert (snapshot.error.code, snapshot.error.retryable) == ("upstream_ended_early", True)


async def test_a_failure_that_a_reply_reports_is_that_failure() -> None:
    error = [*words(TEXT[20:30]), chunk({}, error={"code": 500})]
    async with upstream(words(TEXT[:20]), error) as (url, _):
        snapshot, records = await run(url)
    assert (snapshot.status, snapshot.output, continued(records)) == ("failed", TEXT[:30], [20])
    assert snapshot.error.code == "upstream_error"


@pytest.mark.slow
async def test_a_cut_at_any_byte_gives_the_whole_answer_or_a_failure_and_never_another_text() -> None:
    whole = HEAD + b"".join([*words(TEXT), *END])
    offset = len(HEAD)

    async def handle(stream: trio.SocketStream) -> None:
        last = (await read_request(stream))["messages"][-1]
        if last["role"] == "user":
            await stream.send_all(whole[:offset])
        else:
            assert TEXT.startswith(last["content"])
            await stream.send_all(HEAD + b"".join([*words(TEXT[len(last["content"]) :]), *END]))

    async with (
        serving(handle) as url,
        open_upstream(url, model="m", prefill=VLLM) as engine,
        open_pipeline(engine) as pipeline,
    ):
        while offset < len(whole):
            stream = await pipeline.start(ASK)
            async with stream.attach() as reader:
                async for _ in reader:
                    pass
            snapshot = stream.snapshot()
            if snapshot.status == "completed":
                assert snapshot.output == TEXT
            else:  # there was nothing to go on from, or the cut was behind the finish
                assert TEXT.startswith(snapshot.output)
                assert snapshot.output in {"", TEXT}
            offset += 1


# The comparison alone


def replied(sent: str, reply: list[str], tail: str = "", *, echoes: bool = False) -> str | None:
    """What is appended to `sent + tail` for a whole reply. None: the stream fails."""
    check = RepeatCheck(sent, tail, echoes=echoes)
    try:
        for index, piece in enumerate(reply):
            if text := check.feed(piece):
                return text + "".join(reply[index + 1 :])
        return check.end()
    except EngineError:
        return None


@pytest.mark.parametrize(
    ("sent", "tail", "reply", "appended"),
    [
        ("Hello", "", " world", " world"),
        ("Hello", " ", " world", "world"),
        ("Hello", " ", "world", "world"),
        ("Hello", "\n\n", "\n\n\nworld", "\nworld"),
        ("Hello", "\n", " world", " world"),
        ("Hello", "\n", "\n", ""),
        ("The end. ", "", "The dog.", "The dog."),  # begins alike by accident
        ("The end", "", "The", "The"),
        ("ha", "", "ha ha", None),  # a repetition or a continuation: in doubt a failure
        ("ha", "", "h", "h"),
    ],
)
def test_a_reply_is_appended_or_refused(sent: str, tail: str, reply: str, appended: str | None) -> None:
    assert replied(sent, [reply], tail) == appended
    assert replied(sent, list(reply), tail) == appended


@pytest.mark.slow
@given(st.text(min_size=1, max_size=40), st.text(max_size=20), st.data())
def test_a_repeated_answer_never_becomes_a_doubled_one_in_any_split(sent: str, more: str, data: Any) -> None:
    sent = sent.strip() or "x"
    reply = sent + more
    cuts = sorted(data.draw(st.sets(st.integers(0, len(reply)))))
    pieces = [reply[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(reply)], strict=True)]
    assert replied(sent, pieces) is None
    assert replied(sent, pieces, echoes=True) == more


@given(st.text(), st.text(), st.text())
def test_a_reply_loses_only_white_space_that_is_already_there(sent: str, tail: str, reply: str) -> None:
    tail = " \n" * (len(tail) % 3)
    appended = replied(sent.strip() or "x", [reply], tail)
    assert appended is None or (reply.endswith(appended) and tail.startswith(reply[: len(reply) - len(appended)]))


def test_the_record_says_where_in_characters() -> None:
    answer = ContinuedAnswer(ASK, VLLM)
    list(answer.pass_on([Text("a\ud83c"), Text("\udf75"), Text("b")]))
    answer.lose(Usage(), may_lack_text=False)
    following = answer.next_request()
    assert following is not None
    assert following.messages[-1].text == "a\U0001f375b"
    assert list(answer.pass_on([Text(" c", [1]), Text("d")])) == [Continued(3), Text(" c", [1]), Text("d")]


def test_a_refusal_in_a_reply_is_a_failure() -> None:
    answer = ContinuedAnswer(ASK, VLLM)
    list(answer.pass_on([Text("a")]))
    answer.lose(Usage(), may_lack_text=False)
    assert answer.next_request() is not None
    with pytest.raises(EngineError, match="does not begin with text"):
        list(answer.pass_on([Refusal("No")]))
