"""Clients from other projects, cut in the middle of a stream."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import partial

import httpx
import httpx_sse
import trio

from crucible_trio import Finish, Output, Request
from crucible_trio.testing import Treatment, open_chaos_proxy

TEXT = "Grüße an alle, die \u2028 Zeilen brechen: \x85 \r\n und \U0001f98a."


async def slow_text(request: Request, output: Output) -> Finish:
    for character in TEXT:
        await output.delta(character)
        await trio.sleep(0.01)
    return Finish()


async def test_httpx_sse_gets_the_text_across_many_cuts(serving, kind) -> None:
    seen: list[str] = []
    last_id: str | None = None
    record = {"type": ""}
    cuts = [Treatment(cut_after=n, cut="fin") for n in range(300, 1800, 150)]
    connections = 0
    async with (
        serving(slow_text, kind=kind) as served,
        open_chaos_proxy(served.port, cuts) as proxy,
        httpx.AsyncClient(base_url=proxy.url) as http,
    ):
        with trio.fail_after(30):
            while record["type"] != "stream.completed":
                connections += 1
                headers = {"Last-Event-ID": last_id} if last_id else {}
                try:
                    async with httpx_sse.aconnect_sse(
                        http, "POST", "/v1/streams", json={"input": "x"}, headers=headers
                    ) as source:
                        async for event in source.aiter_sse():
                            record = json.loads(event.data)
                            seen.append(record.get("delta", ""))
                            last_id = event.id
                except (httpx.RemoteProtocolError, httpx.ReadError):
                    pass
    assert "".join(seen) == TEXT
    assert connections > 5


async def test_curl_gets_the_text_across_a_cut(serving, kind, need_program, decode_events) -> None:
    curl = need_program("curl")
    body = json.dumps({"input": "x"})
    async with serving(slow_text, kind=kind) as served:
        start = [
            *(curl, "-sN", f"{served.url}/v1/streams", "-d", body),
            *("-H", "Accept: text/event-stream", "-H", "Content-Type: application/json"),
        ]
        first = b""
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                process = await nursery.start(partial(trio.run_process, start, stdout=subprocess.PIPE, check=False))
                while first.count(b"output.delta") < 10:
                    first += await process.stdout.receive_some()
                process.kill()
            head = b"HTTP/1.1 200\r\n\r\n"  # curl prints only the body
            events = decode_events(head + first)
            last_id = events[-1]["id"]
            url = f"{served.url}/v1/streams/{last_id.rpartition('.')[0]}/events"
            rest = await trio.run_process([curl, "-sN", url, "-H", f"Last-Event-ID: {last_id}"], capture_stdout=True)
        events += decode_events(head + rest.stdout)
    assert "".join(event.get("delta", "") for event in events) == TEXT
    assert events[-1]["type"] == "stream.completed"


def test_need_program_finds_an_installed_program(need_program) -> None:
    assert need_program("sh") == shutil.which("sh")
