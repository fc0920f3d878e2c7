"""Many readers of one server in one thread, with raw sockets and epoll."""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

from benchmarks.client.wire import Wire, make_parser
from benchmarks.spec import Spec
from benchmarks.tokens import check

_RECEIVE_BYTES: Final = 64 * 1024
_WAVE: Final = 50  # connections opened at a time, fewer than any server's backlog
_RESET: Final = struct.pack("ii", 1, 0)


class LoadError(Exception):
    """A time-out, a broken connection or a wrong response."""


class LoadReader:
    """One reader of one stream. Times are `time.monotonic_ns()`.

    Attributes:
        name: The stream's name.
        wire: Parses the response.
        asked_at: When the request was sent.
        record_at: When the first record arrived, 0 before.
        token_at: When the first token arrived, 0 before.
        batches: The deltas so far, as pairs of arrival time and deltas.
        broken: Why the connection ended early. Empty if it did not.
    """

    __slots__ = ("asked_at", "batches", "broken", "name", "record_at", "request", "sock", "token_at", "wire")

    def __init__(self, name: str, sock: socket.socket, request: bytes, wire: Wire) -> None:
        self.name = name
        self.sock = sock
        self.request = request
        self.wire = make_parser(wire)
        self.asked_at = 0
        self.record_at = 0
        self.token_at = 0
        self.batches: list[tuple[int, list[bytes]]] = []
        self.broken = ""

    def ask(self) -> None:
        """Send the request."""
        self.asked_at = time.monotonic_ns()
        self.sock.sendall(self.request)

    @property
    def text(self) -> bytes:
        """All deltas, joined."""
        return b"".join([b"".join(deltas) for _, deltas in self.batches])

    def has(self, number: int) -> bool:
        """Whether token `number` is the last one that has arrived."""
        return bool(self.batches) and self.batches[-1][1][-1].endswith(b"%07d " % number)

    def check(self, count: int | None = None) -> int:
        """Check that it got its tokens, each once and in order. Returns their number (see `tokens.check`)."""
        return check(self.text, count=count)


class Load:
    """The readers of one server, on one wire.

    Args:
        port: Where they read.
        wire: What they speak.
        start_port: Where streams are started. None: at `port`. Otherwise `start` makes the readers follow at `port`.
    """

    def __init__(self, port: int, wire: Wire = "native", *, start_port: int | None = None) -> None:
        self.port = port
        self._wire: Wire = wire
        self._start_port = port if start_port is None else start_port
        self.readers: list[LoadReader] = []
        self._by_file: dict[int, LoadReader] = {}
        self._epoll = select.epoll()

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._by_file.values():
            reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)  # no sockets in TIME_WAIT
            reader.sock.close()
        self._epoll.close()

    def connect_start(self, spec: Spec, *, receive_buffer: int | None = None, **fields: object) -> LoadReader:
        """Connect for a `POST` that starts a stream. `LoadReader.ask` sends it."""
        if self._wire == "chat":
            path, message = "/v1/chat/completions", {"role": "user", "content": spec.to_json()}
            fields |= {"model": "benchmark", "messages": [message], "stream": True}
        else:
            path, fields = "/v1/streams", fields | {"input": spec.to_json()}
        body = json.dumps(fields).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return self._connect(self._start_port, spec.name, head.encode() + body, receive_buffer)

    def connect_follow(self, stream: str, after: int = 0) -> LoadReader:
        """Connect for a `GET` that follows a stream. `LoadReader.ask` sends it."""
        head = f"GET /v1/streams/{stream}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
        if after:
            head += f"Last-Event-ID: {stream}.{after}\r\n"
        return self._connect(self.port, stream, f"{head}\r\n".encode(), None)

    def _connect(self, port: int, name: str, request: bytes, receive_buffer: int | None) -> LoadReader:
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(10)
        sock.connect(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        reader = LoadReader(name, sock, request, self._wire)
        self.readers.append(reader)
        self._by_file[sock.fileno()] = reader
        self._epoll.register(sock, select.EPOLLIN)
        return reader

    def open(self, connect: list[Callable[[], LoadReader]], timeout: float = 60.0) -> list[LoadReader]:
        """Connect and send the requests, `_WAVE` at a time, until each has its first record.

        Raises:
            LoadError: A time-out, or a request was refused.
        """
        opened: list[LoadReader] = []
        for begin in range(0, len(connect), _WAVE):
            wave = [make() for make in connect[begin : begin + _WAVE]]
            for reader in wave:
                reader.ask()
            self.run(timeout, lambda wave=wave: all(reader.record_at or reader.broken for reader in wave))
            opened += wave
        for reader in opened:
            if reader.broken or reader.wire.status != 200:
                raise LoadError(f"{reader.name}: status {reader.wire.status}, {reader.broken or 'open'}")
        return opened

    def start(self, specs: list[Spec], *, timeout: float = 60.0, **fields: object) -> list[LoadReader]:
        """Start a stream for each specification, as `open` does. Returns the reader of each."""
        if self._start_port != self.port:
            fields["on_disconnect"] = "continue"
        started = self.open([lambda spec=spec: self.connect_start(spec, **fields) for spec in specs], timeout)
        if self._start_port == self.port:
            return started
        streams = [reader.wire.stream for reader in started]
        followers = self.open([lambda stream=stream: self.connect_follow(stream) for stream in streams], timeout)
        for reader in started:
            self.close(reader)
            self.readers.remove(reader)
        return followers

    def run_for(self, seconds: float) -> None:
        """Read for this many seconds."""
        self._run(time.monotonic() + seconds, lambda: False)

    def run(self, timeout: float, until: Callable[[], bool]) -> None:
        """Read until a condition holds.

        Raises:
            LoadError: It does not hold in time.
        """
        if not self._run(time.monotonic() + timeout, until):
            raise LoadError(f"the readers did not get far enough within {timeout:g} s")

    def finish(self, timeout: float) -> None:
        """Read until each stream has its terminal record.

        Raises:
            LoadError: A time-out, or a connection broke.
        """
        self.run(timeout, lambda: not self._by_file or all(r.wire.completed for r in self._by_file.values()))
        for reader in self.readers:
            if not reader.wire.completed:
                raise LoadError(f"{reader.name}: {reader.broken or 'no terminal record'}")

    def close(self, reader: LoadReader) -> None:
        """Close one connection."""
        self._by_file.pop(reader.sock.fileno(), None)
        reader.sock.close()

    def pause(self, reader: LoadReader) -> None:
        """Read a connection only in `read_paused` from now on."""
        self._epoll.unregister(reader.sock)

    def read_paused(self, reader: LoadReader) -> None:
        """Read everything that has arrived on a paused connection."""
        while reader.sock.fileno() in self._by_file and self._receive(reader):
            pass

    def _run(self, deadline: float, until: Callable[[], bool]) -> bool:
        poll, by_file = self._epoll.poll, self._by_file
        while not until():
            left = deadline - time.monotonic()
            if left <= 0:
                return until()
            for file, _ in poll(min(left, 0.05), 1024):
                self._receive(by_file[file])
        return True

    def _receive(self, reader: LoadReader) -> bool:
        try:
            data = reader.sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            self._lost(reader, repr(error))
            return False
        if not data:
            self._lost(reader, "closed by the server")
            return False
        deltas = reader.wire.feed(data)
        now = time.monotonic_ns()
        if deltas:
            reader.batches.append((now, deltas))
            if not reader.token_at:
                reader.token_at = now
        if not reader.record_at and reader.wire.records:
            reader.record_at = now
        return True

    def _lost(self, reader: LoadReader, why: str) -> None:
        reader.broken = why
        self.close(reader)
