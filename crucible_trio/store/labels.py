"""Labels: the newest stream that each owner has started with a label, and its readers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(slots=True)
class _Readers:
    attached: int = 0
    away: int = 1  # the client that started the stream, which has not attached yet


@final
class Labels:
    """The newest stream of each label, and the readers that have not been sent the end of a labelled stream."""

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str], str] = {}
        self._readers: dict[str, _Readers] = {}

    def started(self, owner: str, label: str, stream_id: str) -> None:
        """A stream with a label has started."""
        self._newest[owner, label] = stream_id
        self._readers[stream_id] = _Readers()

    def find(self, owner: str, label: str) -> str | None:
        """The id of the newest stream."""
        return self._newest.get((owner, label))

    def count(self, stream_id: str, attached: int, away: int) -> int:
        """Count readers (`StreamStore.count_readers`)."""
        readers = self._readers.get(stream_id)
        if readers is None:
            return 0
        readers.attached += attached
        readers.away = max(0, readers.away + away)
        return readers.attached + readers.away

    def drop(self, owner: str, label: str, stream_id: str) -> None:
        """A stream is gone."""
        self._readers.pop(stream_id, None)
        if self._newest.get((owner, label)) == stream_id:
            del self._newest[owner, label]
