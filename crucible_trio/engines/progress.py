"""How the download of a model reports its progress."""

from __future__ import annotations

from typing import Protocol


class DownloadProgress(Protocol):
    """Shows how far the download of a model is."""

    def __call__(self, done_bytes: int, total_bytes: int | None, /) -> None:
        """Show the progress. Called in the downloading task, so it must not block.

        Args:
            done_bytes: Bytes downloaded so far.
            total_bytes: Size of the download. None: unknown.
        """
