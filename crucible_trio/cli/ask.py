"""`crucible ask`: one prompt, shown as it is answered."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Final, final

import trio
from rich.console import Console

from crucible_trio.cli.progress import fetch_progress
from crucible_trio.client import open_client
from crucible_trio.engines import open_engine
from crucible_trio.errors import ConfigError, CrucibleError, ServerRefusedError, StreamLostError
from crucible_trio.pipeline import open_pipeline
from crucible_trio.records import (
    AnyRecord,
    OutputDelta,
    ReasoningDelta,
    StreamCancelled,
    StreamCompleted,
    StreamFailed,
    StreamIncomplete,
    Terminal,
)
from crucible_trio.request import Request
from crucible_trio.settings import ServiceSettings

_STOPPED_EXIT_CODE: Final = 130  # 128 + SIGINT, as shells have it

# Text of a model must not steer the terminal: no escape, no backspace, no C1 control.
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


async def ask_here(request: Request, settings: ServiceSettings) -> int:
    """Run the whole pipeline in this process.

    Returns:
        The exit code.

    Raises:
        ConfigError: The engine cannot run here.
    """
    async with AsyncExitStack() as stack:
        with fetch_progress() as progress:
            engine = await stack.enter_async_context(open_engine(settings.engine, progress=progress))
        pipeline = await stack.enter_async_context(open_pipeline(engine, settings.pipeline))
        stream = await pipeline.start(request)

        async def cancel() -> None:
            stream.cancel()

        async with stream.attach() as reader:
            return await _show(reader, cancel)


async def ask_server(request: Request, url: str, key: str | None) -> int:
    """Ask a server; cut connections are resumed.

    Returns:
        The exit code.

    Raises:
        ConfigError: The URL is none, or nobody answers there, or the request is refused.
    """
    notes = Console(stderr=True, highlight=False)

    def reconnected(position: int) -> None:
        notes.print(f"\nreconnected at {position}", style="yellow")

    try:
        async with (
            open_client(url, key=key) as client,
            client.start(request, on_reconnect=reconnected) as stream,
        ):

            async def cancel() -> None:
                with suppress(CrucibleError):  # if the server cannot be reached, there is nothing to stop
                    await stream.cancel()

            return await _show(stream, cancel)
    except StreamLostError as error:
        message = f"no answer from {url}: {error}"
        raise ConfigError(message) from error
    except (ServerRefusedError, ValueError) as error:
        raise ConfigError(str(error)) from error


async def _show(records: AsyncIterator[AnyRecord], cancel: Callable[[], Awaitable[None]]) -> int:
    """Show the records; the first Ctrl-C stops the stream, the second stops waiting for it."""
    view = _View()
    code = _STOPPED_EXIT_CODE
    async with trio.open_nursery() as nursery:
        await nursery.start(_cancel_on_interrupt, cancel, nursery.cancel_scope)
        try:
            async for record in records:
                view.add(record)
            code = view.finish()
        except CrucibleError as error:
            code = view.lose(error)
        except BrokenPipeError:  # whoever reads our output, such as `head`, has had enough
            await cancel()
        nursery.cancel_scope.cancel()
    return code


async def _cancel_on_interrupt(
    cancel: Callable[[], Awaitable[None]], everything: trio.CancelScope, *, task_status: trio.TaskStatus[None]
) -> None:
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        task_status.started()
        async with trio.open_nursery() as nursery:
            interrupted = False
            async for _ in signals:
                if interrupted:
                    everything.cancel()
                interrupted = True
                nursery.start_soon(cancel)


@final
class _Output(Console):
    def on_broken_pipe(self) -> None:
        # Rich would raise SystemExit, which a nursery turns into a group that nobody understands.
        with suppress(SystemExit):
            super().on_broken_pipe()
        raise BrokenPipeError


@final
class _View:
    """Trace and answer on standard output, notes on standard error; plain where that is no terminal."""

    def __init__(self) -> None:
        self._out = _Output(highlight=False)
        self._notes = Console(stderr=True, highlight=False)
        self._terminal: Terminal | None = None
        self._traced = False
        self._answered = False

    def add(self, record: AnyRecord) -> None:
        match record:
            case ReasoningDelta(delta=delta):
                if not self._traced:
                    self._out.out("Reasoning", style="bold dim")
                self._traced = True
                self._write(delta, "dim")
            case OutputDelta(delta=delta):
                if self._traced and not self._answered:
                    self._out.out("\n\nAnswer", style="bold")
                self._answered = True
                self._write(delta, None)
            case StreamCompleted() | StreamIncomplete() | StreamFailed() | StreamCancelled():
                self._terminal = record

    def finish(self) -> int:
        if self._traced or self._answered:
            self._out.out("")
        match self._terminal:
            case StreamCompleted():
                return 0
            case StreamIncomplete(reason=reason):
                self._notes.print(f"incomplete: {reason}", style="yellow")
                return 0
            case StreamCancelled(by=by):
                self._notes.print(f"cancelled by {by}", style="yellow")
                return _STOPPED_EXIT_CODE
            case StreamFailed(error=error):
                self._notes.print(f"failed: {error.message} ({error.code})", style="red")
        return 1

    def lose(self, error: CrucibleError) -> int:
        self._notes.print(f"\nlost the stream: {error}", style="red")
        return 1

    def _write(self, text: str, style: str | None) -> None:
        self._out.out(text.translate(_CONTROLS), end="", style=style)
