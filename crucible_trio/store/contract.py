"""The contract of a store with its pipeline: logs, and everything known about streams beyond one generation.

A store makes logs, finds streams, holds idempotency keys, counts the streams of an owner, and keeps finished streams
for a while. `crucible_trio.store.memory.MemoryStore` does that in one process. In a store that several processes share,
a stream may belong to a generation elsewhere, so these methods may wait.
"""

from __future__ import annotations

from typing import Protocol

from crucible_trio.log.contract import Log
from crucible_trio.stream import Stream, StreamFacts


class StreamStore(Protocol):
    """Logs and streams. Opened before its pipeline, closed after it."""

    @property
    def ready(self) -> bool:
        """Whether new streams can be stored."""

    @property
    def failures(self) -> int:
        """How often the store could not be reached, or refused a record."""

    @property
    def running(self) -> int:
        """Streams of this process that have not ended."""

    @property
    def kept(self) -> int:
        """Finished streams that can still be read."""

    @property
    def log_bytes(self) -> int:
        """Bytes of all logs, and of the facts stored with them."""

    async def claim(self, owner: str, key: str, digest: bytes, stream_id: str) -> str:
        """Claim an idempotency key for a stream that is about to start.

        The first of several claims wins. A later claim waits until the winner's stream has started, or until the winner
        releases the key, and then tries again.

        Args:
            owner: Whose key.
            key: The key.
            digest: Of the request. The same key with another request is refused.
            stream_id: The id of the stream that is about to start.

        Returns:
            The id of the stream that the key belongs to: `stream_id` if this claim won.

        Raises:
            IdempotencyConflictError: The key belongs to another request.

        Cancellation: a claim that was cancelled holds nothing.
        """

    async def release(self, owner: str, key: str, stream_id: str) -> None:
        """Give a key back, because its stream did not start or was refused. Then a repeat starts another stream.

        Does nothing if another stream holds the key.
        """

    async def create(self, facts: StreamFacts) -> Log:
        """Make the log of a new stream, and count the stream as its owner's.

        Raises:
            OwnerLimitError: The owner has as many running streams as one owner may have.
            OverloadedError: All owners together have used up a limit.

        Cancellation: then nothing has been made. The store reserves the capacity before its first checkpoint.
        """

    async def started(self, stream: Stream, key: str | None) -> None:
        """Record 1 of a stream is visible: it can be found, and its key and its label lead to it.

        Args:
            stream: The stream, made over the log of `create`.
            key: The idempotency key that was claimed for it.

        Cancellation: only when it takes longer than `flush_seconds`. The key is released then.
        """

    def ended(self, stream: Stream) -> None:
        """The generation of a stream has ended, or did not begin because `started` or a commit before it failed.

        The store keeps a stream that has started for its retention, and drops any other.
        """

    async def find(self, stream_id: str, owner: str | None) -> Stream:
        """Find a stream.

        Args:
            stream_id: Its id.
            owner: Who asks. None for a caller that has shown the right to read this one stream in another way.

        Raises:
            StreamExpiredError: The stream was there and belonged to the owner, less than an hour ago.
            StreamNotFoundError: It is not there, or belongs to another owner.
        """

    async def find_labelled(self, owner: str, label: str) -> Stream | None:
        """Find the newest stream that an owner has started with a label (`StreamFacts.label`).

        Returns:
            None if there is none, or it is gone. The label is kept as long as its stream.
        """

    async def count_readers(self, stream_id: str, *, attached: int = 0, away: int = 0) -> int:
        """Count the readers of a labelled stream that have not been sent its end.

        A stream begins with one reader that is away: the client that started it. A reader that attaches takes the place
        of one that is away, if there is one.

        Args:
            stream_id: The stream's id. A caller that counts later must not keep the stream alive.
            attached: By how much the number of attached readers changes: 1 for one that comes, -1 for one that leaves.
            away: By how much the number of those changes that may come back: -1 for one that comes, 1 for one that
                leaves before the end. The number never gets negative.

        Returns:
            Both numbers together, after the change. 0: every reader has been sent the end. Always 0 for a stream
            without a label, or one that is gone.
        """

    async def list(self, owner: str) -> list[Stream]:
        """The owner's streams, newest first."""

    async def forget(self, stream: Stream) -> None:
        """Let no caller find a stream again. Readers that are attached keep it until they leave."""

    def wake_readers(self) -> None:
        """Wake all waiting readers of this process, for news that are not in a log."""
