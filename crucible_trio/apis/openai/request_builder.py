"""From OpenAI's words to a request: model names and efforts to modes, sampling fields, limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, final

import msgspec

from crucible_trio.config import Effort, Settings
from crucible_trio.engine import EngineInfo, Message, Request, Sampling
from crucible_trio.errors import ConfigError, InvalidRequestError
from crucible_trio.records import Mode
from crucible_trio.web.intake import valid
from crucible_trio.web.openai.errors import ModelNotFoundError, UnsupportedParameterError

# OpenAI's defaults. Many clients send them without meaning anything by it, and a model that honours no such field
# can still be asked.
_SAMPLING_DEFAULTS: Final[Mapping[str, object]] = {"temperature": 1, "top_p": 1}


@final
class Asks:
    """Makes requests for one engine.

    Args:
        info: What the engine can do.
        settings: How names and efforts map, and the largest numbers.

    Raises:
        ConfigError: `openai_models` names a model that the engine does not have.
    """

    def __init__(self, info: EngineInfo, settings: Settings) -> None:
        self._info = info
        self._settings = settings
        for name in settings.openai_models:
            try:
                self.resolve(name)
            except ModelNotFoundError as error:
                message = f"openai_models: {name!r}: {error}"
                raise ConfigError(message) from error

    def resolve(self, name: str | None, effort: Effort | None = None, *, thinking: bool = False) -> tuple[str, Mode]:
        """Which of the engine's models a request means, and how it is to think: `deep` if any of the three says so.

        A name with the suffix is `deep` whatever the effort is: somebody has picked that name, while clients send
        efforts by themselves.

        Args:
            name: One of the engine's models; one with the suffix for `deep`; or a name of `openai_models`. None is the
                first model.
            effort: OpenAI's `reasoning_effort`.
            thinking: Whether the request says in another way that it wants a trace.

        Raises:
            ModelNotFoundError: There is no such model.
        """
        mode: Mode = "deep" if thinking or effort in self._settings.openai_deep_efforts else "standard"
        models = self._info.models
        if name is None:
            return models[0], mode
        model = self._settings.openai_models.get(name, name)
        if model in models:
            return model, mode
        suffix = self._settings.openai_deep_suffix
        if suffix and model.endswith(suffix) and model.removesuffix(suffix) in models:
            return model.removesuffix(suffix), "deep"
        raise ModelNotFoundError(model, models)

    def make(
        self,
        messages: Sequence[Message],
        *,
        model: str | None,
        effort: Effort | None,
        limit: int | None,
        limit_name: str,
        sampling: Mapping[str, object],
        thinking: bool = False,
    ) -> Request:
        """Make a request.

        Args:
            messages: The conversation, oldest first; at least one.
            model: As in `resolve`.
            effort: As in `resolve`.
            limit: Tokens that reasoning and answer may have together; None is the engine's default.
            limit_name: The field that says so, for an error.
            sampling: By the names of `Sampling`'s fields; None counts as absent.
            thinking: As in `resolve`.

        Raises:
            ModelNotFoundError: There is no such model.
            UnsupportedParameterError: The engine does not honour one of the sampling fields.
            InvalidRequestError: A value is out of its range.
        """
        name, mode = self.resolve(model, effort, thinking=thinking)
        if limit is not None and limit > self._settings.max_output_tokens:
            message = f"{limit_name} is at most {self._settings.max_output_tokens} here"
            raise InvalidRequestError(message, limit_name)
        return Request(
            input=tuple(messages), mode=mode, model=name, max_output_tokens=limit, sampling=self._sampling(sampling)
        )

    def _sampling(self, values: Mapping[str, object]) -> Sampling:
        given: dict[str, object] = {}
        for name, value in values.items():
            if value is None:
                continue
            if name in self._info.sampling:
                given[name] = value
            elif name not in _SAMPLING_DEFAULTS or value != _SAMPLING_DEFAULTS[name]:
                raise UnsupportedParameterError(name)
        return valid(lambda: msgspec.convert(given, Sampling))
