"""The form of an error: plain text, because `useChat` shows the body of a refused request as `error.message`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, final

from crucible_trio.apis.kit.errors import ErrorAnswer, ErrorRule
from crucible_trio.errors import CrucibleError

# The place within one part of the request, as msgspec names it. `param` is the place within the whole.
_PLACE: Final = re.compile(r" - at (`key` in )?`[^`]*`$")


@final
class UIErrorShape:
    """Writes errors for pages (`ErrorShape`)."""

    rules: Final[Mapping[type[CrucibleError], ErrorRule]] = {}

    def body(self, answer: ErrorAnswer) -> object:
        """The sentence, and the field at fault."""
        sentence = _PLACE.sub("", answer.message)
        return sentence if answer.param is None or answer.param in sentence else f"{sentence} (in {answer.param})"

    def headers(self, answer: ErrorAnswer) -> Mapping[str, str]:
        """The code, for programs."""
        return {"Crucible-Error": answer.code}


UI_ERRORS: Final = UIErrorShape()
