"""`crucible ask`: one prompt in a terminal."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from http.client import UNAUTHORIZED
from typing import Protocol, final

import trio

from crucible_trio.cli.answer import AnswerPrinter
from crucible_trio.cli.exit_codes import FAILED, STOPPED
from crucible_trio.cli.progress import fetch_progress
from crucible_trio.cli.question import Server, command_to_resume
from crucible_trio.cli.rendering import Display
from crucible_trio.client import Client, ClientStream, open_client
from crucible_trio.engines import open_engine
from crucible_trio.errors import (
    ConfigError,
    CrucibleError,
    InvalidRequestError,
    ServerRefusedError,
    StreamExpiredError,
    StreamLostError,
    StreamNotFoundError,
)
from crucible_trio.pipeline import open_pipeline
from crucible_trio.records import AnyRecord
from crucible_trio.request import Request, Trace
from crucible_trio.settings import ServiceSettings
from crucible_trio.settings.loading import CLIENT_KEY_VARIABLE
from crucible_trio.stream import Stream


async def ask_here(request: Request, settings: ServiceSettings, display: Display) -> int:
    """Run the whole pipeline in this process and show the answer.

    Returns:
        The exit code.

    Raises:
        ConfigError: The engine cannot run here, or the request is invalid.

    Cancellation: the stream ends as cancelled.
    """
    # A server leaves the trace out of its events. This log has it.
    session = _Session(AnswerPrinter(display, with_trace=request.trace != "none"))

    async def ask() -> int:
        async with AsyncExitStack() as stack:
            with fetch_progress() as progress, settings.errors_name_origins():
                engine = await stack.enter_async_context(open_engine(settings.engine, progress=progress))
            pipeline = await stack.enter_async_context(open_pipeline(engine, settings.pipeline))
            try:
                stream = await pipeline.start(request)
            except InvalidRequestError as error:
                raise ConfigError(str(error)) from error
            async with stream.attach() as reader:
                return await session.show(reader, _StreamHere(stream))

    return await session.run(ask)


async def ask_server(request: Request, server: Server, display: Display, *options: str) -> int:
    """Ask a server and show the answer. Cut connections are resumed.

    Args:
        request: The prompt and its options.
        server: The server.
        display: Shows the answer.
        options: Options about the display, for the command that resumes.

    Returns:
        The exit code.

    Raises:
        ConfigError: The server does not answer, or it refuses the request.

    Cancellation: closes the connection. The stream goes on as its `on_disconnect` says.
    """
    printer = AnswerPrinter(display)
    session = _Session(printer)

    async def ask() -> int:
        async with _open_client(server) as client:
            stream = client.start(request, on_reconnect=printer.note_reconnect)
            return await _show_from_server(session, stream, server, options)

    return await session.run(ask)


async def show_stream(server: Server, stream_id: str, after: int, trace: Trace, display: Display, *options: str) -> int:
    """Show a stream that was started before. Cut connections are resumed.

    Args:
        server: The server that has the stream.
        stream_id: Its id.
        after: The offset to resume from.
        trace: How much of the reasoning trace to show.
        display: Shows the answer.
        options: Options about the display, for the command that resumes.

    Returns:
        The exit code.

    Raises:
        ConfigError: The server does not answer, or does not have this record.

    Cancellation: closes the connection. The stream goes on as its `on_disconnect` says.
    """
    printer = AnswerPrinter(display, after=after)
    session = _Session(printer)

    async def show() -> int:
        async with _open_client(server) as client:
            # The rest of a text may depend on its beginning: it can be inside a block of code. So the stream is read
            # from its beginning. But first the server has to know the offset, or a wrong one would be waited for.
            with _starting(server):
                async with client.read(stream_id, after=after, trace=trace):
                    pass
            stream = client.read(stream_id, trace=trace, on_reconnect=printer.note_reconnect)
            return await _show_from_server(session, stream, server, options)

    return await session.run(show)


class _ShownStream(Protocol):
    """The stream that a session shows."""

    async def cancel(self) -> None:
        """Stop the stream.

        Raises:
            CrucibleError: The server refuses, or does not answer.
        """

    def say_how_to_resume(self, last_seq: int) -> Sequence[str]:
        """Notes for the user who may want the rest."""


@final
class _StreamHere:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def cancel(self) -> None:
        self._stream.cancel()

    def say_how_to_resume(self, last_seq: int) -> Sequence[str]:
        return ()  # it ends with this process


@final
class _StreamOfServer:
    def __init__(self, stream: ClientStream, server: Server, options: Sequence[str]) -> None:
        self._stream = stream
        self._server = server
        self._options = options

    async def cancel(self) -> None:
        await self._stream.cancel()

    def say_how_to_resume(self, last_seq: int) -> Sequence[str]:
        with_key = f" with the key in {CLIENT_KEY_VARIABLE}" if self._server.key is not None else ""
        command = command_to_resume(self._server, self._stream.id, last_seq, *self._options)
        return (f"The stream may still be running. To see the rest, run this{with_key}:", f"  {command}")


@final
class _Session:
    """Shows one stream. The first Ctrl-C stops the stream, the second one exits without waiting for its end."""

    def __init__(self, printer: AnswerPrinter) -> None:
        self._printer = printer
        self._stream: _ShownStream | None = None

    async def run(self, ask: Callable[[], Awaitable[int]]) -> int:
        """Call a function that calls `show`, and return its exit code."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_interrupts, nursery.cancel_scope)
            nursery.start_soon(self._printer.run)
            code = await ask()
            nursery.cancel_scope.cancel()
            return code
        # Unreachable unless a second Ctrl-C, or one before the stream began, cancelled everything.
        rest = self._stream.say_how_to_resume(self._printer.last_seq) if self._stream is not None else ()
        self._printer.break_off(*rest)
        return STOPPED

    async def show(self, records: AsyncIterator[AnyRecord], stream: _ShownStream) -> int:
        """Show the records of a stream, and how it ended."""
        self._stream = stream
        try:
            async for record in records:
                self._printer.add(record)
        except (StreamNotFoundError, StreamExpiredError) as error:
            self._printer.break_off(f"lost the stream: {error}")
        except CrucibleError as error:
            self._printer.break_off(f"lost the stream: {error}", *stream.say_how_to_resume(self._printer.last_seq))
        except BrokenPipeError:  # the program that reads our output, such as `head`, has exited
            await self._stop(stream)
            return STOPPED
        else:
            return self._printer.finish()
        return FAILED

    async def _watch_interrupts(self, everything: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            task_status.started()
            async with trio.open_nursery() as nursery:
                is_stopping = False
                async for _ in signals:
                    if self._stream is None or is_stopping:
                        everything.cancel()
                    else:
                        is_stopping = True
                        nursery.start_soon(self._stop, self._stream)

    async def _stop(self, stream: _ShownStream) -> None:
        try:
            await stream.cancel()
        except CrucibleError as error:
            self._printer.note(f"could not stop the stream: {error}")


@asynccontextmanager
async def _open_client(server: Server) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        with _starting(server):
            client = await stack.enter_async_context(open_client(server.url, key=server.key))
        yield client


async def _show_from_server(session: _Session, stream: ClientStream, server: Server, options: Sequence[str]) -> int:
    async with AsyncExitStack() as stack:
        with _starting(server):
            await stack.enter_async_context(stream)
        return await session.show(stream, _StreamOfServer(stream, server, options))


@contextmanager
def _starting(server: Server) -> Iterator[None]:
    """Turn an error before the first record into a sentence, because nothing can be resumed."""
    try:
        yield
    except StreamLostError as error:
        message = f"no answer from {server.url}: {error}"
        raise ConfigError(message) from error
    except StreamNotFoundError as error:
        message = f"{server.url} has no such stream, or another key than yours started it"
        raise ConfigError(message) from error
    except ServerRefusedError as error:
        raise ConfigError(server.refused_key() if error.status == UNAUTHORIZED else str(error)) from error
    except (StreamExpiredError, ValueError) as error:
        raise ConfigError(str(error)) from error
