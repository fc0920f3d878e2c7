"""The benchmark's response parser finds every delta, for chunks of any size."""

from __future__ import annotations

import pytest

from benchmarks.client.wire import ChatParser, ResponseParser
from benchmarks.tokens import stamp, token

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
TOKENS = [token(stamp(1_000 + number), number) for number in range(6)]


def events(line_end: str, space: str) -> list[bytes]:
    """A stream with three deltas. The second has four tokens."""
    deltas = [TOKENS[0], "".join(TOKENS[1:5]), TOKENS[5]]
    data = [
        f'{{"type":{space}"stream.created","seq":{space}1}}',
        *(f'{{"type":{space}"output.delta","seq":{space}{n + 2},"delta":{space}"{d}"}}' for n, d in enumerate(deltas)),
        f'{{"type":{space}"stream.completed","seq":{space}5}}',
    ]
    return [f"data: {line}{line_end}id: str_a.{n + 1}{line_end}{line_end}".encode() for n, line in enumerate(data)]


def chunked(pieces: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def response(*, framing: str, line_end: str, space: str) -> bytes:
    pieces = events(line_end, space)
    if framing == "until closed":
        return HEAD + b"\r\n" + b"".join(pieces)
    if framing == "chunks across events":
        body = b"retry: 1000\n" + b"".join(pieces)
        pieces = [body[at : at + 50] for at in range(0, len(body), 50)]
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(pieces)


@pytest.mark.parametrize("framing", ["a chunk an event", "chunks across events", "until closed"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("space", ["", " "])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_every_delta_arrives_once(framing: str, line_end: str, space: str, size: int) -> None:
    wire = ResponseParser()
    data = response(framing=framing, line_end=line_end, space=space)
    deltas = [delta for at in range(0, len(data), size) for delta in wire.feed(data[at : at + size])]
    assert b"".join(deltas).decode() == "".join(TOKENS)
    assert len(deltas) == 3
    assert (wire.status, wire.records, wire.stream, wire.completed) == (200, 5, "str_a", True)
    assert wire.ended == (framing != "until closed")
    retry = len(b"retry: 1000\n") if framing == "chunks across events" else 0
    assert wire.event_bytes == sum(map(len, events(line_end, space))) + retry


def test_an_incomplete_event_is_not_parsed() -> None:
    wire = ResponseParser()
    whole = response(framing="until closed", line_end="\n", space="")
    assert wire.feed(whole[:-1])[-1] == TOKENS[5].encode()
    assert not wire.completed
    wire.feed(whole[-1:])
    assert wire.completed


def test_heartbeats_do_not_count_as_records() -> None:
    wire = ResponseParser()
    wire.feed(HEAD + b"\r\n")
    assert wire.feed(b": ping\r\n\r\n") == []
    assert wire.records == 0


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("space", ["", " "])
def test_the_content_of_a_chat_completion_arrives_once(size: int, space: str) -> None:
    deltas = ['{"role":"assistant","content":""}', *(f'{{"content":{space}"{text}"}}' for text in TOKENS), "{}"]
    data = [f'data: {{"choices":[{{"index":0,"delta":{delta}}}]}}\n\n' for delta in deltas]
    whole = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked([d.encode() for d in [*data, "data: [DONE]\n\n"]])
    wire = ChatParser()
    found = [delta for at in range(0, len(whole), size) for delta in wire.feed(whole[at : at + size])]
    assert b"".join(found).decode() == "".join(TOKENS)
    assert (wire.records, wire.completed, wire.ended) == (len(deltas) + 1, True, True)
