"""Which labelled streams still owe their end to a client.

A page that reloads looks its chat up again. If its answer has ended meanwhile, it must still get that end, once. So the
store counts the readers of a labelled stream that have not been sent the end.
"""

from __future__ import annotations

from typing import final

import trio

from crucible_trio.store.contract import StreamStore
from crucible_trio.stream import Stream


@final
class OwedEnds:
    """The readers of labelled streams that have not been sent the end.

    Args:
        store: Has the counts, for all processes.
        flush_seconds: How long the store may take to count.
    """

    def __init__(self, store: StreamStore, flush_seconds: float) -> None:
        self._store = store
        self._flush_seconds = flush_seconds
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wait for the readers in doubt until cancelled, for `nursery.start`. Those that remain stay counted."""
        async with trio.open_nursery() as self._nursery:
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def is_owed(self, stream: Stream) -> bool:
        """Whether a client of a labelled stream has not been sent its end, or it is in doubt (`reader_went`).

        Checkpoints: only while the store waits. Cancellation: safe.
        """
        return await self._store.count_readers(stream.id) > 0

    async def reader_came(self, stream: Stream) -> None:
        """Count a reader of a labelled stream. Checkpoints: only while the store waits. Cancellation: it is counted."""
        await self._count(stream.id, attached=1, away=-1)

    async def reader_went(self, stream: Stream, *, has_end: bool, doubt_seconds: float) -> None:
        """A reader that `reader_came` has counted has left.

        Args:
            stream: The stream.
            has_end: Whether the reader was sent the end. Otherwise its client may come back.
            doubt_seconds: How long to count a reader that was sent the end: its connection may have been cut before the
                end arrived, and no server notices that.

        Checkpoints: only while the store waits. Cancellation: it is counted.
        """
        if not has_end:
            await self._count(stream.id, attached=-1, away=1)
        elif doubt_seconds and self._nursery is not None and stream.facts.label is not None:
            self._nursery.start_soon(self._count_later, stream.id, doubt_seconds)
        else:
            await self._count(stream.id, attached=-1, away=0)

    async def _count_later(self, stream_id: str, seconds: float) -> None:
        await trio.sleep(seconds)
        await self._count(stream_id, attached=-1, away=0)

    async def _count(self, stream_id: str, *, attached: int, away: int) -> None:
        with trio.move_on_after(self._flush_seconds, shield=True):
            await self._store.count_readers(stream_id, attached=attached, away=away)
