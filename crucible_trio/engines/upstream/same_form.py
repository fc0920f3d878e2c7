"""Recognises a chunk that differs from an earlier one in its text only. No trio: nothing here waits.

Most servers repeat everything but the text in every chunk. What such a chunk means is known once one of them has been
read, so of the others only the text is decoded. This takes a quarter of the time of reading the whole chunk.
"""

from __future__ import annotations

import re
from typing import Final, final

import msgspec

from crucible_trio.engines.upstream.chunks import PartKind

# A string in JSON, as the value of a field that may hold text. It never goes back over what it has read.
_STRING: Final = re.compile(
    r'"(?:content|text|refusal|reasoning|reasoning_content)"\s*:\s*("[^"\\]*+(?:\\.[^"\\]*+)*+")', re.DOTALL
)

# Learning a form costs more than it saves if no chunk has it: `created` or padding can differ in each of them.
_MAX_USELESS: Final = 8

# Characters. A chunk that is longer has much text, and then its reading is a small part of the cost.
_MAX_LENGTH: Final = 4096


@final
class SameForm:
    """The form of the last chunks of one stream: the data around their text.

    Attributes:
        kind: The kind of the text.
    """

    def __init__(self) -> None:
        self.kind: PartKind = "content"
        self._before = ""
        self._after = ""
        self._is_known = False
        self._is_useful = False
        self._useless = 0

    def text_of(self, data: str) -> str:
        """The text of a chunk that has the form. Empty if it has another form or no text."""
        if self._is_known and data.startswith(self._before) and data.endswith(self._after):
            try:
                # Exactly one string: quotes in it that are not escaped are invalid here.
                text: str = msgspec.json.decode(data[len(self._before) : len(data) - len(self._after)], type=str)
            except ValueError:  # half of a character, or the two ends overlap
                return ""
            self._is_useful = True
            return text
        return ""

    def learn(self, data: str, kind: PartKind, text: str) -> None:
        """Take the form of a chunk that has been read and has nothing but this text.

        Args:
            data: The chunk.
            kind: The kind of its text.
            text: Its text.
        """
        self.forget()
        if self._useless >= _MAX_USELESS or len(data) > _MAX_LENGTH:
            return
        found = [match for match in _STRING.finditer(data) if _decoded(match[1]) == text]
        if len(found) == 1:  # with two, either may be the text
            self._before, self._after = data[: found[0].start(1)], data[found[0].end(1) :]
            self.kind = kind
            self._is_known = True
        else:
            self._useless += 1

    def forget(self) -> None:
        """The next chunk is read as a whole."""
        if self._is_known:
            self._useless = 0 if self._is_useful else self._useless + 1
        self._is_known = self._is_useful = False


def _decoded(literal: str) -> str | None:
    try:
        return msgspec.json.decode(literal, type=str)
    except ValueError:
        return None
