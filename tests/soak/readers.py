"""The clients of a soak test. Each kind reads one stream in a different way and checks the records."""

from __future__ import annotations

import random
import re
import select
import socket
import struct
import time
from dataclasses import dataclass, field

import h11
import msgspec
import trio
from workload import request_for, script_for

from crucible_trio.client import Client, ClientStream
from crucible_trio.http import parse_url
from crucible_trio.http.parser import ResponseParser
from crucible_trio.records import TERMINAL, AnyRecord, StreamCancelled, StreamFailed, parse_event_id
from crucible_trio.sse import Decoder

# Far more than the server's write deadline: the server may be busy with hundreds of other streams.
FROZEN_SECONDS = 60.0


@dataclass
class Tally:
    """Errors found, and numbers of streams, records and connections."""

    lost: int = 0
    repeated: int = 0
    reordered: int = 0
    wrong: list[str] = field(default_factory=list)  # a message for each error
    streams: int = 0
    records: int = 0
    connections: int = 0
    reconnects: int = 0
    compared: int = 0  # streams that a control reader read too
    cut_at_shutdown: int = 0  # readers that had only the beginning of the text when the server exited
    closed_at: dict[str, float] = field(default_factory=dict)  # by prompt, a time.monotonic()

    def count(self, seqs: list[int], after: int, who: str) -> None:
        """Check the numbers of records in the order of arrival: `after + 1`, `after + 2` and so on."""
        seen: set[int] = set()
        last = after
        for seq in seqs:
            if seq in seen or seq <= after:
                self.repeated += 1
                self.wrong.append(f"{who}: record {seq} came again after record {last}")
            elif seq < last:
                self.reordered += 1
                self.wrong.append(f"{who}: record {seq} came after record {last}")
            elif seq > last + 1:
                self.lost += seq - last - 1
                self.wrong.append(f"{who}: record {seq} came after record {last}")
            seen.add(seq)
            last = max(last, seq)

    def check(self, prompt: str, records: list[AnyRecord], who: str) -> None:
        """Check all records of a stream that was read to its end: numbers, text and terminal record."""
        self.streams += who != "control"
        script = script_for(prompt)
        text, end = text_of(records), records[-1]
        self.records += len(records)
        self.count([record.seq for record in records], 0, f"{who} {prompt!r}")
        if not (is_beginning(text, script.text) if isinstance(end, StreamCancelled) else text == script.text):
            self.lost += 1
            self.wrong.append(f"{who} {prompt!r}: {first_difference(text, script.text)}")
        code = end.error.code if isinstance(end, StreamFailed) else None
        if (type(end).__name__, code) != script.end or sum(isinstance(record, TERMINAL) for record in records) != 1:
            self.wrong.append(f"{who} {prompt!r}: ended with {end!r}")

    def check_beginning(self, prompt: str, records: list[AnyRecord], who: str) -> None:
        """Check the records of a stream that was not read to its end."""
        self.streams += 1
        self.records += len(records)
        self.count([record.seq for record in records], 0, f"{who} {prompt!r}")
        if not is_beginning(text_of(records), script_for(prompt).text):
            self.wrong.append(f"{who} {prompt!r}: {first_difference(text_of(records), script_for(prompt).text)}")


def text_of(records: list[AnyRecord]) -> str:
    return "".join(getattr(record, "delta", "") for record in records)


def is_beginning(text: str, expected: str) -> bool:
    # A stream that is stopped inside a character ends with a replacement character.
    return expected.startswith(text.removesuffix("\N{REPLACEMENT CHARACTER}"))


def first_difference(text: str, expected: str) -> str:
    at = next((n for n, (one, other) in enumerate(zip(text, expected, strict=False)) if one != other), len(text))
    got, wanted = text[at : at + 20], expected[at : at + 20]
    return f"{len(text)} of {len(expected)} characters, at {at} {got!r} instead of {wanted!r}"


class WireTap:
    """Checks the records on a client's connections. The client itself drops repeated records without telling."""

    def __init__(self, tally: Tally, url: str) -> None:
        self._url = parse_url(url)
        self._tally = tally

    async def __call__(self) -> trio.abc.Stream:
        stream = await trio.open_tcp_stream(self._url.host, self._url.port)
        return _TappedStream(stream, self._tally)


class _TappedStream(trio.abc.Stream):
    """One connection. Only the records of event streams count."""

    def __init__(self, stream: trio.SocketStream, tally: Tally) -> None:
        self._stream = stream
        self._tally = tally
        self._after = 0
        self._seqs: list[int] | None = None  # of the event stream that is being received
        self._decoder = Decoder()
        self._parser = ResponseParser()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._count()
        found = re.search(rb"\r\nLast-Event-ID: ([^\r]*)", bytes(data).partition(b"\r\n\r\n")[0])
        self._after = parse_event_id(found[1].decode())[1] if found else 0
        self._decoder, self._parser = Decoder(), ResponseParser()
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        if data:
            self._parser.feed(data)
            if self._parser.headers.get("Content-Type", "").startswith("text/event-stream"):
                events = self._decoder.feed(self._parser.take_body())
                self._seqs = (self._seqs or []) + [parse_event_id(event.id)[1] for event in events if event.id]
        return data

    async def aclose(self) -> None:
        self._count()
        await self._stream.aclose()

    def _count(self) -> None:
        if self._seqs is not None:
            self._tally.connections += 1
            self._tally.count(self._seqs, self._after, "on a connection")
            self._seqs = None


