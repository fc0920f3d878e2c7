"""Soak test across processes: several `crucible serve` with one Redis, and readers that change between them.

Each reader starts a stream on some process, is cut at random, and comes back to a random process each time. Meanwhile
processes are killed and started again, one is terminated and started again, and Redis loses its connections. At the
end every reader has every record once and in order, and processes and Redis hold no more than at the start.

    python tests/soak/processes.py --seconds 60 --readers 200 --kills 3
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import msgspec
import trio

from crucible_trio.http.parser import ResponseParser
from crucible_trio.records import parse_event_id
from crucible_trio.sse import Decoder

LEASE_SECONDS = 4.0  # a process on a busy machine may wait for its core for some seconds
PATIENCE_SECONDS = 60.0
MEMORY_GROWTH_MIB = 30.0  # a process that serves hundreds of streams keeps free lists and pools


COUNT_LEASES = "return #redis.call('KEYS', '*:lease')"
COUNT_KEPT = """
local count = 0
for _, key in ipairs(redis.call('KEYS', '*')) do
  if redis.call('PTTL', key) == -1 then count = count + 1 end
end
return count
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass
class Server:
    """One `crucible serve`, on a port that it keeps over restarts."""

    url: str
    retention: float
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = "from crucible_trio.cli import main; main()"
        options = ["serve", "--engine", "replay", "--replay-speed", "4", "--bind", f"127.0.0.1:{self.port}"]
        settings = {
            "LOG_URL": self.url,
            "TOKEN_SECRET": "a secret of this test",
            "LOG_LEASE_SECONDS": str(LEASE_SECONDS),
            "RETENTION_SECONDS": str(self.retention),
            "RETRY_MILLISECONDS": "10",
            "DRAIN_SECONDS": "1",
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CRUCIBLE_")}
        environment |= {f"CRUCIBLE_{name}": value for name, value in settings.items()}
        self.process = subprocess.Popen([sys.executable, "-c", program, *options], env=environment, stderr=sys.stderr)

    async def ready(self) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                with suppress(OSError, trio.BrokenResourceError):
                    if (await request(self.port, "GET", "/readyz"))[0] == 200:
                        return
                await trio.sleep(0.05)

    async def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return await trio.to_thread.run_sync(self.process.wait)

    @property
    def mib(self) -> float:
        assert self.process is not None
        with open(f"/proc/{self.process.pid}/status") as file:
            return int(re.search(r"VmRSS:\s+(\d+)", file.read())[1]) / 1024  # type: ignore[index]

    @property
    def files(self) -> int:
        assert self.process is not None
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@dataclass
class Tally:
    """Errors, and numbers of what happened."""

    lost: int = 0
    repeated: int = 0
    reordered: int = 0
    wrong: list[str] = field(default_factory=list)
    streams: int = 0
    completed: int = 0
    producer_lost: int = 0
    cancelled: int = 0
    cuts: int = 0
    resumed_elsewhere: int = 0
    compared: int = 0


async def request(port: int, method: str, path: str, body: bytes = b"", headers: str = "") -> tuple[int, bytes]:
    """Send a request whose response is short."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
        await stream.send_all(f"{head}Content-Length: {len(body)}\r\n{headers}\r\n".encode() + body)
        answer = b""
        with suppress(trio.BrokenResourceError):
            while data := await stream.receive_some():
                answer += data
    head_bytes, _, rest = answer.partition(b"\r\n\r\n")
    return int(head_bytes.split()[1]) if head_bytes else 0, rest


@asynccontextmanager
async def events(port: int, path: str, last_id: str) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
    """The events of a stream, as id and data. The iterator ends with the body or the connection."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        last = f"Last-Event-ID: {last_id}\r\n" if last_id else ""
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{last}\r\n".encode())
        parser, decoder = ResponseParser(), Decoder()

        async def iterate() -> AsyncGenerator[tuple[str, bytes], None]:
            with suppress(trio.BrokenResourceError):
                # The server keeps an idle connection open for seconds after the body's end.
                while not parser.is_complete and (data := await stream.receive_some()):
                    parser.feed(bytes(data))
                    if parser.has_head and parser.status != 200:
                        raise RefusedError(parser.status)
                    for event in decoder.feed(parser.take_body()):
                        if event.id:
                            yield event.id, (event.data or "").encode()

        async with aclosing(iterate()) as received:
            yield received


class RefusedError(Exception):
    """The server has answered with another status than 200."""


@dataclass
class Soak:
    """One run."""

    servers: list[Server]
    seconds: float
    chance: random.Random
    tally: Tally = field(default_factory=Tally)
    text: str = ""
    until: float = 0.0

    async def read_forever(self) -> None:
        while time.monotonic() < self.until:
            await self.read_one()

    async def read_one(self) -> None:
        """Start a stream and read it to its end, over many connections to many processes."""
        tally, seqs, texts = self.tally, [], []
        last_id, last_port, frames = "", 0, []
        end: dict[str, object] = {}
        key = f"key-{self.chance.getrandbits(64):x}"
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not end:
            if time.monotonic() > deadline:
                tally.wrong.append(f"{last_id}: no end after {PATIENCE_SECONDS} s")
                return
            port = self.chance.choice(self.servers).port
            path = f"/v1/streams/{last_id.partition('.')[0]}/events?done=event"
            if not last_id:
                path = f"/v1/generate?prompt=x&idempotency_key={key}"
            tally.resumed_elsewhere += bool(last_port) and port != last_port
            last_port = port
            try:
                with trio.move_on_after(PATIENCE_SECONDS) as scope:
                    async with events(port, path, last_id) as received:
                        async for last_id, data in received:
                            # From its first event on, so that every connection makes progress.
                            cut_at = trio.current_time() + self.chance.expovariate(4)
                            scope.deadline = min(scope.deadline, cut_at)
                            record = msgspec.json.decode(data)
                            seqs.append(parse_event_id(last_id)[1])
                            frames.append(data)
                            texts.append(record.get("delta", ""))
                            deadline = time.monotonic() + PATIENCE_SECONDS
                            if record["type"] in {"stream.completed", "stream.failed", "stream.cancelled"}:
                                end = record
                                break
                tally.cuts += scope.cancelled_caught
            except (OSError, trio.BrokenResourceError):
                await trio.sleep(0.02)
            except RefusedError as refusal:
                if refusal.args[0] not in {429, 500, 503}:  # 500: the process is about to end
                    tally.wrong.append(f"{last_id or path}: status {refusal}")
                    return
                await trio.sleep(0.05)
        self._check(last_id, seqs, "".join(texts), end)
        if self.chance.random() < 0.3:
            await self._compare(last_id.partition(".")[0], frames)

    def _check(self, last_id: str, seqs: list[int], text: str, end: dict[str, object]) -> None:
        tally = self.tally
        tally.streams += 1
        for before, seq in zip([0, *seqs], seqs, strict=False):
            if seq == before + 1:
                continue
            tally.lost += max(0, seq - before - 1)
            tally.repeated += seq == before
            tally.reordered += seq < before
            tally.wrong.append(f"{last_id}: record {seq} came after record {before}")
        if end["type"] == "stream.completed":
            tally.completed += 1
            is_right = text == self.text
        else:
            is_right = self.text.startswith(text)
            error = end.get("error")
            code = error["code"] if isinstance(error, dict) else end.get("by")
            tally.producer_lost += code == "producer_lost"
            tally.cancelled += code == "shutdown"
            if code not in {"producer_lost", "shutdown"}:
                tally.wrong.append(f"{last_id}: ended with {end}")
        if not is_right:
            tally.wrong.append(f"{last_id}: wrong text of {len(text)} characters")

    async def _compare(self, stream_id: str, frames: list[bytes]) -> None:
        """Read the whole stream from some process."""
        whole: list[bytes] = []
        with suppress(OSError, RefusedError, trio.BrokenResourceError):
            async with events(self.chance.choice(self.servers).port, f"/v1/streams/{stream_id}/events", "") as received:
                whole = [data async for _, data in received]
        if whole and whole[-1] == frames[-1]:  # not cut by the end of its process
            self.tally.compared += 1
            if whole != frames:
                self.tally.wrong.append(f"{stream_id}: another process has other records")

    async def disturb(self, kills: int, redis_port: int) -> None:
        """Kill processes, restart one in order, and drop the connections of Redis.

        The first process lives on, so that there is one whose memory and files can be compared with the start.
        """
        mortal = self.servers[1:]
        pause = self.seconds / (kills + 3)
        for number in range(kills):
            await trio.sleep(pause)
            server = self.chance.choice(mortal)
            await server.end(signal.SIGKILL)
            await trio.sleep(pause / 3 if number % 2 else 0)
            server.start()
            await server.ready()
        await trio.sleep(pause)
        redis(redis_port, "CLIENT", "KILL", "TYPE", "normal")
        await trio.sleep(pause / 2)
        server = self.chance.choice(mortal)
        code = await server.end(signal.SIGTERM)
        if code != 0:
            self.tally.wrong.append(f"SIGTERM: exit code {code}")
        server.start()
        await server.ready()


def redis(port: int, *words: str) -> str:
    """Send one command to Redis."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        parts = [f"${len(word)}\r\n{word}\r\n" for word in words]
        sock.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
        return sock.makefile("rb").readline().decode().strip()


async def soak(options: argparse.Namespace, folder: str) -> bool:
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
    redis_process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        [*command, "--loglevel", "warning"], stdout=subprocess.DEVNULL
    )
    servers = [Server(f"redis://127.0.0.1:{port}/0", options.retention) for _ in range(options.processes)]
    run = Soak(servers, options.seconds, random.Random(options.seed))
    tally = run.tally
    try:
        for _ in range(100):
            with suppress(OSError):
                if redis(port, "PING") == "+PONG":
                    break
            await trio.sleep(0.05)
        for server in servers:
            server.start()
        for server in servers:
            await server.ready()
        async with events(servers[0].port, "/v1/generate?prompt=x", "") as received:
            run.text = "".join([msgspec.json.decode(data).get("delta", "") async for _, data in received])
        for server in servers:
            async with events(server.port, "/v1/generate?prompt=x", "") as received:
                _ = [data async for data in received]
        before = [(server.mib, server.files) for server in servers]
        started = [server.process for server in servers]
        run.until = time.monotonic() + options.seconds
        async with trio.open_nursery() as nursery:
            for _ in range(options.readers):
                nursery.start_soon(run.read_forever)
            nursery.start_soon(partial(run.disturb, options.kills, port))
        await _back_to_start(run, port, before, started)
        print(
            f"{options.processes} processes, {options.readers} readers, {options.kills} killed, 1 terminated: "
            f"{tally.streams} streams ({tally.completed} completed, {tally.producer_lost} lost their process, "
            f"{tally.cancelled} ended by the shutdown), {tally.cuts} cuts, {tally.resumed_elsewhere} resumed on "
            f"another process, {tally.compared} compared"
        )
        print(
            f"lost {tally.lost}, repeated {tally.repeated}, reordered {tally.reordered}, "
            f"other errors {len(tally.wrong)}"
        )
        for message in tally.wrong[:20]:
            print(" ", message)
    finally:
        for server in servers:
            if server.process is not None:
                server.process.kill()
                server.process.wait()
        redis_process.kill()
        redis_process.wait()
    # If one of these is 0, a promise was not tested.
    needed = [tally.completed, tally.cuts, tally.resumed_elsewhere, tally.compared]
    if options.kills:
        needed.append(tally.producer_lost)
    if not all(needed):
        print("one of these numbers is 0: the run was too short")
    return not tally.wrong and all(needed)


async def _back_to_start(
    run: Soak,
    port: int,
    before: list[tuple[float, int]],
    started: list[subprocess.Popen[bytes] | None],
) -> None:
    """Wait until processes and Redis hold no more than before. Leftovers are an error."""
    wrong = run.tally.wrong
    await trio.sleep(run.servers[0].retention)
    deadline = time.monotonic() + PATIENCE_SECONDS
    # Ids and idempotency keys are remembered for an hour, and an unread stream of a dead process for two minutes.
    for what, script in (("leases", COUNT_LEASES), ("keys that never expire", COUNT_KEPT)):
        while number := int(redis(port, "EVAL", script, "0").removeprefix(":")):
            if time.monotonic() > deadline:
                wrong.append(f"Redis still has {number} {what}")
                break
            await trio.sleep(0.2)
    await trio.sleep(12)  # mirrors linger for 10 s
    for server, process, (mib, files) in zip(run.servers, started, before, strict=True):
        _, metrics = await request(server.port, "GET", "/metrics")
        for name in ("readers", "streams_running", "streams_kept", "log_bytes"):
            found = re.search(rf"^crucible_{name} (\S+)".encode(), metrics, re.MULTILINE)
            if found is None or float(found[1]) != 0:
                wrong.append(f"port {server.port}: {name} is {found and found[1].decode()} at the end")
        if server.process is process:
            print(f"port {server.port}: {mib:.1f} to {server.mib:.1f} MiB, {files} to {server.files} files")
            if server.mib > mib + MEMORY_GROWTH_MIB:
                wrong.append(f"port {server.port}: memory grew from {mib:.1f} to {server.mib:.1f} MiB")
            if server.files > files:
                wrong.append(f"port {server.port}: {files} open files became {server.files}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--processes", type=int, default=4, help="2 or more, the first is not killed")
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--kills", type=int, default=3)
    # Readers on a busy machine may need some seconds to come back.
    parser.add_argument("--retention", type=float, default=20.0, help="seconds for which ended streams are kept")
    parser.add_argument("--seed", type=int, default=random.getrandbits(32))
    options = parser.parse_args()
    if options.processes < 2:
        parser.error("--processes must be 2 or more")
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory() as folder:
        ok = trio.run(soak, options, folder)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
