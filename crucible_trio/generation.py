"""One generation: a task that runs the engine, the buffer, the recorder, and the log that they write.

```
engine ── output.delta ──► memory channel ──► recorder ──► log ──► readers
  ▲                        (waits when full)     ▲                    │
  └── not called before a reader wants it        └──── room ◄──── cursors
```

The recorder has no task and never waits. `Generation.record` copies the buffer to the log, and is called when there may
be something to copy: by the engine's call, by the pipeline's `Batcher`, and by a reader that makes room. No checkpoint
lies between taking a piece and appending it, so neither cancellation nor a second caller can lose a piece or change the
order.

The first event that ends a stream decides how it ends: the engine's end, a deadline, a cap, or a cancellation. Then the
rest of the buffer and the terminal record go into the log in one append.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from math import inf
from typing import Final, final

import trio

from crucible_trio import endings
from crucible_trio.batching import Batcher
from crucible_trio.config import Settings
from crucible_trio.content import Piece
from crucible_trio.deadlines import DeadlineClock
from crucible_trio.endings import Ending
from crucible_trio.engine import Engine
from crucible_trio.errors import LogLostError, trace_without_text
from crucible_trio.hold import Hold
from crucible_trio.log.contract import Log
from crucible_trio.metrics import Metrics
from crucible_trio.output import Output
from crucible_trio.recorder import Recorder
from crucible_trio.records import CancelledBy, StreamCompleted, StreamIncomplete, Terminal, Timings, encode_frame
from crucible_trio.snapshot import Activity, Progress
from crucible_trio.stream import StreamFacts
from crucible_trio.timers import Timer, Timers

logger = logging.getLogger(__name__)

# Seconds between the end of a hold and the reader of its client. The status line is sent in between.
_ATTACH_SECONDS: Final = 5.0


@final
class Generation:
    """Runs one engine for one stream. A pipeline makes it and runs it. Record 1 is in its log before anything else.

    Args:
        engine: Generates the content.
        facts: The stream's facts.
        log: An empty log.
        settings: Limits and defaults.
        metrics: The pipeline's numbers.
        engine_name: The engine that has the model, behind all routers.
        timers: Fire its deadlines.
        batcher: Tells when to record.
        starts_with_reader: Call the engine when a reader has record 1. Otherwise as soon as record 1 is visible.
        held: Whether a client waits for the engine's answer (`hold`).
        client_retries: Whether that client repeats a refused request (`Output.client_retries`).

    Attributes:
        facts: The stream's facts.
        hold: Where clients wait for the engine's answer. None if the stream is not held.
        log: Its records.
        engine_name: The engine that generates now, or has generated.
        metrics: The numbers of that engine.
        pieces: Pieces recorded so far.
        terminal: Its last record, once that has been accepted by the log.
    """

    def __init__(
        self,
        engine: Engine,
        facts: StreamFacts,
        log: Log,
        settings: Settings,
        metrics: Metrics,
        engine_name: str,
        timers: Timers,
        batcher: Batcher,
        *,
        starts_with_reader: bool,
        held: bool = False,
        client_retries: bool = False,
    ) -> None:
        request = facts.request
        assert request.model is not None
        self.facts = facts
        self.log = log
        self.hold = Hold(self) if held else None
        self.pieces = 0
        self.terminal: Terminal | None = None
        self._engine = engine
        self._settings = settings
        self.engine_name = engine_name
        self.metrics = metrics.engine(engine_name)
        self._all_metrics = metrics
        self._accepted_at = trio.current_time()
        self._first_piece_at: float | None = None
        self._starts_with_reader = starts_with_reader
        self._ending: Ending | None = None
        self._stopped_at: float | None = None
        self._scope = trio.CancelScope()  # of the engine
        self._timers = timers
        self._batcher = batcher
        self._is_marked = False  # to be recorded later
        self._timer = Timer(inf, self)
        # The buffer, opened when a piece has to wait. A channel takes 2.2 KiB, and a slow model never needs it.
        self._send: trio.MemorySendChannel[Piece] | None = None
        self._receive: trio.MemoryReceiveChannel[Piece] | None = None
        self._is_buffer_closed = False
        self._output = Output(None, batcher, self, client_retries=client_retries)
        self._unanswered = self.hold  # until the engine has answered
        self._clock = DeadlineClock(
            now=self._accepted_at,
            first_token=_given(request.deadlines.first_token_seconds, settings.first_token_seconds),
            idle=_given(request.deadlines.idle_seconds, settings.idle_seconds),
            total=_given(request.deadlines.total_seconds, settings.total_seconds),
            grace=_given(request.grace_seconds, settings.grace_seconds),
        )
        self._token_limit = _given(request.max_output_tokens, settings.max_output_tokens)
        self._recorder = Recorder(facts.id, max_bytes=settings.stream_log_bytes)
        created = self._recorder.create(mode=request.mode, model=request.model, created_at=facts.created_at)
        log.append_nowait([created])
        log.listener = self
        self._grace_begins()

    # As the producer of its stream

    def cancel(self, by: CancelledBy = "client") -> None:
        """Stop the engine at its next checkpoint and end the stream, if it has not ended. Returns immediately."""
        self._stop(endings.cancelled(by))

    @property
    def paused(self) -> bool:
        """Whether the engine waits for a reader to attach."""
        return not self._is_read and self._needs_reader and self._ending is None

    def progress(self) -> Progress:
        """How far the engine is ahead of the log (`Producer`)."""
        buffered = waiting = 0
        if self._send is not None:
            channel = self._send.statistics()
            waiting = channel.tasks_waiting_send
            buffered = channel.current_buffer_used + waiting
        activity: Activity = "generating"
        if self._ending is not None:
            activity = "ended"
        elif self.paused:
            activity = "paused"
        elif self._output.is_queued:
            activity = "queued"
        elif waiting:
            activity = "waiting"
        return Progress(activity=activity, pieces=self.pieces + buffered, buffered=buffered)

    def reader_attached(self) -> None:
        """A reader has attached, so the grace period is over."""
        self._clock.reader_attached()

    def reader_left(self) -> None:
        """A reader has left. If it was the last one, the stream's policy decides."""
        if self._is_read or self._ending is not None:
            return
        # Before the engine is called, a client that was cut before record 1 may still come back for it.
        if self.facts.on_disconnect == "cancel" and not self._waits_for_reader:
            self.cancel("disconnect")
        self._grace_begins()

    def client_waits(self) -> None:
        """A client waits for the engine's answer (`HeldStream`)."""
        self._clock.reader_attached()

    def client_stopped_waiting(self, *, has_left: bool) -> None:
        """A client has left, or goes on and will attach a reader (`HeldStream`)."""
        if has_left:
            self.reader_left()
        elif not self._is_read and self._needs_reader and self._ending is None:
            # Not the policy's grace period, which may be zero. If the client is cut now, it has not seen the stream.
            may_be_late = self.facts.on_disconnect != "cancel"
            self._clock.reader_expected(trio.current_time(), within=_ATTACH_SECONDS, may_be_late=may_be_late)
            self._set_timer()

    @property
    def _is_read(self) -> bool:
        return self.log.is_read or (self.hold is not None and self.hold.waiting > 0)

    @property
    def _waits_for_reader(self) -> bool:
        return self._starts_with_reader and self.log.ever_read < 1

    @property
    def _needs_reader(self) -> bool:
        return self._waits_for_reader or self.facts.on_disconnect != "continue"

    def _grace_begins(self) -> None:
        if self._needs_reader and not self._is_read:
            self._clock.last_reader_left(trio.current_time())
            self._set_timer()

    # The engine's task

    async def run(self) -> None:
        """Generate and record until the terminal record is visible. Returns when the engine has let go as well.

        Cancellation: the stream ends `cancelled` by `shutdown`, with every piece in its log whose call has returned. A
        log that commits later has `flush_seconds` for that.
        """
        self._set_timer()
        try:
            with self._scope:
                await self._generate()
        finally:
            self.record()
            if not self.log.finished:
                with trio.move_on_after(self._settings.flush_seconds, shield=True), suppress(LogLostError):
                    await self.log.flushed()
            self._answer_hold()  # not earlier: the client in the hold looks for the terminal record

    async def _generate(self) -> None:
        try:
            if self._waits_for_reader:
                await self.log.wait_read(1)
            if self._ending is None:  # a cancellation may have come first
                self.record()  # from here on the stream waits for the engine
                finish = await self._engine.generate(self.facts.request, self._output)
                self._engine_ended(endings.finished(finish))
        except* Exception as group:  # a Cancelled in the same group passes on
            self._engine_ended(endings.failed(self.facts.id, group))
        finally:
            self._decide(endings.cancelled("shutdown"))  # nothing has decided: the task was cancelled from outside
            self._close_send()
            if self._stopped_at is not None:
                self.metrics.cancel_seconds.observe(trio.current_time() - self._stopped_at)

    def fail_internally(self) -> None:
        """End the log after an internal error. Without an end its readers would wait forever."""
        if not self.log.closed:
            seq = self.log.pending_head + 1
            self._ending = endings.internal_error()  # over any other: the text may not be whole
            self._timer.cancel()
            self._close_receive()
            self.log.append_nowait([encode_frame(self.facts.id, self._make_terminal(seq))], last=True)

    def _recording_failed(self, error: Exception) -> None:
        logger.error("stream %s: internal error while recording\n%s", self.facts.id, trace_without_text(error))
        self._scope.cancel()
        self.fail_internally()

    def _engine_ended(self, ending: Ending) -> None:
        # An engine that swallows its Cancelled, or answers it with another error, was still cancelled.
        if trio.current_effective_deadline() != -inf:
            self._decide(ending)

    # Recording

    def record(self) -> None:
        """Copy the buffer to the log as far as there is room. Write the end once it is decided.

        Never waits. May be called at any time.
        """
        self._is_marked = False
        if self.log.closed:
            return
        try:
            while self._ending is None and self._has_room:
                batch = self._take_nowait(self._settings.buffer_tokens)
                if not batch:
                    self._clock.wait_begins(trio.current_time(), self._output.queued_seconds)
                    self._set_timer()
                    break
                self._append(batch)
            if self._ending is not None:
                self._finish()
        except Exception as error:  # the caller may be a reader, and the pieces in hand are lost
            self._recording_failed(error)

    def record_now(self, piece: Piece) -> bool:
        """Record a piece that came alone to an empty buffer (`PieceSink`)."""
        # If the buffer is not empty, then the log has no room, or this stream waits in the batcher. While any stream
        # waits there, no piece is recorded in its engine's call.
        if self._ending is not None or not self.log.has_room or not self._batcher.may_record_now():
            return False
        if self._unanswered is not None:
            self._answer_hold()
        has_timer = self._clock.idle_is_running  # the next deadline is later: the timer comes early and is set again
        try:
            self._append([piece])
        except Exception as error:
            self._recording_failed(error)
            return True
        if self.log.has_room:
            self._clock.wait_begins(trio.current_time(), self._output.queued_seconds)
            if not has_timer:
                self._set_timer()
        return True

    def open_buffer(self) -> trio.MemorySendChannel[Piece]:
        """A piece cannot be recorded now, and is the first that has to wait (`PieceSink`)."""
        self._send, self._receive = trio.open_memory_channel[Piece](self._settings.buffer_tokens)
        if self._is_buffer_closed:
            self._receive.close()
        return self._send

    def piece_buffered(self) -> None:
        """The buffer has a new piece, or is full (`PieceSink`)."""
        self._clock.piece_came()  # the stream does not wait for its engine now
        if self._unanswered is not None:
            self._answer_hold()
        if self.log.has_room and not self._is_marked:
            self._record_later()

    def request_accepted(self) -> None:
        """The server that the engine asks has accepted the request (`PieceSink`)."""
        if self._unanswered is not None:
            self._unanswered.accept()
            self._unanswered = None

    def _answer_hold(self) -> None:
        if self._unanswered is not None:
            self._unanswered.answer()
            self._unanswered = None

    def tokens_counted(self, total: int) -> None:
        """The engine has counted its tokens (`PieceSink`)."""
        if total > self._token_limit:
            self._stop(endings.incomplete("max_output_tokens"))

    def engine_changed(self, name: str) -> None:
        """Another engine has been called in place of the one before (`PieceSink`)."""
        if name != self.engine_name:
            self.metrics.failovers += 1
            self.engine_name = name
            self.metrics = self._all_metrics.engine(name)

    def log_ended(self, terminal: Terminal | None) -> None:
        """Another process has ended the log, or it is lost (`LogListener`). The engine is stopped."""
        self._decide(endings.log_lost())
        self.terminal = terminal or self._make_terminal(self.log.pending_head + 1)
        self._timer.cancel()
        self._scope.cancel()  # before the next line, which would raise in an engine that waits for the buffer
        self._close_receive()

    def room_available(self) -> None:
        """The log may have room (`LogListener`). The caller records, so no task has to be woken for it."""
        if self._ending is None and self._has_room:
            self.record()

    def _record_later(self) -> None:
        self._is_marked = True
        self._batcher.record_later(self)

    @property
    def _has_room(self) -> bool:
        # In the hold no cursor makes room, but the stream waits for its engine and not for a reader.
        return (self.log.has_room or self._unanswered is not None) and not self._waits_for_reader

    def _take_nowait(self, limit: float) -> list[Piece]:
        batch: list[Piece] = []
        if self._receive is None:
            return batch
        try:
            while len(batch) < limit:
                batch.append(self._receive.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            pass  # the pieces taken before are in hand and must not be lost with the exception
        return batch

    def _append(self, batch: list[Piece]) -> None:
        self._count(batch)
        self._clock.piece_came()
        self.log.append_nowait(self._recorder.add(batch), pieces=len(batch))
        if self._recorder.full:
            self._stop(endings.incomplete("log_limit"))

    def _finish(self) -> None:
        """Append the rest of the buffer and the terminal record together, with or without a reader."""
        self._timer.cancel()
        rest = self._take_nowait(inf)
        self._close_receive()
        self._count(rest)
        self.log.append_nowait(self._recorder.finish(rest, self._make_terminal), last=True, pieces=len(rest))

    def _close_send(self) -> None:
        self._is_buffer_closed = True
        if self._send is not None:
            self._send.close()

    def _close_receive(self) -> None:
        self._is_buffer_closed = True
        if self._receive is not None:
            self._receive.close()

    def _count(self, batch: list[Piece]) -> None:
        if batch and self._first_piece_at is None:
            self._first_piece_at = trio.current_time()
            self.metrics.first_token_seconds.observe(self._first_piece_at - self._accepted_at)
        self.pieces += len(batch)
        self.metrics.pieces[self.facts.request.mode] += len(batch)

    def _make_terminal(self, seq: int) -> Terminal:
        assert self._ending is not None
        first = None if self._first_piece_at is None else _milliseconds(self._first_piece_at - self._accepted_at)
        total = _milliseconds(trio.current_time() - self._accepted_at)
        terminal = self._ending(seq=seq, timings=Timings(first, total))
        if self._recorder.full and isinstance(terminal, StreamCompleted):
            # The engine had finished, but the rest of the buffer would have passed the cap: the text is not whole.
            terminal = StreamIncomplete(seq=seq, reason="log_limit", usage=terminal.usage, timings=terminal.timings)
        self.terminal = terminal
        return terminal

    # How it ends

    def _decide(self, ending: Ending) -> bool:
        if self._ending is not None:
            return False
        self._ending = ending
        return True

    def _stop(self, ending: Ending) -> None:
        if self._decide(ending):
            self._stopped_at = trio.current_time()
            self._scope.cancel()
            if not self._is_marked:  # an engine may take long to let go, and readers need not wait for that
                self._record_later()

    def _set_timer(self) -> None:
        # When it fires too early the deadlines are compared and it is set again.
        deadline = self._clock.next_deadline(self._output.queued_seconds)
        self._timer = self._timers.set_no_later(self._timer, deadline, self)

    def timer_fired(self) -> None:
        """A deadline may have passed (`Timed`)."""
        match self._clock.expired(trio.current_time(), self._output.queued_seconds):
            case None:
                self._set_timer()
            case "grace":
                self._stop(endings.cancelled("disconnect"))
            case reason:
                self._stop(endings.incomplete(reason))


def _given(asked: float | None, default: float) -> float:
    return default if asked is None else asked


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
