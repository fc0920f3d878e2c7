"""The servers that are measured, one file each; every one is started as a process of its own and prints its port.

All speak the same: `POST /v1/streams` with `{"input": SPEC, "on_disconnect": ...}` answers with the stream,
`GET /v1/streams/{id}/events` with `Last-Event-ID` follows or resumes it, ids are `{stream}.{seq}`, records are JSON
with `type`, `seq` and `delta`. `GET /bench` tells what the model did, `GET /bench/go` lets it begin.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

_HERE = Path(__file__).parent
_PYTHON = (sys.executable, "-m")

Side: TypeAlias = Literal["ours", "python", "other"]


@dataclass(frozen=True, kw_only=True)
class Server:
    """One of them.

    Attributes:
        label: For people.
        command: What starts it, in the project's folder.
        side: Only `python` rivals count for the goals.
        folder: The checkout whose code it runs. None is this one.
    """

    label: str
    command: tuple[str, ...]
    side: Side
    folder: Path | None = None


SERVERS: Final[dict[str, Server]] = {
    "crucible": Server(label="crucible_trio", command=(*_PYTHON, "benchmarks.servers.crucible"), side="ours"),
    "crucible-plain": Server(
        label="crucible_trio, plain path", command=(*_PYTHON, "benchmarks.servers.crucible", "--plain"), side="ours"
    ),
    "sse-starlette": Server(
        label="sse-starlette, uvicorn", command=(*_PYTHON, "benchmarks.servers.starlette_sse"), side="python"
    ),
    "fastapi": Server(
        label="fastapi.sse, uvicorn", command=(*_PYTHON, "benchmarks.servers.fastapi_sse"), side="python"
    ),
    "aiohttp-sse": Server(label="aiohttp-sse", command=(*_PYTHON, "benchmarks.servers.aiohttp_server"), side="python"),
    "quart-trio": Server(
        label="quart-trio, hypercorn", command=(*_PYTHON, "benchmarks.servers.quart_naive"), side="python"
    ),
    "node": Server(label="Node http", command=("node", str(_HERE / "node_http.mjs")), side="other"),
}

OURS: Final = "crucible"
PLAIN: Final = "crucible-plain"


def bare_form(form: str) -> Server:
    """The bare form of a server: ready-made frames, no queue and no log."""
    return Server(label=f"bare {form}", command=(*_PYTHON, "benchmarks.servers.bare", form), side="other")
