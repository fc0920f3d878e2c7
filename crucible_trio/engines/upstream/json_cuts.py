"""Shorten a JSON text: one that is nested too deeply to decode, or one that was cut. No trio: nothing here waits."""

from __future__ import annotations

import re
from typing import Final

# Far below the depth at which decoders give up, and above the depth of any value that is passed on.
MAX_DECODED_DEPTH: Final = 200

# A string, which may lack its end, or a character that gives a text its structure. The end of a string that was cut in
# an escape is before the escape.
_STRING: Final = r'"(?:[^"\\]|\\u[0-9a-fA-F]{4}|\\[^u])*"?'
_TOKEN: Final = re.compile(_STRING + r"|[\[\]{},]", re.DOTALL)
_CLOSING: Final = {"{": "}", "[": "]"}


def without_depths(text: str) -> str:
    """A JSON text whose lists and objects deeper than `MAX_DECODED_DEPTH` are null."""
    kept: list[str] = []
    depth = at = 0
    for token in _TOKEN.finditer(text):
        match token[0]:
            case "{" | "[":
                depth += 1
                if depth == MAX_DECODED_DEPTH + 1:
                    kept += text[at : token.start()], "null"
            case "}" | "]":
                depth -= 1
                if depth == MAX_DECODED_DEPTH:
                    at = token.end()
    return "".join(kept) + (text[at:] if depth <= MAX_DECODED_DEPTH else "")  # one that does not end is no JSON
