"""The request of a client for one stream.

The JSON body of `POST /v1/streams` is a `Request`. Source of the shapes: docs/reference/protocol.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Final, Literal, TypeAlias, final

import msgspec

from crucible_trio.records import MAX_DEPTH, Mode, is_deeper

Trace: TypeAlias = Literal["segments", "final", "none"]
OnDisconnect: TypeAlias = Literal["pause", "continue", "cancel"]
Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]
ToolName = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
# A model server may read a `file:` URL from its own disk. The type of a data URL has no limit in RFC 2397.
_URL: Final = re.compile(r"https?://[^/?#\s]|data:[^,]{0,512},", re.IGNORECASE)
_TEXT_DATA: Final = re.compile(r"data:text/", re.IGNORECASE)
IMAGE_URL: Final = "Expected an http or https URL, or a data URL of an image"
FILE_URL: Final = "Expected an http, https or data URL"

_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]


@final
class TextPart(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type", tag="text"
):
    """Text in a message's content."""

    text: NonEmpty


@final
class ImagePart(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type", tag="image"
):
    """An image.

    Attributes:
        url: A `data:` URL, or an `http` or `https` URL that the model server fetches. This server fetches nothing.
        detail: How closely the model should look: `low`, `high`, or another word that it knows.
    """

    url: NonEmpty
    detail: str | None = None

    def __post_init__(self) -> None:
        """Check the URL. The wording lets parsing find the field's name."""
        if not is_image_url(self.url):
            message = f"{IMAGE_URL} in field `url`"
            raise ValueError(message)


@final
class FilePart(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type", tag="file"
):
    """A file, by a `data:`, `http` or `https` URL."""

    url: NonEmpty
    name: str | None = None

    def __post_init__(self) -> None:
        """Check the URL, as for an image."""
        if not is_url(self.url):
            message = f"{FILE_URL} in field `url`"
            raise ValueError(message)


@final
class AudioPart(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type", tag="audio"
):
    """Audio: base64 data and its format, such as `wav`."""

    data: NonEmpty
    format: NonEmpty


def is_url(text: str) -> bool:
    """Whether a text is a URL of a scheme that an engine may get: `http`, `https` or `data`."""
    return _URL.match(text) is not None


def is_image_url(text: str) -> bool:
    """Whether a text is such a URL and, if it is a data URL, does not say that it is text."""
    return is_url(text) and _TEXT_DATA.match(text) is None


Part: TypeAlias = TextPart | ImagePart | FilePart | AudioPart
Content: TypeAlias = NonEmpty | Annotated[tuple[Part, ...], msgspec.Meta(min_length=1)]


@final
class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A tool call of an earlier turn. `arguments` is the JSON text that the model wrote."""

    id: NonEmpty
    name: ToolName
    arguments: str


@final
class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One message of a conversation.

    Attributes:
        role: Who says it. `tool` is the result of a tool call.
        content: A text or parts. An assistant message with tool calls may have none, and so may a tool's result.
        tool_calls: The calls of an assistant message.
        tool_call_id: The call that a `tool` message answers.
        reasoning: The reasoning trace that led to an assistant message.

    Raises:
        ValueError: The role does not have one of these fields, or lacks one, at construction.
    """

    role: Role
    content: Content | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: NonEmpty | None = None
    reasoning: NonEmpty | None = None

    def __post_init__(self) -> None:
        """Check what depends on the role. The wording is msgspec's, so that parsing finds the field's name."""
        for name in ("tool_calls", "reasoning"):
            if getattr(self, name) and self.role != "assistant":
                message = f"Object contains unknown field `{name}`"
                raise ValueError(message)
        if self.tool_call_id is not None and self.role != "tool":
            message = "Object contains unknown field `tool_call_id`"
            raise ValueError(message)
        if self.tool_call_id is None and self.role == "tool":
            message = "Object missing required field `tool_call_id`"
            raise ValueError(message)
        if self.content is None and not self.tool_calls and self.role != "tool":
            message = "Object missing required field `content`"
            raise ValueError(message)

    @property
    def text(self) -> str:
        """The text of the content. Between text parts there is a line end, as vLLM and llama.cpp put it."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))


@final
class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the model picks tokens. None leaves it to the engine. A model declares which fields it honours."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | None = None
    stop: (
        Annotated[tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=256)], ...], msgspec.Meta(max_length=16)]
        | None
    ) = None
    top_k: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def given(self) -> frozenset[str]:
        """The names of the fields that are set."""
        return frozenset(name for name in self.__struct_fields__ if getattr(self, name) is not None)


@final
class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A function that the model may call.

    Attributes:
        name: Its name.
        description: When and how to call it.
        parameters: The JSON schema of its arguments, passed on unchecked.
        strict: Whether the arguments must match the schema.
    """

    name: ToolName
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


