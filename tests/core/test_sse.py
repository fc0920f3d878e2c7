import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crucible_trio.errors import EventTooLargeError
from crucible_trio.sse import HEARTBEAT, Decoder, ServerSentEvent, encode_line, retry_line

ONE_LINE = st.text().filter(lambda text: not re.search(r"[\r\n\0]", text))
EVENTS = st.builds(
    ServerSentEvent,
    data=st.text() | st.text(alphabet="\r\n :a\u2028\x85"),
    event=ONE_LINE,
    id=st.none() | ONE_LINE,
    retry=st.none() | st.integers(0, 10**6),
)


def encode(event: ServerSentEvent) -> bytes:
    """Frame any event as the standard says. The server only needs `encode_line`."""
    lines = [f"event: {event.event}"] if event.event else []
    if event.retry is not None:
        lines.append(f"retry: {event.retry}")
    if event.data is not None:
        lines += [f"data: {line}" for line in re.split(r"\r\n|\r|\n", event.data)]
    if event.id is not None:
        lines.append(f"id: {event.id}")
    return ("\n".join(lines) + "\n\n").encode()


def decode(*chunks: bytes) -> list[ServerSentEvent]:
    decoder = Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def cut(body: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[begin:end] for begin, end in pairwise(bounds)]


def as_received(event: ServerSentEvent) -> ServerSentEvent:
    assert event.data is not None
    return ServerSentEvent(data=re.sub(r"\r\n|\r", "\n", event.data), event=event.event, id=event.id)


@given(st.lists(EVENTS, max_size=4), st.lists(st.integers(0, 10**6), max_size=8))
def test_the_decoder_returns_the_encoded_events_for_any_split(events: list[ServerSentEvent], places: list[int]) -> None:
    body = b"".join(map(encode, events))
    assert decode(*cut(body, places)) == [as_received(event) for event in events]


BODY_BYTES = st.lists(
    st.sampled_from([*"\r\n: x7\0\ufeffü😀\u2028", "data", "id", "event", "retry", "\r\n", "\n\n"])
).map(lambda parts: "".join(parts).encode())


@given(BODY_BYTES | st.binary(), st.lists(st.integers(0, 10**6), max_size=8))
@example(b"data: a\r\n\r\ndata: b\r\r", [9, 10])
@example(b"\xef\xbb\xbfdata: a\n\n", [1, 2])
@example(b"data: a\n\n\xf0data: b\n\n", [9, 10])
@example(b"data: a\n\ndata: b\xff\n\ndata: \n\ndata: d\n\n", [9, 27])
@example(b"data: a\n\ndata: b\ndata: c\n\n", [9])
@example(b"data: a\n\ndata: b\n\nid: 7\n\n\n\n", [9, 18])
@example(b"data: a\n\nid: 7\ndata: b\n\n", [9, 15])
@example(b"data: a\n\ndata: b\r\r\ndata: c\n\n", [9])
def test_any_split_of_any_bytes_gives_the_same_events(body: bytes, places: list[int]) -> None:
    whole, pieces = Decoder(), Decoder()
    expected = whole.feed(body)
    assert [event for chunk in cut(body, places) for event in pieces.feed(chunk)] == expected
    assert (pieces.last_event_id, pieces.retry) == (whole.last_event_id, whole.retry)


def in_every_cut(body: bytes) -> list[list[bytes]]:
    byte_by_byte = [bytes([byte]) for byte in body]
    return [[body], byte_by_byte, *([body[:place], body[place:]] for place in range(1, len(body)))]


@pytest.mark.parametrize("line_end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # The examples of the WHATWG standard.
        ("data: YHOO\ndata: +2\ndata: 10\n\n", [("YHOO\n+2\n10", "", None)]),
        (
            ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            [("first event", "", "1"), ("second event", "", ""), (" third event", "", None)],
        ),
        ("data\n\ndata\ndata\n\ndata:", [("", "", None), ("\n", "", None)]),
        ("data:test\n\ndata: test\n\n", [("test", "", None), ("test", "", None)]),
        (
            "event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n",
            [("73857293", "add", None), ("2153", "remove", None)],
        ),
        # Other rules of the standard.
        ("event: lost\n\ndata: x\n\n", [("x", "", None)]),
        ("data: x\nunknown: y\nData: z\n\n", [("x", "", None)]),
        ("data: a:b: c\n\n", [("a:b: c", "", None)]),
        ("\ufeffdata: x\n\n", [("x", "", None)]),
        ("\ufeff\ufeffdata: x\n\n", []),
        ("data: x\n\n\ufeffdata: y\n\n", [("x", "", None)]),
        ("data: never ended", []),
        ("data: half an event\n", []),
        ("\n\n\n", []),
        ("data: tear\u2028no\x85piece\x0b\x0c\n\n", [("tear\u2028no\x85piece\x0b\x0c", "", None)]),
    ],
)
def test_streams_are_decoded_as_the_standard_says(
    body: str, expected: list[tuple[str, str, str | None]], line_end: str
) -> None:
    events = [ServerSentEvent(data=data, event=event, id=event_id) for data, event, event_id in expected]
    for chunks in in_every_cut(body.replace("\n", line_end).encode()):
        assert decode(*chunks) == events, chunks


