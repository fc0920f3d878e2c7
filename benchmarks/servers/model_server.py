"""A scripted model server: chat completions as vLLM streams them, for the relay. One timer feeds all streams.

The prompt is a `Spec` of kind `batch`. Plain sockets and epoll, so that it takes little of the client's core.
"""

from __future__ import annotations

import json
import select
import socket
import time

from benchmarks.spec import Spec
from benchmarks.tokens import stamp, token

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = (
    'data: {{"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1760000000,'
    '"model":"benchmark","choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}]}}\n\n'
)


def _chunk(data: str) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data.encode())


_ROLE = _chunk(_EVENT.format(delta='{"role":"assistant","content":""}', finish="null"))
_END = _chunk(_EVENT.format(delta="{}", finish='"stop"')) + _chunk("data: [DONE]\n\n") + b"0\r\n\r\n"


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""
        self.number = 0
        self.spec: Spec | None = None


class ModelServer:
    """Accepts requests, and sends a token to each stream at every tick after `GET /bench/go`."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._connections: dict[int, _Connection] = {}
        self._streams: dict[_Connection, None] = {}
        self._period = 1.0
        self._is_going = False

    def run(self) -> None:
        """Print the port, and serve."""
        print(self._listener.getsockname()[1], flush=True)
        due = 0.0
        while True:
            wait = max(0.0, due - time.monotonic()) if self._is_going else -1
            for file, _ in self._epoll.poll(wait):
                if file == self._listener.fileno():
                    self._accept()
                else:
                    self._receive(self._connections[file])
            if self._is_going and time.monotonic() >= due:
                due = max(due + self._period, time.monotonic())  # a delayed model does not catch up
                self._tick()

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections[sock.fileno()] = _Connection(sock)
        self._epoll.register(sock, select.EPOLLIN)

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(64 * 1024)
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        connection.received += data
        head, blank, body = connection.received.partition(b"\r\n\r\n")
        if head.startswith(b"GET /bench/go"):
            self._is_going = True  # a request may still be on its way through the gateway
            connection.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            connection.received = b""
        elif blank and b'"messages"' in body:
            try:
                request = json.loads(body)
            except ValueError:
                return  # there is more to come
            connection.received = b""
            connection.spec = Spec.from_json(request["messages"][-1]["content"])
            connection.number = 0
            self._period = 1 / connection.spec.rate
            self._streams[connection] = None
            connection.sock.sendall(_HEAD + _ROLE)

    def _tick(self) -> None:
        stamped = stamp(time.monotonic_ns())
        for connection in tuple(self._streams):
            assert connection.spec is not None
            text = token(stamped, connection.number)
            data = _chunk(_EVENT.format(delta=f'{{"content":"{text}"}}', finish="null"))
            connection.number += 1
            if connection.number == connection.spec.tokens:
                del self._streams[connection]
                data += _END
            try:
                connection.sock.sendall(data)
            except OSError:
                self._close(connection)

    def _close(self, connection: _Connection) -> None:
        self._streams.pop(connection, None)
        self._connections.pop(connection.sock.fileno(), None)
        connection.sock.close()


if __name__ == "__main__":
    ModelServer().run()
