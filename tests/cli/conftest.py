"""A server that sends one stream as its plan says, and the `crucible` command in the shell's path."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from crucible_trio import sse
from crucible_trio.records import AnyRecord, encode_frame, parse_event_id

STREAM = "str_uBEsb66CVQGlaxwPH5stHA"


@dataclass
class Connection:
    """What a connection gets instead of all records.

    Attributes:
        records: How many records it gets.
        status: An error status that it gets instead.
        stays_open: Whether it stays open behind them.
        silent: Whether it gets nothing, not even a status.
    """

    records: int | None = None
    status: int | None = None
    stays_open: bool = False
    silent: bool = False


@dataclass
class PlannedServer:
    """Sends the records of one stream.

    Attributes:
        records: The records of the stream.
        plan: Its next connections for events. Later ones get everything.
        cancel: What a request that cancels the stream gets.
        asked: Set by the first request for events.
        cancelling: Set by a request that cancels the stream.
        last_ids: The `Last-Event-ID` of each connection for events, None for the start.
        inputs: The prompts.
        heads: The heads of all requests.
    """

    records: Sequence[AnyRecord]
    plan: list[Connection] = field(default_factory=list)
    cancel: Connection = field(default_factory=Connection)
    last_ids: list[str | None] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    asked: trio.Event = field(default_factory=trio.Event)
    cancelling: trio.Event = field(default_factory=trio.Event)
    url: str = ""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
            self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            task_status.started()

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            received = b""
            while b"\r\n\r\n" not in received:
                chunk = await stream.receive_some()
                if not chunk:
                    return
                received += chunk
            head, _, body = received.partition(b"\r\n\r\n")
            self.heads.append(head.decode())
            lines = [line.partition(": ") for line in head.decode().split("\r\n")[1:]]
            headers = {name.lower(): value for name, _, value in lines}
            while len(body) < int(headers.get("content-length", "0")):
                body += await stream.receive_some()
            if b"/cancel " in head.partition(b"\r\n")[0]:
                self.cancelling.set()
                await self._answer(stream, self.cancel)
                return
            if body:
                self.inputs.append(msgspec.json.decode(body)["input"])
            last_id = headers.get("last-event-id")
            self.last_ids.append(last_id)
            self.asked.set()
            connection = self.plan.pop(0) if self.plan else Connection()
            after = parse_event_id(last_id)[1] if last_id else 0
            await self._answer(stream, connection, self.records[after:])

    async def _answer(
        self, stream: trio.SocketStream, connection: Connection, records: Sequence[AnyRecord] | None = None
    ) -> None:
        if connection.status is not None:
            body = b'{"error": {"code": "some_code", "message": "some message"}}'
            head = f"HTTP/1.1 {connection.status} X\r\nRetry-After: 999\r\nContent-Length: {len(body)}\r\n\r\n"
            await stream.send_all(head.encode() + body)
        elif not connection.silent and records is None:
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        elif not connection.silent and records is not None:
            chosen = records[: connection.records]
            head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCrucible-Stream: {STREAM}\r\n\r\n".encode()
            frames = [encode_frame(STREAM, record) for record in chosen]
            await stream.send_all(head + sse.retry_line(1) + b"".join(frames))
        if connection.stays_open or connection.silent:
            while await stream.receive_some():  # until the client leaves
                pass


@pytest.fixture
def planned(nursery: trio.Nursery) -> Callable[..., Awaitable[PlannedServer]]:
    """`await planned(records, *connections)`."""

    async def start(records: Sequence[AnyRecord], *plan: Connection) -> PlannedServer:
        server = PlannedServer(records, list(plan))
        await nursery.start(server.run)
        return server

    return start


def install_command(folder: Path) -> Path:
    """Write the command `crucible` as an installer does."""
    folder.mkdir()
    script = folder / "crucible"
    script.write_text(f"#!{sys.executable}\nfrom crucible_trio.cli import main\nmain()\n")
    script.chmod(0o755)
    return script


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which a shell finds the command `crucible`."""
    folder = install_command(tmp_path / "bin").parent
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CRUCIBLE_")}
    return kept | {"PATH": f"{folder}:{os.environ['PATH']}"}
