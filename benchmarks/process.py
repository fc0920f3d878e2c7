"""Starts a server as a process on one core, queries it, measures it and ends it by its process id."""

from __future__ import annotations

import http.client
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.servers import BenchServer

START_SECONDS: Final = 60.0  # LiteLLM imports for long
_SHOWN_BYTES = 2000  # of the server's standard error, in an error
_cores: list[int] = []  # the available cores, before the client pinned itself to one


class ServerFailedError(Exception):
    """A server did not start, or does not respond."""


def cores() -> tuple[int, int]:
    """The server's core and the client's core. They are the same on a machine with one core."""
    available = _cores or sorted(os.sched_getaffinity(0))
    return available[0], available[-1]


def take_client_core() -> None:
    """Pin this process, the client, to its core, and raise its limit of open files to the maximum."""
    _cores[:] = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores()[1]})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True)
class Cpu:
    """CPU time of all threads of a process, in seconds. The kernel counts nanoseconds.

    Attributes:
        used: Time on a core.
        waited: Time in which a thread was ready to run and another process had the core.
    """

    used: float
    waited: float

    def __sub__(self, earlier: Cpu) -> Cpu:
        return Cpu(self.used - earlier.used, self.waited - earlier.waited)


def cpu(pid: int) -> Cpu:
    """The CPU time of a process so far."""
    used = waited = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        figures = (task / "schedstat").read_text().split()
        used += int(figures[0])
        waited += int(figures[1])
    return Cpu(used / 1e9, waited / 1e9)


class ServerProcess:
    """A running server.

    Attributes:
        pid: Its process id.
        port: Where it starts streams.
        reader_port: Where readers follow its streams. Another port if another process serves them (`deployment.py`).
        beside: The other processes of its deployment, by name.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.pid = process.pid
        self.port = port
        self.reader_port = port
        self.beside: dict[str, ServerProcess] = {}

    def cpu(self) -> Cpu:
        """Its CPU time so far."""
        return cpu(self.pid)

    def memory_bytes(self) -> int:
        """Its proportional share of physical memory (PSS)."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        raise ServerFailedError("/proc/PID/smaps_rollup has no line Pss")

    def ask(self, path: str) -> dict[str, object]:
        """Send a GET request. Returns the JSON of the response.

        Raises:
            ServerFailedError: No response in 20 s, or not JSON.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            answer: dict[str, object] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerFailedError(f"GET {path}: {error!r}") from error
        finally:
            connection.close()
        return answer

    def wait_until_listening(self) -> None:
        """Wait until it accepts connections. Only for a server that prints its port before it listens.

        Raises:
            ServerFailedError: It does not within `START_SECONDS`.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise ServerFailedError(f"{self._process.args!r} did not listen within {START_SECONDS:g} s")

    @property
    def made(self) -> int:
        """The number of tokens that its model has generated."""
        made = self.ask("/bench")["made"]
        assert isinstance(made, int)
        return made

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Suspend it inside the block. Bytes that it has already given to the kernel still arrive."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


@contextmanager
def running(server: BenchServer, *, core: int | None = None) -> Iterator[ServerProcess]:
    """Start a server, and end it when the block is left. By default it runs on the server's core.

    An exception that leaves the block carries the end of the server's standard error as a note.

    Raises:
        ServerFailedError: The server did not print its port within `START_SECONDS`.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            (sys.executable, "-m", "benchmarks.pinned", str(cores()[0] if core is None else core), *server.command),
            cwd=server.checkout,
            env=os.environ | {"PYTHONPATH": str(server.checkout)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        try:
            yield ServerProcess(process, _port(process))
        except Exception as error:
            errors.seek(0)
            error.add_note(errors.read()[-_SHOWN_BYTES:].decode(errors="replace"))
            raise
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _port(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    deadline = time.monotonic() + START_SECONDS
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        byte = os.read(process.stdout.fileno(), 1) if ready else b""
        if not byte:
            raise ServerFailedError(f"{process.args!r} did not print its port within {START_SECONDS:g} s")
        line += byte
    return int(line)