def test_an_id_takes_effect_at_the_end_of_its_event_even_without_data() -> None:
    decoder = Decoder()
    assert decoder.last_event_id is None
    decoder.feed(b"id: 7\ndata: x\n")
    assert decoder.last_event_id is None
    decoder.feed(b"\n")
    assert decoder.last_event_id == "7"
    assert decoder.feed(b"id: 8\n\n") == []
    assert decoder.last_event_id == "8"
    decoder.feed(b"data: y\n\n")
    assert decoder.last_event_id == "8"


def test_an_id_with_nul_is_ignored() -> None:
    decoder = Decoder()
    assert decoder.feed(b"id: 1\nid: 2\0\ndata: x\n\n") == [ServerSentEvent(data="x", id="1")]
    assert decoder.last_event_id == "1"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("retry: 250", 250),
        ("retry:0", 0),
        ("retry: 2.5", None),
        ("retry: -1", None),
        ("retry: x", None),
        ("retry", None),
        ("retry: \u0663", None),  # a digit for str.isdigit, but not in the standard
        ("retry: " + "9" * 5000, None),  # int() would raise
    ],
)
def test_only_a_plain_number_sets_the_reconnection_time(line: str, expected: int | None) -> None:
    decoder = Decoder()
    assert decoder.feed(f"{line}\n".encode()) == []
    assert decoder.retry == expected


def test_invalid_utf8_becomes_replacement_characters() -> None:
    assert decode(b"data: a\xffb\n\n") == [ServerSentEvent(data="a\ufffdb")]


@pytest.mark.parametrize(
    "chunk", [b"data: 45678901", b"data: 456\ndata: 1", b":" + b"x" * 11, b"data: 1\n\n" + b"x" * 11]
)
def test_an_event_that_never_ends_is_refused(chunk: bytes) -> None:
    with pytest.raises(EventTooLargeError) as refusal:
        Decoder(max_event_length=10).feed(chunk)
    assert refusal.value.limit == 10


def test_the_length_limit_counts_an_event_over_its_chunks_and_resets_after_it() -> None:
    decoder = Decoder(max_event_length=10)
    for _ in range(5):
        assert decoder.feed(b"data: 456") == []
        assert decoder.feed(b"7\n\n") == [ServerSentEvent(data="4567")]
    decoder.feed(b"data: 456")
    decoder.feed(b"7\n")
    with pytest.raises(EventTooLargeError):
        decoder.feed(b"d")


@pytest.mark.parametrize(
    ("chunk", "event"),
    [
        (b"", None),
        (b"id: 7\n", None),
        (b"data: x\n\n", None),
        (b"data: x", ServerSentEvent(data="x")),
        (b"data: x\nevent: y\nid: 7\r", ServerSentEvent(data="x", event="y", id="7")),
        (b"data: x\n\ndata: y\ndata: z", ServerSentEvent(data="y\nz")),
    ],
)
def test_the_unfinished_event_can_be_had_at_the_end_of_the_body(chunk: bytes, event: ServerSentEvent | None) -> None:
    decoder = Decoder()
    decoder.feed(chunk)
    assert (decoder.finish(), decoder.unfinished_length) == (event, 0)


def test_the_id_is_the_last_line_of_an_event() -> None:
    assert encode_line(b'{"seq":1}', "str_1.1") == b'data: {"seq":1}\nid: str_1.1\n\n'
    assert encode_line(b'{"seq":1}') == b'data: {"seq":1}\n\n'


def test_an_event_without_data_is_never_dispatched() -> None:
    assert decode(b"id: 7\n\n", b"event: x\nretry: 5\n\n") == []


@given(st.text().map(lambda text: re.sub(r"[\r\n]", "", text)), st.none() | st.from_regex(r"[\w.-]+", fullmatch=True))
def test_encode_line_frames_an_event_as_the_standard_says(line: str, event_id: str | None) -> None:
    event = ServerSentEvent(data=line, id=event_id)
    assert encode_line(line.encode(), event_id) == encode(event)
    assert decode(encode_line(line.encode(), event_id)) == [event]


def test_heartbeat_and_retry_line_dispatch_nothing() -> None:
    body = retry_line(1000) + HEARTBEAT + encode_line(b"x", "1") + HEARTBEAT
    for chunks in in_every_cut(body):
        assert decode(*chunks) == [ServerSentEvent(data="x", id="1")]
    decoder = Decoder()
    decoder.feed(retry_line(1000))
    assert decoder.retry == 1000
