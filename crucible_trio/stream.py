"""One generation: a task that runs the engine, the buffer, a recorder and a log.

```
engine ── output.delta ──► memory channel ──► recorder ──► log ──► readers
  ▲                        (waits when full)     ▲                    │
  └── not called before a reader wants it        └──── room ◄──── cursors
```

The recorder has no task and never waits: `Stream.record` copies what there is, and is called when there may be
something: by the engine's own call, by the pipeline's `Pacing`, by a reader that makes room. No checkpoint lies between
taking a token and appending it, so neither cancellation nor a second caller can lose one or change the order.

How a stream ends is decided once, by whatever comes first: the engine's end, a deadline, a cap, a cancel. Then what is
left and the terminal record go into the log in one append.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from math import inf
from typing import final

import trio

from crucible_trio import endings
from crucible_trio.clocks import Clocks
from crucible_trio.config import Settings
from crucible_trio.endings import Ending
from crucible_trio.engine import Engine, OnDisconnect, Request
from crucible_trio.errors import TooManyReadersError
from crucible_trio.log import Cursor, MemoryLog
from crucible_trio.metrics import Metrics
from crucible_trio.output import Output, Token
from crucible_trio.pacing import Pacing
from crucible_trio.reader import Reader
from crucible_trio.recorder import Recorder
from crucible_trio.records import (
    CancelledBy,
    StreamCompleted,
    StreamIncomplete,
    Terminal,
    Timings,
    encode_json,
    new_stream_id,
)
from crucible_trio.snapshot import Snapshot, Status, fold, status_of
from crucible_trio.timers import Timer, Timers

logger = logging.getLogger(__name__)


@final
class Stream:
    """One generation. A pipeline makes and runs it; record 1 is in its log before anything else happens.

    Attributes:
        id: The stream's id.
        owner: Who may read and stop it.
        request: With `model` filled in.
        created_at: Unix time in seconds.
        accepted_at: The same moment in `trio.current_time()`.
        on_disconnect: What happens while nobody reads.
        log: Its records.
        request_bytes: What keeping the request takes, about.
        tokens: Pieces of text recorded so far.
        terminal: Its last record; None while it runs.
    """

    def __init__(
        self,
        engine: Engine,
        request: Request,
        settings: Settings,
        metrics: Metrics,
        timers: Timers,
        pacing: Pacing,
        *,
        owner: str,
        on_disconnect: OnDisconnect,
        starts_with_reader: bool,
        on_growth: Callable[[int], None],
    ) -> None:
        assert request.model is not None
        now = trio.current_time()
        self.id = new_stream_id()
        self.owner = owner
        self.request = request
        self.request_bytes = len(encode_json(request))
        self.created_at = time.time()
        self.on_disconnect: OnDisconnect = on_disconnect
        self.tokens = 0
        self.terminal: Terminal | None = None
        self._engine = engine
        self._settings = settings
        self._metrics = metrics
        self.accepted_at = now
        self._first_token_at: float | None = None
        self._starts_with_reader = starts_with_reader
        self._ending: Ending | None = None
        self._stopped_at: float | None = None
        self._scope = trio.CancelScope()  # of the engine
        self._timers = timers
        self._pacing = pacing
        self._is_marked = False  # to be recorded later
        self._timer = Timer(inf, self)
        self._send, self._receive = trio.open_memory_channel[Token](settings.buffer_tokens)
        self._output = Output(self._send, pacing, self._record_at_once, self._written)
        self._clocks = Clocks(
            now=now,
            first_token=_given(request.deadlines.first_token_seconds, settings.first_token_seconds),
            idle=_given(request.deadlines.idle_seconds, settings.idle_seconds),
            total=_given(request.deadlines.total_seconds, settings.total_seconds),
            grace=_given(request.grace_seconds, settings.grace_seconds),
        )
        self._token_limit = _given(request.max_output_tokens, settings.max_output_tokens)
        self._recorder = Recorder(self.id, max_bytes=settings.stream_log_bytes)
        self.log = MemoryLog(
            room_without_readers=on_disconnect == "continue", on_growth=on_growth, on_room=self._room_came
        )
        created = self._recorder.create(mode=request.mode, model=request.model, created_at=self.created_at)
        self.log.append_nowait([created])
        on_growth(self.request_bytes)
        self._nobody_is_attached()

    # What others do with it

    def attach(self, after: int = 0) -> Reader:
        """A reader, to be entered with `async with`, that has everything up to `after`.

        Entering raises `CursorAheadError` when that is beyond the head, and `TooManyReadersError` when the stream has
        as many readers as it may have.
        """
        return Reader(self.log, after, attach=self._attach, left=self._reader_left)

    @property
    def size_bytes(self) -> int:
        """What keeping it takes: its records and its request."""
        return self.log.size_bytes + self.request_bytes

    @property
    def takes_readers(self) -> bool:
        """Whether one more reader may attach."""
        return self.log.readers < self._settings.max_readers_per_stream

    def cancel(self, by: CancelledBy = "client") -> None:
        """Stop the engine at its next checkpoint and end the stream, if it has not ended; returns at once."""
        self._stop(endings.cancelled(by))

    def finished_before(self, position: int) -> bool:
        """Whether a reader at `position` has everything, the terminal record included."""
        return self.log.finished and position >= self.log.head

    @property
    def status(self) -> Status:
        """`running` until the terminal record is in the log, then what that record says."""
        return "running" if self.terminal is None else status_of(self.terminal)

    @property
    def paused(self) -> bool:
        """Whether it waits for a reader just now."""
        return not self.log.readers and self._needs_reader and self._ending is None

    def snapshot(self) -> Snapshot:
        """What the log holds, exactly; taken without a checkpoint."""
        snapshot = fold(self.log.read(0))
        snapshot.paused = self.paused
        return snapshot

    # Readers come and go

    @property
    def _waits_for_reader(self) -> bool:
        return self._starts_with_reader and self.log.ever_read < 1

    @property
    def _needs_reader(self) -> bool:
        return self._waits_for_reader or self.on_disconnect != "continue"

    def _attach(self, after: int) -> Cursor:
        if not self.takes_readers:
            raise TooManyReadersError(self._settings.max_readers_per_stream)
        cursor = self.log.attach(after)
        self._clocks.joined()
        self._metrics.readers.inc()
        if after > 0:
            self._metrics.resumes.inc()
        return cursor

    def _reader_left(self) -> None:
        self._metrics.readers.dec()
        if self.log.readers or self._ending is not None:
            return
        # While the engine has not been called, whoever was cut before record 1 may still come back for it.
        if self.on_disconnect == "cancel" and not self._waits_for_reader:
            self.cancel("disconnect")
        self._nobody_is_attached()

    def _nobody_is_attached(self) -> None:
        if self._needs_reader:
            self._clocks.alone(trio.current_time())
            self._set_timer()

    # The engine's task

    async def run(self) -> None:
        """Generate and record until the terminal record; returns when the engine has let go as well.

        Cancellation: the stream ends `cancelled` by `shutdown`, with every piece in its log whose call has returned.
        """
        self._set_timer()
        try:
            with self._scope:
                await self._generate()
        finally:
            self.record()

    async def _generate(self) -> None:
        try:
            if self._waits_for_reader:
                await self.log.wait_read(1)
            if self._ending is None:  # a cancel may have come first
                self.record()  # from here on the engine is waited for
                finish = await self._engine.generate(self.request, self._output)
                self._engine_ended(endings.finished(finish))
        except* Exception as group:  # a Cancelled in the same group passes on
            self._engine_ended(endings.failed(self.id, group))
        finally:
            self._decide(endings.cancelled("shutdown"))  # nothing has decided: the stream was cancelled from outside
            self._send.close()
            if self._stopped_at is not None:
                self._metrics.cancel_seconds.observe(trio.current_time() - self._stopped_at)

    def _engine_ended(self, ending: Ending) -> None:
        # An engine that swallows its Cancelled, or answers it with another error, was cancelled all the same.
        if trio.current_effective_deadline() != -inf:
            self._decide(ending)

    # The recorder

    def record(self) -> None:
        """Copy what is in the buffer to the log, as far as there is room; write the end once it is decided.

        Never waits; may be called at any time.
        """
        self._is_marked = False
        if self.log.finished:
            return
        while self._ending is None and self._has_room:
            batch = self._take_nowait(self._settings.buffer_tokens)
            if not batch:
                self._clocks.wait_begins(trio.current_time(), self._output.queued_seconds)
                self._set_timer()
                break
            self._append(batch)
        if self._ending is not None:
            self._finish()

    def _record_at_once(self, token: Token) -> bool:
        # What comes alone to an empty buffer need not go through it. If it is not empty, either there is no room, or
        # this stream waits for its turn, and while any stream waits nothing is recorded at once.
        if self._ending is not None or not self.log.has_room or not self._pacing.may_record_at_once():
            return False
        has_timer = self._clocks.waits_for_token  # a later deadline: the timer comes too early, and is set again then
        self._append([token])
        if self.log.has_room:
            self._clocks.wait_begins(trio.current_time(), self._output.queued_seconds)
            if not has_timer:
                self._set_timer()
        return True

    def _written(self) -> None:
        self._clocks.token_came()  # whoever is waited for now, it is not the engine
        if self.log.has_room and not self._is_marked:
            self._record_later()

    def _room_came(self) -> None:
        # The reader that makes room takes what it makes room for: no task has to be woken for it.
        if self._ending is None and self._has_room:
            self.record()

    def _record_later(self) -> None:
        self._is_marked = True
        self._pacing.record_later(self.record)

    @property
    def _has_room(self) -> bool:
        return self.log.has_room and not self._waits_for_reader

    def _take_nowait(self, limit: float) -> list[Token]:
        batch: list[Token] = []
        try:
            while len(batch) < limit:
                batch.append(self._receive.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            pass  # what was taken before is in hand and must not be lost with the exception
        return batch

    def _append(self, batch: list[Token]) -> None:
        self._count(batch)
        self._clocks.token_came()
        self.log.append_nowait(self._recorder.add(batch))
        if self._recorder.full:
            self._stop(endings.incomplete("log_limit"))
        elif self.tokens > self._token_limit:  # the engine ignores what was asked
            self._stop(endings.incomplete("max_output_tokens"))

    def _finish(self) -> None:
        """Append what is left and the terminal record at once, reader or not."""
        self._timer.cancel()
        rest = self._take_nowait(inf)
        self._receive.close()
        self._count(rest)
        self.log.append_nowait(self._recorder.finish(rest, self._make_terminal), last=True)

    def _count(self, batch: list[Token]) -> None:
        if batch and self._first_token_at is None:
            self._first_token_at = trio.current_time()
            self._metrics.first_token_seconds.observe(self._first_token_at - self.accepted_at)
        self.tokens += len(batch)
        self._metrics.tokens.by_mode[self.request.mode] += len(batch)

    def _make_terminal(self, seq: int) -> Terminal:
        assert self._ending is not None
        first = None if self._first_token_at is None else _milliseconds(self._first_token_at - self.accepted_at)
        total = _milliseconds(trio.current_time() - self.accepted_at)
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
            if not self._is_marked:  # an engine may take its time to let go; readers need not wait for that
                self._record_later()

    def _set_timer(self) -> None:
        # When it fires too early the clocks are compared and it is set again.
        deadline = self._clocks.next_deadline(self._output.queued_seconds)
        self._timer = self._timers.set_no_later(self._timer, deadline, self)

    def timer_fired(self) -> None:
        """A deadline may have passed (`Timed`)."""
        match self._clocks.expired(trio.current_time(), self._output.queued_seconds):
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
