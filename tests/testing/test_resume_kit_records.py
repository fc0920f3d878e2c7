"""The resume kit on a native stream with records and out-of-band events of types that it does not know."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from crucible_trio.testing.resume import check

pytestmark = pytest.mark.slow

ARGUMENTS = ['{"city":', ' "Zürich",', ' "day":', ' "Dienstag"}']
RECORDS: list[dict[str, Any]] = [
    {"type": "stream.created", "stream": "s"},
    *({"type": "reasoning.delta", "segment": 0, "delta": f"Gedanke {number}, "} for number in range(6)),
    {"type": "reasoning.done", "segments": 1},
    {"type": "tool_call.started", "index": 0, "id": "call_0", "name": "weather"},
    *({"type": "tool_call.delta", "index": 0, "delta": piece} for piece in ARGUMENTS),
    {"type": "tool_call.done", "index": 0},
    {"type": "audio.delta", "delta": {"data": "UklGRg=="}, "segment": [1]},
    {"type": "citation.added", "url": "https://example.org", "text": 7},
    *({"type": "output.delta", "delta": f"Wört {number} "} for number in range(6)),
    {"type": "stream.continued", "characters": 60},
    {"type": "output.delta", "delta": "und das Ende."},
    {"type": "stream.completed", "finish_reason": "stop"},
]
FRAMES = [
    f"data: {json.dumps(record | {'seq': seq}, ensure_ascii=False)}\nid: s.{seq}\n\n".encode()
    for seq, record in enumerate(RECORDS, 1)
]
LAST = len(FRAMES)


def make_app(*, lose: int = 0, notice: bytes = b"", alter: tuple[bytes, bytes] = (b"", b"")) -> Any:
    """A server with this one finished stream.

    Args:
        alter: After a resume, the first text is replaced by the second in all records.
        lose: The `seq` of a record that the server does not send after a resume.
        notice: An out-of-band event that the server sends at the start of a resumed body.
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        await receive()
        asked = dict(scope["headers"]).get(b"last-event-id", b"s.0")
        offset = int(asked.rpartition(b".")[2])
        headers = [(b"content-type", b"text/event-stream"), (b"location", b"/v1/streams/s")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if offset and offset < LAST:
            await send({"type": "http.response.body", "body": notice, "more_body": True})
        for seq, frame in enumerate(FRAMES, 1):
            if seq > offset and not (offset and seq == lose):
                content = frame.replace(*alter) if offset else frame
                await send({"type": "http.response.body", "body": content, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


async def test_unknown_types_are_not_a_fault() -> None:
    notice = b'data: {"type":"server.notice","delta":"restart at noon"}\n\n'
    with trio.fail_after(60):
        report = await check(make_app(notice=notice), log_cuts=60, live_cuts=60)
    assert report.ok, str(report)
    assert all(row.checked == 60 for row in report.rows)
    # One channel each for trace, answer and arguments: the notice is not in the log.
    assert f"{LAST} events, 3 channels of text" in report.stream


@pytest.mark.parametrize("kind", ["tool_call.started", "tool_call.delta", "audio.delta", "stream.continued"])
async def test_a_lost_record_of_an_unknown_type_is_found(kind: str) -> None:
    seq = 1 + next(number for number, record in enumerate(RECORDS) if record["type"] == kind)
    with trio.fail_after(60):
        report = await check(make_app(lose=seq), clients=["httpx-sse"], phases=["log"])
    assert report.exit_code == 1
    assert set(report.names) <= {"dropped event", "off by one on resume"}, str(report)
    assert f"({kind})" in str(report) or f"s.{seq - 1} is followed by s.{seq + 1}" in str(report)


@pytest.mark.parametrize(
    ("alter", "shown"),
    [
        ((b"call_0", b"call_9"), "id of tool_call.started//0"),
        ((b"weather", b"climate"), "name of tool_call.started//0"),
    ],
)
async def test_a_call_that_changes_on_a_resume_is_found(alter: tuple[bytes, bytes], shown: str) -> None:
    with trio.fail_after(60):
        report = await check(make_app(alter=alter), clients=["httpx-sse"], phases=["log"])
    assert report.exit_code == 1
    assert set(report.names) == {"different text"}, str(report)
    assert shown in str(report)
