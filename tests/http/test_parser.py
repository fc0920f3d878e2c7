"""Responses as bytes, without I/O: whole, byte by byte, cut at every byte, and wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_trio.http import parser as limits
from crucible_trio.http.errors import ConnectionLostError, HttpError, InvalidResponseError
from crucible_trio.http.parser import ResponseParser

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = b"data: Blue\n\ndata: [DONE]\n\n"

# Status, body, and whether the connection can be used again.
Result: TypeAlias = tuple[int, bytes, bool]


def part(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def read(parts: Iterable[bytes], *, eof: bool = True) -> tuple[bytes, ResponseParser]:
    """The body of a response that comes in these parts, and the parser."""
    parser, body = ResponseParser(), b""
    for data in parts:
        parser.feed(data)
        if not parser.has_head:
            parser.check()
        else:
            while data := parser.take_body():
                body += data
    if eof and not parser.is_complete:
        parser.feed_eof()
    return body, parser


def each_byte(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


WHOLE: list[tuple[bytes, Result]] = [
    (OK + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, (200, BODY, True)),
    (CHUNKED + part(BODY) + part(b"more") + b"0\r\n\r\n", (200, BODY + b"more", True)),
    (CHUNKED + b"1;name=value;x=\"y\"\r\na\r\n000\r\nTrailer: x\r\n\r\n", (200, b"a", True)),
    (CHUNKED + b"A \r\n0123456789\r\n0 \r\n\r\n", (200, b"0123456789", True)),
    (CHUNKED + b"0\r\n\r\n", (200, b"", True)),
    (OK + b"Content-Length: 0\r\n\r\n", (200, b"", True)),
    (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"", True)),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", (304, b"", True)),
    (b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 103 Early\r\nC: d\r\n\r\n" + CHUNKED + part(BODY) + b"0\r\n\r\n",
     (200, BODY, True)),
    (OK + b"Connection: close\r\nContent-Length: 1\r\n\r\na", (200, b"a", False)),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", (200, b"a", False)),
    (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na", (200, b"a", True)),
    (b"HTTP/1.1 503 \r\nContent-Length: 1\r\n\r\na", (503, b"a", True)),
    (b"HTTP/1.1 500\r\nContent-Length: 1\r\n\r\na", (500, b"a", True)),
    # As servers send it, though they should not
    (OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + part(BODY) + b"0\r\n\r\n",
     (200, BODY, True)),
    (OK + b"Transfer-Encoding: Chunked\r\nContent-Length: 3\r\n\r\n" + part(BODY) + b"0\r\n\r\n", (200, BODY, False)),
    (OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" + part(BODY) + b"0\r\n\r\n", (200, BODY, False)),
    (b"HTTP/1.1 200 OK\nContent-Length: 1\n\na", (200, b"a", True)),
    (b"\r\n" + OK + b"Content-Length: 1\r\n\r\na", (200, b"a", True)),
    (OK + b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 1\r\n\r\na", (200, b"a", True)),
]  # fmt: skip


@pytest.mark.parametrize(("data", "result"), WHOLE)
@pytest.mark.parametrize("split", [lambda data: [data], each_byte], ids=["whole", "byte by byte"])
def test_a_response_is_read(data: bytes, result: Result, split: Callable[[bytes], list[bytes]]) -> None:
    body, parser = read(split(data), eof=False)
    assert parser.is_complete
    assert (parser.status, body, parser.is_reusable) == result


@pytest.mark.parametrize(("data", "result"), WHOLE)
def test_a_response_that_says_where_it_ends_never_looks_whole_after_a_cut(data: bytes, result: Result) -> None:
    for end in range(len(data)):
        parser = ResponseParser()
        for cut in ([data[:end]] if end else [], each_byte(data[:end])):
            with pytest.raises(ConnectionLostError) as caught:
                read(cut)
            assert caught.value.received_nothing == (end == 0)
        assert not parser.is_complete


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    for head in (OK, OK + b"Transfer-Encoding: identity\r\n", b"HTTP/1.0 200 OK\r\n"):
        for data in ([head + b"\r\n" + BODY], each_byte(head + b"\r\n" + BODY)):
            body, parser = read(data)
            assert (parser.status, body, parser.has_promised_end, parser.is_reusable) == (200, BODY, False, False)


def test_a_cut_that_is_a_reset_is_one_in_a_body_without_a_length_too() -> None:
    _, parser = read([OK + b"\r\n" + BODY], eof=False)
    with pytest.raises(ConnectionLostError, match="before the response"):
        parser.lose()


def test_a_response_with_a_length_or_chunks_promises_its_end() -> None:
    for data, (status, *_) in WHOLE:
        _, parser = read([data], eof=False)
        assert parser.has_promised_end or status in {204, 304}


@pytest.mark.parametrize(
    "extra", [b"HTTP/1.1 500 Other\r\nX: y\r\nContent-Length: 3\r\n\r\nbad", b"junk", b"HTTP/1.1 100 Continue\r\n\r\n"]
)
def test_the_next_response_does_not_get_into_this_one(extra: bytes) -> None:
    for ending in (b"Content-Length: 1\r\n\r\na", b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"):
        for data in ([OK + ending + extra], each_byte(OK + ending + extra)):
            body, parser = read(data)
            assert (parser.status, parser.reason, body, parser.is_reusable) == (200, "OK", b"a", False)
            assert "x" not in parser.headers


INVALID = [
    b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    b"<html>",
    b"HTTP/9.9 200 OK\r\n\r\n",
    b"HTTP/1.1 20 OK\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nxx",
    OK + b"A: b\r\n folded\r\n\r\n",
    OK + b"A : b\r\n\r\n",
    OK + b"A: \0b\r\n\r\n",
    OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n",
    OK + b"Content-Length: -3\r\n\r\n",
    OK + b"Content-Length: 3, 3\r\n\r\n",
    OK + b"Content-Length: 99999999999999999999999\r\n\r\n",
    CHUNKED + b"zz secret\r\n",
    CHUNKED + b"-1\r\n",
    CHUNKED + b"fffffffffffffffff\r\n",
    CHUNKED + b"1\r\nab\r\n",
]


@pytest.mark.parametrize("data", INVALID)
def test_a_response_that_breaks_http_is_invalid_and_not_quoted(data: bytes) -> None:
    for parts in ([data], each_byte(data)):
        with pytest.raises(InvalidResponseError) as caught:
            read(parts)
        assert str(caught.value)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "has_status"),
    [
        (b"HTTP/2 200 OK\r\n", False),
        (b"SSH-2.0\r\n", False),
        (b"HTTP/1.1 20x", False),
        (OK + b"A b\r\n", True),
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", True),
    ],
)
def test_a_fault_says_whether_a_status_came(data: bytes, *, has_status: bool) -> None:
    with pytest.raises(InvalidResponseError) as caught:
        read([data])
    assert caught.value.has_status is has_status


def test_the_body_before_a_fault_is_not_lost() -> None:
    parser = ResponseParser()
    parser.feed(CHUNKED + part(BODY) + b"zz\r\n")
    assert parser.take_body() == BODY
    for _ in range(2):
        with pytest.raises(InvalidResponseError, match="Invalid character in chunk size"):
            parser.take_body()


def bombs() -> dict[str, bytes]:
    huge = limits.MAX_FRAMING_BYTES + limits.MAX_HEADER_BYTES + 100_000
    return {
        "one header": OK + b"A: " + b"x" * huge,
        "a name": OK + b"x" * huge,
        "many headers": OK + b"A: b\r\n" * (limits.MAX_HEADERS + 2),
        "many bytes": OK + b"".join(b"A%d: %b\r\n" % (n, b"x" * 1000) for n in range(70)),
        "a reason": b"HTTP/1.1 200 " + b"x" * huge,
        "interim responses": b"HTTP/1.1 100 Continue\r\n\r\n" * (huge // 25),
        "interim headers": b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n" * 300 * 100,
        "blank lines": b"\r\n" * huge,
        "a chunk extension": CHUNKED + b"1;" + b"x" * huge,
        "trailers": CHUNKED + b"0\r\n" + b"A: b\r\n" * (huge // 6),
        "a chunk size": CHUNKED + b"0" * huge,
    }


@pytest.mark.parametrize("bomb", list(bombs()))
def test_headers_without_an_end_do_not_fill_the_memory(bomb: str) -> None:
    data = bombs()[bomb]
    with pytest.raises(InvalidResponseError, match=r"too large|too many|overflow"):
        read(data[at : at + 1000] for at in range(0, len(data), 1000))


def test_a_head_may_have_the_usual_size() -> None:
    head = OK + b"".join(b"A%d: %b\r\n" % (n, b"x" * 300) for n in range(100)) + b"Content-Length: 1\r\n\r\na"
    body, parser = read(each_byte(head))
    assert body == b"a"
    assert parser.headers["A99"] == "x" * 300


@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=8),
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
    st.booleans(),
)
def test_any_body_arrives_in_any_split(parts: list[bytes], sizes: list[int], chunked: bool) -> None:
    body = b"".join(parts)
    if chunked:
        data = CHUNKED + b"".join(map(part, parts)) + b"0\r\n\r\n"
    else:
        data = OK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    pieces, at = [], 0
    while at < len(data):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(data[at : at + size])
        at += size
    got, parser = read(pieces, eof=False)
    assert parser.is_complete
    assert got == body


@given(st.binary(max_size=300), st.integers(0, 3))
def test_any_bytes_end_as_a_response_or_an_http_error(noise: bytes, which: int) -> None:
    start = [b"", OK, CHUNKED, OK + b"Content-Length: 30\r\n\r\n"][which]
    for parts in ([start + noise] if start + noise else [], each_byte(start + noise)):
        try:
            _, parser = read(parts)
        except HttpError:
            continue
        assert parser.is_complete
        assert 200 <= parser.status <= 999
