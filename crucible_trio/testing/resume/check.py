"""`check`: the entry point of the kit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Final, TypeAlias

from crucible_trio.errors import ConfigError
from crucible_trio.testing.resume.asgi import AsgiApp, open_asgi
from crucible_trio.testing.resume.checking import Checking, CheckProgress, Cuts
from crucible_trio.testing.resume.clients import CLIENTS
from crucible_trio.testing.resume.live_phase import run_live
from crucible_trio.testing.resume.log_phase import run_log
from crucible_trio.testing.resume.network import Network, open_tcp
from crucible_trio.testing.resume.report import Phase, Report
from crucible_trio.testing.resume.stage import Stage
from crucible_trio.testing.resume.wire import WireFormat

PHASES: Final[tuple[Phase, ...]] = ("log", "live")
LIVE_CUTS: Final = 40  # per client, without a stage: each live cut costs a whole generation
CONCURRENT_CUTS: Final = 8
TIMEOUT_SECONDS: Final = 60.0  # the server may first load a model, and wait for a slot


Target: TypeAlias = str | AsgiApp


async def check(
    target: Target | Sequence[Target],
    wire: WireFormat | None = None,
    *,
    clients: Iterable[str] = tuple(CLIENTS),
    phases: Iterable[Phase] = PHASES,
    cuts: Sequence[int] | None = None,
    log_cuts: int | None = None,
    live_cuts: int | None = None,
    take_turns: bool = False,
    stage: Stage | None = None,
    seed: int = 0,
    at_once: int = CONCURRENT_CUTS,
    timeout: float = TIMEOUT_SECONDS,
    again: str = "",
    on_progress: CheckProgress | None = None,
) -> Report:
    """Cut a server's streams, reconnect as real clients do, and look for events that are lost or repeated.

    Args:
        target: A URL, or an ASGI application that runs on trio. The application's lifespan is run. Several of them are
            one service: each connection of a client goes to the next one.
        wire: How the server's streams are started and read. None means this package's own server.
        clients: Names from `CLIENTS`.
        phases: `log`, `live` or both.
        cuts: Cut at these bytes only, in both phases. Use it to repeat a failure.
        log_cuts: Number of bytes to pick per client from the log. None picks all.
        live_cuts: Number of bytes to pick per client in live streams. None picks all with a stage, and 40 without.
        take_turns: Cut each byte once per phase, with the clients in turn, instead of once per client.
        stage: The stage that the server's engine waits at. The engine must write the same text for every stream.
        seed: Selects the bytes if not all are cut.
        at_once: Number of cuts made concurrently.
        timeout: Seconds without an event after which a response counts as stuck.
        again: The command line that makes this check, for the report. Empty if there is none.
        on_progress: Called after every cut.

    Returns:
        The report. A server that does not answer, or whose streams are too short, is a `problem` in the report and not
        an exception.

    Raises:
        ConfigError: A URL cannot be used, the URLs have different paths, or an application does not start.
        ValueError: A client's name is unknown.

    Cancellation: resets open connections. The streams that the kit started continue on the server.
    """
    chosen = list(dict.fromkeys(clients))
    if unknown := [name for name in chosen if name not in CLIENTS]:
        message = f"unknown client {unknown[0]!r}, use one of {', '.join(CLIENTS)}"
        raise ValueError(message)
    targets: list[Target] = list(target) if isinstance(target, Sequence) and not isinstance(target, str) else [target]
    async with AsyncExitStack() as stack:
        networks = [await stack.enter_async_context(_open(each)) for each in targets]
        if len({network.base for network in networks}) > 1:
            message = "the URLs of one service must have the same path"
            raise ConfigError(message)
        report = Report(", ".join(network.name for network in networks), seed, again)
        checking = Checking(tuple(networks), wire or WireFormat(), stage, timeout, report, at_once, on_progress)
        if await checking.begin():
            turns = len(chosen) if take_turns else 1
            picked = LIVE_CUTS if live_cuts is None and stage is None else live_cuts
            kinds = list(enumerate(CLIENTS[name] for name in chosen))
            if "log" in phases:  # for all clients first, because the server may delete the stream while others run
                for number, kind in kinds:
                    await run_log(checking, kind, Cuts(cuts, log_cuts, number % turns, turns))
            if "live" in phases:
                for number, kind in kinds:
                    await run_live(checking, kind, Cuts(cuts, picked, number % turns, turns))
        return checking.report


def _open(target: Target) -> AbstractAsyncContextManager[Network]:
    return open_tcp(target) if isinstance(target, str) else open_asgi(target)