@dataclass
class SoakStream:
    """One stream. Its client is cut, and a control client may read it without cuts."""

    prompt: str
    started: trio.Event = field(default_factory=trio.Event)  # there is an id, or the start has failed
    control_attached: trio.Event = field(default_factory=trio.Event)  # or the start has failed
    stream_id: str | None = None
    records: list[AnyRecord] = field(default_factory=list)
    control: list[AnyRecord] = field(default_factory=list)


async def read(client: Client, target: SoakStream, tally: Tally) -> None:
    """Read to the end, over any number of connections. Cancel a `cancels` stream at its 20th record."""
    try:
        async with client.start(request_for(target.prompt)) as stream:
            target.stream_id = stream.id
            target.started.set()
            await _read_into(target.records, stream, cancel_at=20 if target.prompt.startswith("cancels") else None)
    finally:
        target.started.set()
    tally.reconnects += stream.reconnects
    tally.check(target.prompt, target.records, "reader")


async def read_control(client: Client, target: SoakStream, tally: Tally) -> None:
    """The control: read the same stream over a connection without faults."""
    await target.started.wait()
    if target.stream_id is None:
        target.control_attached.set()
        return
    async with client.read(target.stream_id) as stream:
        target.control_attached.set()
        await _read_into(target.control, stream)
    if stream.reconnects:
        tally.wrong.append(f"control {target.prompt!r}: its connection broke {stream.reconnects} times without a fault")
    tally.check(target.prompt, target.control, "control")


async def _read_into(records: list[AnyRecord], stream: ClientStream, *, cancel_at: int | None = None) -> None:
    async for record in stream:
        records.append(record)
        if len(records) == cancel_at:
            await stream.cancel()


class RawStream:
    """One connection as bytes. It can be read slowly, or not at all."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.records: list[AnyRecord] = []
        self.whole = False  # the body has ended according to HTTP
        self._h11 = h11.Connection(h11.CLIENT)
        self._decoder = Decoder()

    @classmethod
    async def start(cls, port: int, prompt: str) -> RawStream:
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await sock.connect(("127.0.0.1", port))
        raw = cls(trio.SocketStream(sock))
        body = msgspec.json.encode(request_for(prompt))
        head = [("Host", "127.0.0.1"), ("Accept", "text/event-stream"), ("Content-Type", "application/json")]
        request = h11.Request(method="POST", target="/v1/streams", headers=[*head, ("Content-Length", str(len(body)))])
        data = [raw._h11.send(part) or b"" for part in (request, h11.Data(data=body), h11.EndOfMessage())]
        await raw.stream.send_all(b"".join(data))
        return raw

    async def receive(self, limit: int) -> bool:
        """Receive at most `limit` bytes. Returns False at the end of the body."""
        data = bytes(await self.stream.receive_some(limit))
        self._h11.receive_data(data)
        while (event := self._h11.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            match event:
                case h11.Data(data=content):
                    for sent in self._decoder.feed(bytes(content)):
                        if sent.id:
                            self.records.append(msgspec.json.decode(sent.data or "", type=AnyRecord))
                case h11.EndOfMessage():
                    self.whole = True
                    return False
                case h11.ConnectionClosed():
                    return False
        return bool(data)

    def close(self, *, reset: bool = False) -> None:
        if reset:
            self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()


async def read_slowly(port: int, client: Client, prompt: str, tally: Tally) -> None:
    """Read slowly in small chunks. Reconnect for the rest if that was too slow for the server."""
    raw = await RawStream.start(port, prompt)
    try:
        while await raw.receive(8192):
            await trio.sleep(0.005)
    except trio.BrokenResourceError:
        await _reconnect(raw, client, tally)
    finally:
        raw.close()
    tally.check(prompt, raw.records, "slow")


async def freeze(port: int, client: Client, prompt: str, tally: Tally) -> None:
    """Stop reading until the server resets the connection. Read the buffered bytes, then reconnect for the rest."""
    raw = await RawStream.start(port, prompt)
    reset_poll = select.poll()
    reset_poll.register(raw.stream.socket.fileno(), 0)  # only errors, such as a reset
    try:
        while len(raw.records) < 2:
            await raw.receive(4096)
        with trio.move_on_after(FROZEN_SECONDS) as frozen:
            while not reset_poll.poll(0):
                await trio.sleep(0.05)
        if frozen.cancelled_caught:
            tally.wrong.append(f"frozen {prompt!r}: the server did not reset the connection")
        while await raw.receive(65536):
            pass
    except trio.BrokenResourceError:
        await _reconnect(raw, client, tally)
    finally:
        raw.close()
    tally.check(prompt, raw.records, "frozen")


async def _reconnect(raw: RawStream, client: Client, tally: Tally) -> None:
    tally.reconnects += 1
    async with client.read(raw.records[0].stream, after=raw.records[-1].seq) as stream:
        await _read_into(raw.records, stream)


async def leave(port: int, prompt: str, tally: Tally) -> None:
    """Disconnect from a stream with the policy `cancel`, and note the time."""
    raw = await RawStream.start(port, prompt)
    script = script_for(prompt)
    try:
        while text_of(raw.records) != script.text:  # after this text the engine stalls
            if not await raw.receive(4096):
                tally.wrong.append(f"leaver {prompt!r}: the body ended before the client left")
                break
    finally:
        raw.close(reset=random.Random(prompt).random() < 0.5)
        tally.closed_at[prompt] = time.monotonic()
    tally.check_beginning(prompt, raw.records, "leaver")
