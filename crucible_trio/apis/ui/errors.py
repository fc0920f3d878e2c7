"""The form of an error: plain text, because `useChat` shows the body of a refused request as `error.message`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, final

from crucible_trio.apis.kit.errors import ErrorAnswer, ErrorRule
from crucible_trio.errors import CrucibleError


@final
class UIErrorShape:
    """Writes errors for pages (`ErrorShape`)."""

    rules: Final[Mapping[type[CrucibleError], ErrorRule]] = {}

    def body(self, answer: ErrorAnswer) -> object:
        """The sentence, and the field at fault."""
        if answer.param is None or answer.param in answer.message:
            return answer.message
        return f"{answer.message} (in {answer.param})"

    def headers(self, answer: ErrorAnswer) -> Mapping[str, str]:
        """The code, for programs."""
        return {"Crucible-Error": answer.code}


UI_ERRORS: Final = UIErrorShape()
