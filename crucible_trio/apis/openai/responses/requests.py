"""The requests of the responses API: the body of `POST /v1/responses` and the parameters of `GET`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, NamedTuple, final

import msgspec

from crucible_trio.apis.kit.errors import UnsupportedParameterError
from crucible_trio.apis.kit.fields import Fields
from crucible_trio.apis.openai.messages import OpenAIMessage, PartReader, read_message, read_text_part
from crucible_trio.apis.openai.request_builder import HARMLESS, RequestBuilder
from crucible_trio.apis.openai.responses.objects import EchoedFields, EchoedReasoning
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import Message, Request
from crucible_trio.settings.apis import Effort

# OpenAI's limits. The echoed fields are kept with the stream, and `total_log_bytes` does not count them.
_MetadataKey = Annotated[str, msgspec.Meta(max_length=64)]
_MetadataValue = Annotated[str, msgspec.Meta(max_length=512)]
_ReasoningSummary = Literal["auto", "concise", "detailed"]

ENCRYPTED_REASONING: Final = "reasoning.encrypted_content"

_BOOLEANS: Final = {"true": True, "false": False}
# Event numbers are shorter, and `int` raises for texts of thousands of digits.
_MAX_NUMBER_DIGITS: Final = 18


@final
class ResponsesStreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`stream_options`."""

    include_obfuscation: bool = False  # padding against traffic analysis: accepted, but no padding is sent


@final
class ResponsesRequestBody(msgspec.Struct):
    """The fields that are understood."""

    input: str | list[dict[str, object]]
    instructions: str | None = None
    model: str | None = None
    stream: bool = False
    stream_options: ResponsesStreamOptions | None = None
    background: bool = False
    store: bool = True
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    metadata: Annotated[dict[_MetadataKey, _MetadataValue], msgspec.Meta(max_length=16)] = {}
    reasoning: dict[str, object] = {}
    temperature: float | None = None
    text: dict[str, object] = {}
    top_p: float | None = None


@final
class ReasoningOptions(msgspec.Struct):
    """`reasoning`."""

    effort: Effort | None = None
    summary: _ReasoningSummary | None = None
    generate_summary: _ReasoningSummary | None = None


@final
class TextOptions(msgspec.Struct):
    """`text`: no field is understood."""


BODY: Final = Fields(
    ResponsesRequestBody,
    harmless=HARMLESS
    | {
        "max_tool_calls": "this server has no tools",
        "parallel_tool_calls": "this server has no tools",
    },
    refused={
        "access_programs": (),
        "background_options": ({"completion_window": "soonest"}, {}),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        # With `store: false` the SDKs ask for it, to send it back later. This server has none, and ignores it when it
        # is sent back.
        "include": ([], [ENCRYPTED_REASONING]),
        "moderation": (),
        "previous_response_id": (),
        "prompt": (),
        "tool_choice": ("auto", "none"),
        "tools": ([],),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    },
)
"""The fields of a request's body. docs/howto/openai.md has the same as a table."""

REASONING: Final = Fields(ReasoningOptions, refused={"context": ("auto",), "mode": ("standard",)})
"""The fields of `reasoning`. `effort` picks the mode. The whole trace is sent with any `summary`, and without one."""

TEXT: Final = Fields(TextOptions, refused={"format": ({"type": "text"},), "verbosity": ("medium",)})
"""The fields of `text`."""

MESSAGE: Final = Fields(
    OpenAIMessage,
    harmless={
        "id": "part of an earlier answer, sent back",
        "phase": "part of an earlier answer, sent back",
        "status": "part of an earlier answer, sent back",
        "type": "the item is a message",
    },
)
"""The fields of a message in `input`. They accept the output of an earlier response, sent back unchanged."""

_READERS: Final[Mapping[str, PartReader]] = {"input_text": read_text_part, "output_text": read_text_part}


class CreateResponse(NamedTuple):
    """A request that has been read.

    Attributes:
        engine_request: What to generate, without `on_disconnect`.
        ignored: Fields that the model does not honour.
        stream: Whether to answer with events.
        echoed: The fields that the response repeats.
    """

    engine_request: Request
    ignored: tuple[str, ...]
    stream: bool
    echoed: EchoedFields


def read_request(body: bytes | bytearray, builder: RequestBuilder) -> CreateResponse:
    """Read a request.

    Args:
        body: The body as received.
        builder: Makes the engine's request.

    Raises:
        UnsupportedParameterError, UnknownParameterError: A field is refused, or unknown.
        ModelNotFoundError: No model has this name.
        InvalidRequestError: A value is invalid.
    """
    fields = BODY.decode(body)
    reasoning = REASONING.read(fields.reasoning, "reasoning")
    TEXT.read(fields.text, "text")
    if fields.stream_options is not None and not fields.stream:
        raise InvalidRequestError("stream_options goes with stream", "stream_options")
    if fields.background and not fields.store:
        raise InvalidRequestError("a background response must be stored, or it could not be retrieved", "store")
    messages = [Message("system", fields.instructions)] if fields.instructions else []
    built = builder.build(
        messages + _messages(fields.input),
        model=fields.model,
        effort=reasoning.effort,
        limit=fields.max_output_tokens,
        sampling={"temperature": fields.temperature, "top_p": fields.top_p},
    )
    echoed = EchoedFields(
        instructions=fields.instructions,
        metadata=fields.metadata,
        max_output_tokens=fields.max_output_tokens,
        temperature=fields.temperature,
        top_p=fields.top_p,
        reasoning=EchoedReasoning(effort=reasoning.effort, summary=reasoning.summary or reasoning.generate_summary),
        background=fields.background,
        store=fields.store,
    )
    return CreateResponse(built.request, built.ignored, fields.stream, echoed)


def read_flag(name: str, text: str) -> bool:
    """Read a query parameter that is `true` or `false`.

    Raises:
        InvalidRequestError: It is neither.
    """
    if text not in _BOOLEANS:
        raise InvalidRequestError(f"{name} is true or false", name)
    return _BOOLEANS[text]


def read_event_number(name: str, text: str | None) -> int | None:
    """Read a query parameter that is the `sequence_number` of an event. None if the request does not have it.

    Raises:
        InvalidRequestError: It is not a number.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > _MAX_NUMBER_DIGITS:
        raise InvalidRequestError(f"{name} is the sequence_number of an event", name)
    return int(text)


def _messages(given: str | list[dict[str, object]]) -> list[Message]:
    if isinstance(given, str):
        if not given:
            raise InvalidRequestError("the input is empty", "input")
        return [Message("user", given)]
    messages: list[Message] = []
    for index, item in enumerate(given):
        at = f"input[{index}]"
        kind = item.get("type", "message")
        if kind == "reasoning":  # the trace of an earlier answer, sent back. No model reads it
            continue
        if kind != "message":
            raise UnsupportedParameterError(f"{at}.type")
        asked = MESSAGE.read(item, at)
        if (message := read_message(asked.role, asked.content, at, _READERS)) is not None:
            messages.append(message)
    if not messages:
        raise InvalidRequestError("there is no message", "input")
    return messages
