"""`crucible ask`: one prompt in a terminal."""

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
    RefusalDelta,
    StreamCancelled,
    StreamCompleted,
    StreamFailed,
    StreamIncomplete,
    Terminal,
    ToolCallDelta,
    ToolCallStarted,
)
from crucible_trio.request import Request
from crucible_trio.settings import ServiceSettings

_STOPPED_EXIT_CODE: Final = 130  # 128 + SIGINT, as in shells

# Control characters in a model's text must not reach the terminal: no escape, no backspace, no C1 control.
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


async def ask_here(request: Request, settings: ServiceSettings) -> int:
    """Run the whole pipeline in this process and show the answer.

    Returns:
        The exit code.

    Raises:
        ConfigError: The engine cannot run here.

    Cancellation: the stream ends as cancelled.
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
    """Ask a server and show the answer. Cut connections are resumed.

    Returns:
        The exit code.

    Raises:
        ConfigError: The URL is invalid, the server does not answer, or it refuses the request.

    Cancellation: closes the connection. The stream goes on as its `on_disconnect` says.
    """
    notes = Console(stderr=True, highlight=False, markup=False)

    def report_reconnect(last_seq: int) -> None:
        notes.print(f"\nreconnected, resuming after record {last_seq}", style="yellow")

    try:
        async with (
            open_client(url, key=key) as client,
            client.start(request, on_reconnect=report_reconnect) as stream,
        ):

            async def cancel() -> None:
                with suppress(CrucibleError):  # if the server does not answer, the stream cannot be stopped
                    await stream.cancel()

            return await _show(stream, cancel)
    except StreamLostError as error:
        message = f"no answer from {url}: {error}"
        raise ConfigError(message) from error
    except (ServerRefusedError, ValueError) as error:
        raise ConfigError(str(error)) from error


async def _show(records: AsyncIterator[AnyRecord], cancel: Callable[[], Awaitable[None]]) -> int:
    """Show the records. The first Ctrl-C stops the stream, the second one exits without waiting for its end."""
    printer = _AnswerPrinter()
    code = _STOPPED_EXIT_CODE
    async with trio.open_nursery() as nursery:
        await nursery.start(_cancel_on_interrupt, cancel, nursery.cancel_scope)
        try:
            async for record in records:
                printer.add(record)
            code = printer.finish()
        except CrucibleError as error:
            code = printer.report_lost(error)
        except BrokenPipeError:  # the program that reads our output, such as `head`, has exited
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
class _PipeConsole(Console):
    """A console that raises `BrokenPipeError` when the reader of its pipe exits."""

    def on_broken_pipe(self) -> None:
        # Rich raises SystemExit. In a nursery it would become an exception group, which Python prints as a traceback.
        with suppress(SystemExit):
            super().on_broken_pipe()
        raise BrokenPipeError


@final
class _AnswerPrinter:
    """Prints trace and answer to standard output, and notes to standard error. No colours outside a terminal."""

    def __init__(self) -> None:
        self._out = _PipeConsole(highlight=False)
        self._notes = Console(stderr=True, highlight=False, markup=False)
        self._terminal: Terminal | None = None
        self._has_trace = False
        self._has_answer = False

    def add(self, record: AnyRecord) -> None:
        match record:
            case ReasoningDelta(delta=delta):
                if not self._has_trace:
                    self._out.out("Reasoning", style="bold dim")
                self._has_trace = True
                self._write(delta, "dim")
            case OutputDelta(delta=delta) | RefusalDelta(delta=delta):
                if self._has_trace and not self._has_answer:
                    self._out.out("\n\nAnswer", style="bold")
                self._has_answer = True
                self._write(delta, None)
            case ToolCallStarted(name=name):
                self._out.out(
                    "\n\nTool call " if self._has_trace or self._has_answer else "Tool call ", end="", style="bold"
                )
                self._has_answer = True
                self._write(f"{name} ", None)
            case ToolCallDelta(delta=delta):
                self._write(delta, None)
            case StreamCompleted() | StreamIncomplete() | StreamFailed() | StreamCancelled():
                self._terminal = record

    def finish(self) -> int:
        if self._has_trace or self._has_answer:
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

    def report_lost(self, error: CrucibleError) -> int:
        self._notes.print(f"\nlost the stream: {error}", style="red")
        return 1

    def _write(self, text: str, style: str | None) -> None:
        self._out.out(text.translate(_CONTROLS), end="", style=style)
