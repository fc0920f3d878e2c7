"""The conditions of a run: the machine, the versions, and the load of other processes."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Final

from benchmarks.servers.gateway_litellm import PROGRAM as LITELLM

_PACKAGES: Final = (
    "crucible_trio", "trio", "quart-trio", "quart", "hypercorn", "h11", "msgspec",
    "fastapi", "starlette", "sse-starlette", "uvicorn", "uvloop", "httptools", "httpx", "aiohttp", "aiohttp-sse",
    "hiredis",
)  # fmt: skip


def describe() -> dict[str, str]:
    """Processor, cores, memory, kernel and system."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    memory = next(int(line.split()[1]) // 2**20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    return {
        "processor": cpu,
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory} GiB",
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
    }


def versions() -> dict[str, str]:
    """Versions of Python, Node, this project and all packages that are measured."""
    return {
        "python": platform.python_version(),
        "node": _output("node", "--version").removeprefix("v"),
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        **{package: version(package) for package in _PACKAGES},
        "redis": _output("redis-server", "--version").partition("v=")[2].partition(" ")[0] or "unknown",
        "litellm": _litellm(),
        "nginx": _output("nginx", "-V").partition("/")[2].partition(" ")[0].partition("\n")[0],
    }


def _litellm() -> str:
    folders = [str(folder) for folder in LITELLM.parent.parent.glob("lib/python3.*/site-packages")]
    return next((found.version for found in distributions(name="litellm", path=folders)), "unknown")


def busy_share(seconds: float) -> float:
    """The share of all cores that other processes use during the next `seconds`. This process sleeps meanwhile."""
    idle, total = _times()
    time.sleep(seconds)
    idle_after, total_after = _times()
    return 1 - (idle_after - idle) / max(1, total_after - total)


def _times() -> tuple[int, int]:
    times = [int(field) for field in _lines("/proc/stat")[0].split()[1:]]
    return times[3] + times[4], sum(times[:8])


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (done.stdout or done.stderr).strip()  # nginx writes its version to standard error
