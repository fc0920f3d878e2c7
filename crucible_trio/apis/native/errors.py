"""The native shape of an error: `{"error": {"code", "message", "param"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, final

import msgspec

from crucible_trio.apis.kit.errors import ErrorAnswer, ErrorRule
from crucible_trio.errors import CrucibleError


@final
class NativeErrorBody(msgspec.Struct, omit_defaults=True):
    """One error. `param` is left out if no field is at fault."""

    code: str
    message: str
    param: str | None = None


@final
class NativeErrorShape:
    """Writes errors for the native API, and for every API without an error shape (`ErrorShape`)."""

    rules: Final[Mapping[type[CrucibleError], ErrorRule]] = {}

    def body(self, answer: ErrorAnswer) -> object:
        """The JSON of the response."""
        return {"error": NativeErrorBody(answer.code, answer.message, answer.param)}

    def headers(self, answer: ErrorAnswer) -> Mapping[str, str]:
        """No headers."""
        return {}


NATIVE_ERRORS: Final = NativeErrorShape()