@final
class NamedTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A tool choice: the model must call this tool."""

    name: ToolName


ToolChoice: TypeAlias = Literal["auto", "none", "required"] | NamedTool


@final
class TextFormat(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type", tag="text"
):
    """The answer is plain text."""


@final
class JsonObjectFormat(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type", tag="json_object"
):
    """The answer is a JSON object."""


@final
class JsonSchemaFormat(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type", tag="json_schema"
):
    """The answer is JSON that matches a schema. The engine or its server enforces it."""

    name: ToolName
    schema: dict[str, object]
    strict: bool | None = None
    description: str | None = None


ResponseFormat: TypeAlias = TextFormat | JsonObjectFormat | JsonSchemaFormat


@final
class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The model's tools and the form of its answer. None leaves it to the engine.

    Attributes:
        tools: The tools that the model may call.
        tool_choice: Whether it may, must not or must call one, or which one it must call.
        parallel_tool_calls: Whether one turn may have several calls.
        response_format: The form of the answer.
        logprobs: Whether the answer carries the log probabilities of its tokens.
        top_logprobs: How many alternatives of each token they list.
        verbosity: `low`, `medium` or `high`, for models that know it.
    """

    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    verbosity: NonEmpty | None = None


@final
class Deadlines(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How long a stream may take, in seconds. None is the server's default."""

    first_token_seconds: Seconds | None = None
    idle_seconds: Seconds | None = None
    total_seconds: Seconds | None = None


class _RequestFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    input: NonEmpty | Annotated[tuple[Message, ...], msgspec.Meta(min_length=1)]
    mode: Mode = "standard"
    model: str | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    sampling: Sampling = Sampling()
    trace: Trace = "segments"
    on_disconnect: OnDisconnect | None = None
    grace_seconds: Seconds | None = None
    deadlines: Deadlines = Deadlines()
    parameters: Parameters = Parameters()
    extra: dict[str, object] = {}


@final
class Request(_RequestFields, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A client's request for one stream.

    Attributes:
        input: The prompt, or the conversation so far.
        mode: `deep` reasons before it answers.
        model: One of the engine's models. None is the first.
        max_output_tokens: Reasoning and answer together. None is the engine's default.
        sampling: How the model picks tokens.
        trace: The default view of the stream's readers. It never changes the log.
        on_disconnect: The policy while no reader is attached. The default depends on how the stream is started.
        grace_seconds: How long a stream without readers waits for one. None is the server's default.
        deadlines: How long the stream may take.
        parameters: Tools, the form of the answer, and further parameters of the model.
        extra: Fields that only the engine understands, passed on unchecked.

    Raises:
        ValueError: A value is out of its range, at construction.
    """

    def __post_init__(self) -> None:
        """Check the nesting, and a request that a program has built. msgspec itself checks those that it decodes.

        The wording is msgspec's, so that parsing finds the field's name.
        """
        for path, value in self._unchecked():
            if is_deeper(value):
                message = f"More than {MAX_DEPTH} levels deep - at `$.{path}`"
                raise ValueError(message)
        msgspec.convert(msgspec.to_builtins(self), _RequestFields)

    def _unchecked(self) -> Iterator[tuple[str, object]]:
        """The fields that hold any JSON, with the path of each."""
        if self.extra:
            yield "extra", self.extra
        for index, tool in enumerate(self.parameters.tools):
            yield f"parameters.tools[{index}].parameters", tool.parameters
        if isinstance(self.parameters.response_format, JsonSchemaFormat):
            yield "parameters.response_format.schema", self.parameters.response_format.schema

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation. A plain prompt is one user message."""
        return (Message("user", self.input),) if isinstance(self.input, str) else self.input
