"""A small resumable SSE server in plain trio, with optional bugs, and its wire format."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio

from crucible_trio.testing.resume import Stage, WireFormat

THOUGHTS = ["Erst ", "das Wasser, ", "dann ", "der Tee: ", "茶. ", "Zehn ", "Grad ", "zu heiß ", "verbrüht ", "ihn."]
WORDS = [
    "Nimm ",
    "weiches ",
    "Wasser,\nkühl ",
    "es ",
    "ab ",
    "— ",
    "80 °C ",
    "— ",
    "und ",
    "gieß ",
    "\U0001f375 ",
    "auf.",
]
EVENTS = [("begin", ""), *(("think", text) for text in THOUGHTS), *(("say", text) for text in WORDS), ("end", "stop")]


@dataclass
class SmallStream:
    """One stream: its log by id, and its number of readers."""

    log: dict[int, tuple[str, str]] = field(default_factory=dict)
    ended: bool = False
    readers: int = 0
    news: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)


@dataclass
class SmallServer:
    """`POST /runs` with a name starts a stream or joins it. `GET /runs/NAME` reads it. Both resume.

    `bug` selects a fault. Empty for none.
    """

    bug: str = ""
    stage: Stage | None = None
    port: int = 0
    events: list[tuple[str, str]] = field(default_factory=lambda: list(EVENTS))
    letters: bool = False  # ids without a number
    runs: dict[str, SmallStream] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def wire(self) -> WireFormat:
        return WireFormat(
            path="/runs",
            headers={"Content-Type": "text/plain"},
            body="{key}",
            events="/runs/{header:Run}",
            kind="event:",
            text="",
            terminal=("end",),
            control=("later",),
        )

    async def make(self, name: str, run: SmallStream) -> None:
        for number, event in enumerate(self.events, 1):
            if self.stage is not None and number > 1:
                await self.stage.turn(name)
            if not (self.bug == "drops events without a reader" and run.readers == 0 and 5 < number < len(self.events)):
                run.log[number] = event
            run.news.unpark_all()
        run.ended = True
        run.news.unpark_all()

    async def handle(self, stream: trio.SocketStream) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._answer, stream, nursery.cancel_scope)
        except* trio.BrokenResourceError:
            pass
        finally:
            stream.socket.close()

    async def _answer(self, stream: trio.SocketStream, connection: trio.CancelScope) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            if not (data := await stream.receive_some()):
                return
            request += data
        head, _, body = request.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in lines}
        while len(body) < int(headers.get("content-length", 0)):
            body += await stream.receive_some()
        asked = self._number(headers.get("last-event-id", ""))
        name = body.decode() if first.startswith("POST") else first.split()[1].removeprefix("/runs/")
        if self.bug == "starts another" and first.startswith("POST") and asked:
            name, asked = f"{name}-again", 0
        if asked and self.bug == "refuses":
            await stream.send_all(b"HTTP/1.1 409 Conflict\r\nContent-Length: 2\r\n\r\nno")
            connection.cancel()
        if name not in self.runs:
            self.runs[name] = SmallStream()
            self.nursery.start_soon(self.make, name, self.runs[name])
        await self._stream(stream, self.runs[name], name, asked, connection)
        connection.cancel()

    async def _stream(
        self, stream: trio.SocketStream, run: SmallStream, name: str, asked: int, connection: trio.CancelScope
    ) -> None:
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nRun: {name}\r\n\r\n"
        )
        await stream.send_all(head.encode())
        position = self._resume_at(asked)
        run.readers += 1
        try:
            while True:
                ready = [number for number in run.log if number > position]
                body = b"".join(self._frame(number, run.log[number], asked) for number in ready)
                if body:
                    position = ready[-1]
                    await stream.send_all(b"%x\r\n%b\r\n" % (len(body), body))
                elif self.bug == "hangs" and asked:
                    await trio.sleep_forever()
                elif self.bug == "sends nothing but heartbeats" and asked:
                    await stream.send_all(b"2\r\n:\n\r\n")
                    await trio.sleep(0.05)
                elif self.bug == "closes every resumed connection" and asked:
                    connection.cancel()
                    await trio.lowlevel.checkpoint()
                elif run.ended:
                    break
                else:
                    await run.news.park()
            await stream.send_all(b"0\r\n\r\n")
        finally:
            run.readers -= 1

    def _id(self, number: int) -> str:
        return f"event-{chr(96 + number)}" if self.letters else str(number)

    def _number(self, event_id: str) -> int:
        return ord(event_id[-1]) - 96 if event_id and self.letters else int(event_id or 0)

    def _resume_at(self, asked: int) -> int:
        match self.bug if asked else "":
            case "skips one":
                return asked + 1
            case "sends one again":
                return asked - 1
            case "ignores ids":
                return 0
            case "hangs" | "sends nothing but heartbeats" | "closes every resumed connection":
                return 1000
        return asked

    def _frame(self, number: int, event: tuple[str, str], asked: int) -> bytes:
        kind, text = event
        if self.bug == "garbles characters" and asked:
            text = text.encode("ascii", "replace").decode()
        data = "".join(f"data: {line}\n" for line in text.split("\n"))
        frame = f"event: {kind}\n{data}id: {self._id(number)}\n\n"
        if self.bug == "sends the id first":
            frame = f"id: {self._id(number)}\nevent: {kind}\n{data}\n"
        elif self.bug == "sends no ids":
            frame = f"event: {kind}\n{data}\n"
        last = len(self.events)
        match self.bug if asked else "":
            case "drops one" if number == 15 and asked < 14:
                return b""
            case "repeats one" if number == 15:
                return frame.encode() * 2
            case "loses the tail" if last - 3 <= number < last:
                return b""
            case "ends without terminal" if number == last:
                return b""
            case "continues after the end" if number == last:
                return frame.encode() + f"event: say\ndata: ?\nid: {last + 1}\n\n".encode()
            case "ends twice" if number == last:
                return frame.encode() + frame.encode()
        return frame.encode()


@asynccontextmanager
async def _open_small_server(bug: str = "", *, staged: bool = False, **options: object) -> AsyncIterator[SmallServer]:
    server = SmallServer(bug, Stage() if staged else None, **options)
    async with trio.open_nursery() as nursery:
        server.nursery = nursery
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, server.handle, [listener])
        yield server
        nursery.cancel_scope.cancel()


@pytest.fixture
def open_small_server() -> Callable[..., AbstractAsyncContextManager[SmallServer]]:
    """`async with open_small_server(bug, staged=...) as server`."""
    return _open_small_server
