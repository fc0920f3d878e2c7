"""A server as a process of its own: started on its core, asked, measured and ended by its own id."""

from __future__ import annotations

import http.client
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.servers import Server

START_SECONDS: Final = 30.0
PROJECT: Final = Path(__file__).parent.parent
_SHOWN_OF_ERRORS = 2000
_cores: list[int] = []  # all there were before the client took one


class ServerFailedError(Exception):
    """A server did not start, or does not answer."""


def cores() -> tuple[int, int]:
    """Where servers run, and where the client runs; the same one if there is but one."""
    available = _cores or sorted(os.sched_getaffinity(0))
    return available[0], available[-1]


def take_client_core() -> None:
    """Pin this process, the client, and let it have as many files as it may."""
    _cores[:] = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores()[1]})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True)
class Cpu:
    """Seconds, to the nanosecond, over all threads of a process.

    Attributes:
        used: On a core.
        waited: Ready to run while something else had the core.
    """

    used: float
    waited: float

    def __sub__(self, earlier: Cpu) -> Cpu:
        return Cpu(self.used - earlier.used, self.waited - earlier.waited)


def cpu(pid: int) -> Cpu:
    """What a process has used so far."""
    used = waited = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        figures = (task / "schedstat").read_text().split()
        used += int(figures[0])
        waited += int(figures[1])
    return Cpu(used / 1e9, waited / 1e9)


class Process:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.pid = process.pid
        self.port = port

    def cpu(self) -> Cpu:
        """What it has used so far."""
        return cpu(self.pid)

    def memory_bytes(self) -> int:
        """Its share of physical memory."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        raise ServerFailedError("the kernel does not say how much memory a process has")

    def ask(self, path: str) -> dict[str, object]:
        """What it answers to a GET, as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            answer: dict[str, object] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerFailedError(f"GET {path}: {error!r}") from error
        finally:
            connection.close()
        return answer

    @property
    def made(self) -> int:
        """How many tokens its model has made."""
        made = self.ask("/bench")["made"]
        assert isinstance(made, int)
        return made

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it do nothing for a while; what the kernel has from it still arrives."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


@contextmanager
def running(server: Server) -> Iterator[Process]:
    """Start a server, and end it. An error that leaves this carries the end of the server's standard error as a note.

    Raises:
        ServerFailedError: It did not print its port in time.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            (sys.executable, "-m", "benchmarks.pinned", str(cores()[0]), *server.command),
            cwd=server.folder or PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        try:
            yield Process(process, _port(process))
        except Exception as error:
            errors.seek(0)
            error.add_note(errors.read()[-_SHOWN_OF_ERRORS:].decode(errors="replace"))
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
            raise ServerFailedError(f"{process.args!r} did not print its port")
        line += byte
    return int(line)
