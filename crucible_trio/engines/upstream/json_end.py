"""Follow a JSON text that comes in pieces, to know whether it has ended. No trio: nothing here waits.

The text is a model's, so it need not be valid JSON. Only brackets and strings are followed: a text that is cut has one
of them open.
"""

from __future__ import annotations

import re
from typing import Final, final

_OUTSIDE_STRING: Final = re.compile(r'["{}\[\]]')
_INSIDE_STRING: Final = re.compile(r'["\\]')


@final
class JsonEnd:
    """Where a JSON text stands.

    Attributes:
        is_empty: Only white space has come.
    """

    def __init__(self) -> None:
        self.is_empty = True
        self._depth = 0
        self._in_string = False
        self._escapes = False  # the next character
        self._has_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether the text is a whole object or list. Only white space may follow."""
        return self._has_closed and not self.is_open

    @property
    def is_open(self) -> bool:
        """Whether the text is inside an object, a list or a string. If nothing more comes, it was cut."""
        return self._depth > 0 or self._in_string

    def feed(self, text: str) -> None:
        """Take the next piece."""
        self.is_empty = self.is_empty and (not text or text.isspace())
        at = 0
        if self._escapes and text:
            self._escapes, at = False, 1
        while found := (_INSIDE_STRING if self._in_string else _OUTSIDE_STRING).search(text, at):
            at = found.end()
            match found[0]:
                case '"':
                    self._in_string = not self._in_string
                case "\\":
                    self._escapes = at == len(text)
                    at += 1
                case "{" | "[":
                    self._depth += 1
                case _:
                    self._depth = max(self._depth - 1, 0)
                    self._has_closed = self._has_closed or self._depth == 0
