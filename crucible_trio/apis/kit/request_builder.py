"""From the fields of an API to a request for the engine: model names, efforts, limits, sampling.

One rule for the fields of all APIs: a field that the answer depends on, such as `tools`, is refused if the model
cannot honour it. A field that only steers the answer, such as `temperature`, is then ignored, and the response says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, final

import msgspec

from crucible_trio.apis.kit.errors import ModelNotFoundError, UnknownParameterError, UnsupportedParameterError
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.engine import Capabilities, Engine, engines_behind
from crucible_trio.errors import ConfigError, InvalidRequestError
from crucible_trio.records import Mode
from crucible_trio.request import Message, NamedTool, Parameters, Request, Sampling, TextFormat
from crucible_trio.settings.apis import ApiSettings, Effort

# Values that ask for nothing: the defaults of OpenAI and of vLLM. Many clients always send them.
_NEUTRAL: Final[Mapping[str, object]] = {
    "temperature": 1,
    "top_p": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "top_k": -1,
    "min_p": 0,
    "verbosity": "medium",
}
# Without it the answer is another one, not the same one worded differently.
_ANSWER_DEPENDS_ON: Final = frozenset({"stop"})

_NO_PARAMETERS: Final = Parameters()
SAME_NAMES: Final[Mapping[str, str]] = {}
_NO_EXTRA: Final[Mapping[str, object]] = {}


class BuiltRequest(NamedTuple):
    """A request for the engine.

    Attributes:
        request: The request.
        ignored: Fields that only steer the model, and that it does not honour.
    """

    request: Request
    ignored: tuple[str, ...]


@final
class RequestBuilder:
    """Makes requests for one engine.

    Args:
        engine: Has the models.
        settings: Map names and efforts to models and modes.
        max_output_tokens: The largest limit that a request may set.
        names: The API's names of fields that have another name in chat completions.

    Raises:
        ConfigError: `openai_models` names a model that the engine does not have.
    """

    def __init__(
        self, engine: Engine, settings: ApiSettings, max_output_tokens: int, names: Mapping[str, str] = SAME_NAMES
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._max_output_tokens = max_output_tokens
        self._names = names
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

    def capabilities(self, name: str | None) -> Capabilities:
        """The capabilities of the model that a request names.

        Raises:
            ModelNotFoundError: No model has this name.
        """
        return self._engine.info.capabilities_of(self.resolve(name)[0])

    def build(
        self,
        messages: Sequence[Message],
        *,
        model: str | None,
        effort: Effort | None,
        limit: int | None,
        sampling: Mapping[str, object],
        thinking: bool = False,
        parameters: Parameters = _NO_PARAMETERS,
        extra: Mapping[str, object] = _NO_EXTRA,
    ) -> BuiltRequest:
        """Make a request.

        Args:
            messages: The conversation, oldest first. At least one.
            model: As in `resolve`.
            effort: As in `resolve`.
            limit: The maximum of tokens for reasoning and answer together. None is the engine's default. A limit over
                the server's maximum counts as the maximum, because clients send the largest number that any model has.
            sampling: Sampling fields by the names of `Sampling`, and `verbosity`. None counts as absent.
            thinking: As in `resolve`.
            parameters: Tools, and the form of the answer.
            extra: Fields that only the engine understands.

        Raises:
            ModelNotFoundError: No model has this name.
            UnsupportedParameterError: The model does not support a field that the answer depends on. With
                `strict_fields`, also one that steers it.
            UnknownParameterError: The model takes no fields that only the engine understands.
            InvalidRequestError: A value is out of range.
        """
        name, mode = self.resolve(model, effort, thinking=thinking)
        can = self._engine.info.capabilities_of(name)
        self._check(parameters, extra, can)
        given = {field: value for field, value in sampling.items() if value is not None}
        honoured = {field: value for field, value in given.items() if field in can.sampling}
        ignored = [
            field
            for field, value in given.items()
            if field not in honoured and (field not in _NEUTRAL or value != _NEUTRAL[field])
        ]
        for field in ignored:
            if self._settings.strict_fields or field in _ANSWER_DEPENDS_ON:
                raise self._unsupported(field)
        verbosity = valid(lambda: msgspec.convert({"verbosity": honoured.pop("verbosity", None)}, Parameters)).verbosity
        request = Request(
            input=tuple(messages),
            mode=mode,
            model=name,
            max_output_tokens=None if limit is None else min(limit, self._max_output_tokens),
            sampling=self._convert_sampling(honoured),
            parameters=msgspec.structs.replace(parameters, verbosity=verbosity),
            extra=dict(extra),
        )
        return BuiltRequest(request, tuple(self._names.get(field, field) for field in ignored))

    def _convert_sampling(self, values: Mapping[str, object]) -> Sampling:
        """The sampling of a request. An error names the field as the API does."""
        try:
            return valid(lambda: msgspec.convert(values, Sampling))
        except InvalidRequestError as error:
            field, bracket, index = (error.param or "").partition("[")
            if field not in self._names:
                raise
            name = self._names[field]
            raise InvalidRequestError(str(error).replace(f"$.{field}", f"$.{name}"), name + bracket + index) from error

    def _check(self, parameters: Parameters, extra: Mapping[str, object], can: Capabilities) -> None:
        """Refuse a field that the answer depends on if the model does not support it, by the API's names."""
        if parameters.tools and parameters.tool_choice != "none" and not can.tools:
            raise self._unsupported("tools")
        if not parameters.tools and parameters.tool_choice not in {None, "auto", "none"}:
            raise self._unsupported("tool_choice", "the request has no tools that the model can call")
        chosen = parameters.tool_choice
        if isinstance(chosen, NamedTool) and all(tool.name != chosen.name for tool in parameters.tools):
            param = self._names.get("tool_choice", "tool_choice")
            raise InvalidRequestError(f"{param} names {chosen.name!r}, which is not in tools", param)
        if not isinstance(parameters.response_format, TextFormat | None) and not can.structured_output:
            raise self._unsupported("response_format")
        if (parameters.logprobs or parameters.top_logprobs) and not can.logprobs:
            raise self._unsupported("logprobs")
        for name in extra:
            if not can.unknown_fields:
                raise UnknownParameterError(name)

    def _unsupported(self, field: str, why: str = "") -> UnsupportedParameterError:
        return UnsupportedParameterError(self._names.get(field, field), why)
