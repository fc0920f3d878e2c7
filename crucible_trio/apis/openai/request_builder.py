"""From a request in OpenAI's form to a request for the engine: model names, efforts, limits, sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, final

import msgspec

from crucible_trio.apis.kit.errors import UnsupportedParameterError
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.apis.openai.errors import ModelNotFoundError
from crucible_trio.engine import Engine, engines_behind
from crucible_trio.errors import ConfigError, InvalidRequestError
from crucible_trio.records import Mode
from crucible_trio.request import Message, Request, Sampling
from crucible_trio.settings.apis import ApiSettings, Effort

HARMLESS: Final = {
    "prompt_cache_key": "a hint for a cache",
    "prompt_cache_options": "hints for a cache",
    "prompt_cache_retention": "a hint for a cache",
    "safety_identifier": "names an end user. Here keys name the owners",
    "service_tier": "this server has one tier",
    "user": "names an end user. Here keys name the owners",
}
"""Fields that are harmless in both APIs (`Fields.harmless`)."""

# OpenAI's defaults. Many clients always send them. A model that honours no sampling fields accepts these values.
_SAMPLING_DEFAULTS: Final[Mapping[str, object]] = {"temperature": 1, "top_p": 1}


@final
class RequestBuilder:
    """Makes requests for one engine.

    Args:
        engine: Has the models.
        settings: Map names and efforts to models and modes.
        max_output_tokens: The largest limit that a request may set.

    Raises:
        ConfigError: `openai_models` names a model that the engine does not have.
    """

    def __init__(self, engine: Engine, settings: ApiSettings, max_output_tokens: int) -> None:
        self._engine = engine
        self._settings = settings
        self._max_output_tokens = max_output_tokens
        for name in settings.openai_models:
            try:
                self.resolve(name)
            except ModelNotFoundError as error:
                if any(part.info.is_up is False or not part.info.models for part in engines_behind(engine)):
                    continue  # the model may appear when its server is up
                message = f"openai_models.{name} must be a model of the engine: {error}"
                raise ConfigError(message, "openai_models") from error

    def resolve(self, name: str | None, effort: Effort | None = None, *, thinking: bool = False) -> tuple[str, Mode]:
        """Find the engine's model that a request names, and the mode: `deep` if any of the three arguments asks for it.

        A name with the suffix for `deep` wins over any effort: a person chose the name, while many clients send an
        effort with every request.

        Args:
            name: A model of the engine, such a name with the suffix for `deep`, or a name of `openai_models`. None
                means the first model.
            effort: OpenAI's `reasoning_effort`.
            thinking: Whether another field of the request asks for a trace.

        Raises:
            ModelNotFoundError: No model has this name.
        """
        mode: Mode = "deep" if thinking or effort in self._settings.openai_deep_efforts else "standard"
        models = self._engine.info.models
        if name is None and models:
            return models[0], mode
        name = name or ""
        model = self._settings.openai_models.get(name, name)
        if model in models:
            return model, mode
        suffix = self._settings.openai_deep_suffix
        if suffix and model.endswith(suffix) and model.removesuffix(suffix) in models:
            return model.removesuffix(suffix), "deep"
        raise ModelNotFoundError(model, models)

    def build(
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
            messages: The conversation, oldest first. At least one.
            model: As in `resolve`.
            effort: As in `resolve`.
            limit: The maximum of tokens for reasoning and answer together. None is the engine's default.
            limit_name: The field that holds the limit, for an error.
            sampling: Sampling fields by the names of `Sampling`. None counts as absent.
            thinking: As in `resolve`.

        Raises:
            ModelNotFoundError: No model has this name.
            UnsupportedParameterError: The engine does not honour one of the sampling fields.
            InvalidRequestError: A value is out of range.
        """
        name, mode = self.resolve(model, effort, thinking=thinking)
        if limit is not None and limit > self._max_output_tokens:
            message = f"{limit_name} is at most {self._max_output_tokens} here"
            raise InvalidRequestError(message, limit_name)
        return Request(
            input=tuple(messages),
            mode=mode,
            model=name,
            max_output_tokens=limit,
            sampling=self._sampling(sampling, name),
        )

    def _sampling(self, values: Mapping[str, object], model: str) -> Sampling:
        honoured = self._engine.info.capabilities_of(model).sampling
        given: dict[str, object] = {}
        for name, value in values.items():
            if value is None:
                continue
            if name in honoured:
                given[name] = value
            elif name not in _SAMPLING_DEFAULTS or value != _SAMPLING_DEFAULTS[name]:
                raise UnsupportedParameterError(name)
        return valid(lambda: msgspec.convert(given, Sampling))
