"""The servers that are measured, one file for each. Each runs in a separate process, which prints its port.

All but the gateways have the same interface:

- `POST /v1/streams` with `{"input": SPEC, "on_disconnect": ...}` starts a stream and answers with its events.
- `GET /v1/streams/{id}/events` with `Last-Event-ID` follows or resumes a stream.
- Event ids are `{stream}.{seq}`. Records are JSON with `type`, `seq` and `delta`.
- `GET /bench` reports the state of the stand-in model. `GET /bench/go` lets it begin.

A gateway has no model. It takes chat completions, and passes them on to a model server.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias

from benchmarks.client.wire import Wire

_HERE = Path(__file__).parent
_PYTHON = (sys.executable, "-m")

Side: TypeAlias = Literal["ours", "python", "other"]


@dataclass(frozen=True, kw_only=True)
class BenchServer:
    """How to start one server.

    Attributes:
        label: For tables and plots.
        command: The command that starts it.
        side: Only `python` rivals count for the goals.
        checkout: The project folder whose code the command runs.
        wire: What its clients speak, where the scenario does not decide.
        log: Where its logs are. `deployment.py` starts the Redis.
        readers: Whether the process that generates serves the readers, or a second process.
    """

    label: str
    command: tuple[str, ...]
    side: Side
    checkout: Path = _HERE.parent.parent
    wire: Wire | None = None
    log: Literal["memory", "redis"] = "memory"
    readers: Literal["here", "elsewhere"] = "here"


def _ours(label: str, *options: str) -> BenchServer:
    return BenchServer(label=label, command=(*_PYTHON, "benchmarks.servers.crucible", *options), side="ours")


_OVER_REDIS: Final = replace(_ours("log in Redis"), log="redis")


def _gateway(label: str, module: str, side: Side = "python") -> BenchServer:
    command = (*_PYTHON, f"benchmarks.servers.gateway_{module}")
    return BenchServer(label=label, command=command, side=side, wire="chat")


def _rival(label: str, module: str) -> BenchServer:
    return BenchServer(label=label, command=(*_PYTHON, f"benchmarks.servers.{module}"), side="python")


SERVERS: Final[dict[str, BenchServer]] = {
    "crucible": _ours("crucible_trio"),
    "crucible-plain": _ours("crucible_trio, plain path", "--plain"),
    "crucible-redis": _OVER_REDIS,
    "crucible-elsewhere": replace(_OVER_REDIS, label="log in Redis, readers in a second process", readers="elsewhere"),
    "sse-starlette": _rival("sse-starlette, uvicorn", "starlette_sse"),
    "fastapi": _rival("fastapi.sse, uvicorn", "fastapi_sse"),
    "aiohttp-sse": _rival("aiohttp-sse", "aiohttp_server"),
    "quart-trio": _rival("quart-trio, hypercorn", "quart_naive"),
    "node": BenchServer(label="Node http", command=("node", str(_HERE / "node_http.mjs")), side="other"),
    # Gateways take the model server's base URL as their last argument.
    "crucible-native": BenchServer(label="crucible_trio, native wire", command=(), side="ours", wire="native"),
    "aiohttp-gateway": _gateway("aiohttp, by hand", "aiohttp"),
    "fastapi-gateway": _gateway("FastAPI, httpx", "fastapi"),
    "litellm": _gateway("LiteLLM proxy", "litellm", side="other"),
    "nginx": _gateway("nginx", "nginx", side="other"),
}

OURS: Final = "crucible"
PLAIN: Final = "crucible-plain"
REDIS: Final = "crucible-redis"
ELSEWHERE: Final = "crucible-elsewhere"


def bare_form(form: str) -> BenchServer:
    """The bare form of a server: prepared frames, no queue and no log."""
    return BenchServer(label=f"bare {form}", command=(*_PYTHON, "benchmarks.servers.bare", form), side="other")
