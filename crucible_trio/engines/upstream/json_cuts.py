"""Shorten a JSON text: one that is nested too deeply to decode, or one that was cut. No trio: nothing here waits."""

from __future__ import annotations

import re
from typing import Final

# Far below the depth at which decoders give up, and above the depth of any value that is passed on.
MAX_DECODED_DEPTH: Final = 200

# A string, which may lack its end, or a character that gives a text its structure. The end of a string that was cut in
# an escape is before the escape.
_STRING: Final = r'"(?:[^"\\]|\\u[0-9a-fA-F]{4}|\\[^u])*(?P<end>")?'
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


def closed_again(text: str) -> list[str]:
    """What a JSON text that was cut may have said: with its string closed, and as far as its last whole value.

    Returns:
        Texts to try in this order. They need not be JSON.
    """
    closed, last_comma = _closed(text)
    return [closed, _closed(text[:last_comma])[0]]


def _closed(text: str) -> tuple[str, int]:
    """A text with its string, lists and objects closed, and where its last comma is."""
    closing: list[str] = []
    last_comma = 0
    for token in _TOKEN.finditer(text):
        match token[0]:
            case "{" | "[" as opening:
                closing.append(_CLOSING[opening])
            case "}" | "]":
                del closing[-1:]
            case ",":
                last_comma = token.start()
            case _ if token["end"] is None:
                text = text[: token.end()]
                closing.append('"')
                break
    return text + "".join(reversed(closing)), last_comma
