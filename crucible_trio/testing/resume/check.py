"""What is asked for: a server, its wire, and how much of it is cut."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Final

from crucible_trio.testing.resume.asgi import App, open_asgi
from crucible_trio.testing.resume.clients import CLIENTS
from crucible_trio.testing.resume.network import open_tcp
from crucible_trio.testing.resume.phases import Checking, Cuts, Progress
from crucible_trio.testing.resume.report import Phase, Report
from crucible_trio.testing.resume.stage import Stage
from crucible_trio.testing.resume.wire import Wire

PHASES: Final[tuple[Phase, ...]] = ("log", "live")
LIVE_CUTS: Final = 40  # per client, where no engine waits for the cut: each costs a whole generation
AT_ONCE: Final = 8
TIMEOUT_SECONDS: Final = 60.0  # a model may load first, and wait for a place


async def check(
    target: str | App,
    wire: Wire | None = None,
    *,
    clients: Iterable[str] = tuple(CLIENTS),
    phases: Iterable[Phase] = PHASES,
    cuts: Sequence[int] | None = None,
    log_cuts: int | None = None,
    live_cuts: int | None = None,
    take_turns: bool = False,
    stage: Stage | None = None,
    seed: int = 0,
    at_once: int = AT_ONCE,
    timeout: float = TIMEOUT_SECONDS,
    on_progress: Progress | None = None,
) -> Report:
    """Cut a server's streams, reconnect as its clients do, and look for what is lost or comes twice.

    Args:
        target: A URL, or an ASGI application that runs on trio. An application's lifespan is run.
        wire: How the server is to be used; None: as this package's own.
        clients: Names out of `CLIENTS`.
        phases: `log`, `live` or both.
        cuts: These bytes and no others, in both phases: for seeing a failure again.
        log_cuts: How many bytes to pick per client from the log; None: every one.
        live_cuts: How many to pick live; None: every one with a stage, else 40.
        take_turns: Whether each byte is cut once per phase, by the clients in turn, and not once by each of them.
        stage: What the server's engine waits at. It must write the same text for every stream then.
        seed: Picks the bytes where not every one is cut.
        at_once: Cuts that are made at a time.
        timeout: Seconds without an event after which a response counts as stuck.
        on_progress: Is told about every cut.

    Returns:
        What was found. A server that is not there, or whose streams are too small, is a `problem` in it, no exception.

    Raises:
        ConfigError: The URL cannot be used, or the application does not start.
        ValueError: There is no such client.

    Cancellation: open connections are reset; streams that were started are left to the server.
    """
    chosen = list(dict.fromkeys(clients))
    if unknown := [name for name in chosen if name not in CLIENTS]:
        message = f"there is no client {unknown[0]!r}; there is {', '.join(CLIENTS)}"
        raise ValueError(message)
    async with open_tcp(target) if isinstance(target, str) else open_asgi(target) as network:
        again = f"crucible check {shlex.quote(target)}" if isinstance(target, str) else ""
        report = Report(network.name, seed, again)
        checking = Checking(network, wire or Wire(), stage, timeout, report, at_once, on_progress)
        if await checking.begin():
            turns = len(chosen) if take_turns else 1
            picked = LIVE_CUTS if live_cuts is None and stage is None else live_cuts
            for number, kind in enumerate(CLIENTS[name] for name in chosen):
                if "log" in phases:
                    await checking.run_log(kind, Cuts(cuts, log_cuts, number % turns, turns))
                if "live" in phases:
                    await checking.run_live(kind, Cuts(cuts, picked, number % turns, turns))
        return checking.report
