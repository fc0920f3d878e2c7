"""Refuses a request that the engine or the server cannot honour, before its stream starts."""

from __future__ import annotations

from collections.abc import Iterator

from crucible_trio.config import Settings
from crucible_trio.engine import Capabilities, EngineInfo
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import AudioPart, FilePart, ImagePart, Message, Request, TextFormat


def check_request(request: Request, info: EngineInfo, settings: Settings) -> None:
    """Refuse what cannot be done.

    Raises:
        InvalidRequestError: The engine does not have the model, the model does not understand a field that is set, or
            a number is over the server's maximum. `param` names the field.
    """
    if request.model is not None and request.model not in info.models:
        message = f"there is no model {request.model!r}. Available: {', '.join(info.models)}"
        raise InvalidRequestError(message, "model")
    if not info.models:
        message = "the engine has no model now"
        raise InvalidRequestError(message, "model")
    model = request.model or info.models[0]
    for param, feature in _unsupported(request, info.capabilities_of(model)):
        message = f"the model {model!r} does not support {feature}"
        raise InvalidRequestError(message, param)
    numbers = (
        ("max_output_tokens", request.max_output_tokens, settings.max_output_tokens),
        ("grace_seconds", request.grace_seconds, settings.max_grace_seconds),
        ("deadlines.first_token_seconds", request.deadlines.first_token_seconds, settings.max_deadline_seconds),
        ("deadlines.idle_seconds", request.deadlines.idle_seconds, settings.max_deadline_seconds),
        ("deadlines.total_seconds", request.deadlines.total_seconds, settings.max_deadline_seconds),
    )
    for param, asked, maximum in numbers:
        if asked is not None and asked > maximum:
            message = f"{param} is over this server's maximum, {maximum:g}"
            raise InvalidRequestError(message, param)


def supports(capabilities: Capabilities, request: Request) -> bool:
    """Whether a model with these capabilities understands every field of a request."""
    return next(_unsupported(request, capabilities), None) is None


def _unsupported(request: Request, can: Capabilities) -> Iterator[tuple[str, str]]:
    """The fields that need a capability the model does not have: the path and the feature of each."""
    for name in sorted(request.sampling.given - can.sampling):
        yield f"sampling.{name}", f"sampling.{name}"
    asked = request.parameters
    if asked.tools and asked.tool_choice != "none" and not can.tools:
        yield "parameters.tools", "tools"
    if not asked.tools and asked.tool_choice not in {None, "auto", "none"}:
        yield "parameters.tool_choice", "tool_choice without tools"
    if not isinstance(asked.response_format, TextFormat | None) and not can.structured_output:
        yield "parameters.response_format", "structured output"
    if (asked.logprobs or asked.top_logprobs) and not can.logprobs:
        yield "parameters.logprobs", "logprobs"
    if asked.verbosity is not None and "verbosity" not in can.sampling:
        yield "parameters.verbosity", "verbosity"
    if not can.unknown_fields:
        for name in request.extra:
            yield f"extra.{name}", f"the extra field {name!r}"
    for index, message in enumerate(request.messages):
        for param, feature in _unsupported_in(message, can):
            yield f"input[{index}].{param}", feature


def _unsupported_in(message: Message, can: Capabilities) -> Iterator[tuple[str, str]]:
    if message.tool_calls and not can.tools:
        yield "tool_calls", "tools"
    if message.role == "tool" and not can.tools:
        yield "role", "tools"
    if message.reasoning is not None and not can.reasoning_input:
        yield "reasoning", "the reasoning of earlier turns"
    if message.content is None or isinstance(message.content, str):
        return
    for index, part in enumerate(message.content):
        match part:
            case ImagePart() if not can.images:
                yield f"content[{index}]", "images"
            case FilePart() if not can.files:
                yield f"content[{index}]", "files"
            case AudioPart() if not can.audio:
                yield f"content[{index}]", "audio"
