"""What the body of `POST /v1/responses` may hold, and what it means."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from crucible_trio.config import Effort
from crucible_trio.dialects.responses import Asked, ReasoningAsked
from crucible_trio.engine import Message, Request
from crucible_trio.errors import InvalidRequestError
from crucible_trio.web.openai.asks import Asks
from crucible_trio.web.openai.errors import UnsupportedParameterError
from crucible_trio.web.openai.fields import HARMLESS, Fields
from crucible_trio.web.openai.messages import AskedMessage, read_message

# OpenAI's limits. What a response says again is kept with its stream, and no cap on logs counts it.
_MetadataKey = Annotated[str, msgspec.Meta(max_length=64)]
_MetadataValue = Annotated[str, msgspec.Meta(max_length=512)]
_Summary = Literal["auto", "concise", "detailed"]

ENCRYPTED_REASONING: Final = "reasoning.encrypted_content"


class _StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_obfuscation: bool = False  # padding against people who measure packets; harmless, there is none


class Body(msgspec.Struct):
    """The fields that are understood."""

    input: str | list[dict[str, object]]
    instructions: str | None = None
    model: str | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    background: bool = False
    store: bool = True
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    metadata: Annotated[dict[_MetadataKey, _MetadataValue], msgspec.Meta(max_length=16)] = {}
    reasoning: dict[str, object] = {}
    temperature: float | None = None
    text: dict[str, object] = {}
    top_p: float | None = None


class _Reasoning(msgspec.Struct):
    effort: Effort | None = None
    summary: _Summary | None = None
    generate_summary: _Summary | None = None


class _Text(msgspec.Struct):
    pass


BODY: Final = Fields(
    Body,
    harmless=HARMLESS
    | {
        "max_tool_calls": "there are no tools",
        "parallel_tool_calls": "there are no tools",
    },
    refused={
        "access_programs": (),
        "background_options": ({"completion_window": "soonest"}, {}),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        # The SDKs ask for it with `store: false`, to send it back. There is none, and what is sent back is ignored.
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
"""The fields of a request's body; docs/howto/openai.md holds the same as a table."""

REASONING: Final = Fields(_Reasoning, refused={"context": ("auto",), "mode": ("standard",)})
"""The fields of `reasoning`. `effort` picks the mode; any `summary` gets the whole trace, and so does none."""

TEXT: Final = Fields(_Text, refused={"format": ({"type": "text"},), "verbosity": ("medium",)})
"""The fields of `text`."""

MESSAGE: Final = Fields(
    AskedMessage,
    harmless={
        "id": "of an earlier answer, sent back",
        "phase": "of an earlier answer, sent back",
        "status": "of an earlier answer, sent back",
        "type": "it is a message",
    },
)
"""The fields of a message in `input`, so that a response's output can be sent back as it came."""

_TEXT_TYPES: Final = frozenset({"input_text", "output_text"})


def read_body(body: bytes | bytearray, asks: Asks) -> tuple[Body, Request, Asked]:
    """Read a request.

    Args:
        body: As it came.
        asks: Makes requests.

    Returns:
        Its fields; the request for the pipeline, without what happens when its readers leave; and what the response
        says again.

    Raises:
        UnsupportedParameterError, UnknownParameterError: A field is refused, or unknown.
        ModelNotFoundError: There is no such model.
        InvalidRequestError: Anything else does not fit.
    """
    fields = BODY.decode(body)
    reasoning = REASONING.read(fields.reasoning, "reasoning")
    TEXT.read(fields.text, "text")
    if fields.stream_options is not None and not fields.stream:
        raise InvalidRequestError("stream_options goes with stream", "stream_options")
    if fields.background and not fields.store:
        raise InvalidRequestError("a response in the background must be stored, or nobody could read it", "store")
    messages = [Message("system", fields.instructions)] if fields.instructions else []
    ask = asks.make(
        messages + _messages(fields.input),
        model=fields.model,
        effort=reasoning.effort,
        limit=fields.max_output_tokens,
        limit_name="max_output_tokens",
        sampling={"temperature": fields.temperature, "top_p": fields.top_p},
    )
    asked = Asked(
        instructions=fields.instructions,
        metadata=fields.metadata,
        max_output_tokens=fields.max_output_tokens,
        temperature=fields.temperature,
        top_p=fields.top_p,
        reasoning=ReasoningAsked(effort=reasoning.effort, summary=reasoning.summary or reasoning.generate_summary),
        background=fields.background,
        store=fields.store,
    )
    return fields, ask, asked


def _messages(given: str | list[dict[str, object]]) -> list[Message]:
    if isinstance(given, str):
        if not given:
            raise InvalidRequestError("the input is empty", "input")
        return [Message("user", given)]
    found: list[Message] = []
    for index, item in enumerate(given):
        at = f"input[{index}]"
        kind = item.get("type", "message")
        if kind == "reasoning":  # the trace of an earlier answer, sent back; no model wants it again
            continue
        if kind != "message":
            raise UnsupportedParameterError(f"{at}.type")
        message = MESSAGE.read(item, at)
        if (ours := read_message(message.role, message.content, at, text_types=_TEXT_TYPES)) is not None:
            found.append(ours)
    if not found:
        raise InvalidRequestError("there is no message", "input")
    return found
