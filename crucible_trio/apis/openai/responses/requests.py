"""The body of `POST /v1/responses`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, NamedTuple, final

import msgspec

from crucible_trio.apis.kit.errors import UnsupportedParameterError
from crucible_trio.apis.kit.fields import Fields
from crucible_trio.apis.kit.ignored import Ignored
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.apis.kit.request_builder import RequestBuilder
from crucible_trio.apis.kit.sealed import Seal
from crucible_trio.apis.openai.fields import HARMLESS
from crucible_trio.apis.openai.responses.earlier import Earlier
from crucible_trio.apis.openai.responses.input import InputReader, tools_in
from crucible_trio.apis.openai.responses.objects import EchoedFields, EchoedReasoning
from crucible_trio.apis.openai.responses.tools import read_choice, read_tools
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import JsonSchemaFormat, Message, Parameters, Request, ResponseFormat
from crucible_trio.settings.apis import Effort

# OpenAI's limits. The echoed fields are kept with the stream, and `total_log_bytes` does not count them.
_MetadataKey = Annotated[str, msgspec.Meta(max_length=64)]
_MetadataValue = Annotated[str, msgspec.Meta(max_length=512)]
_ReasoningSummary = Literal["auto", "concise", "detailed"]

ENCRYPTED_REASONING: Final = "reasoning.encrypted_content"
_LOGPROBS: Final = "message.output_text.logprobs"

_FORMAT_FIELDS: Final = frozenset({"type", *JsonSchemaFormat.__struct_fields__})


@final
class ResponsesStreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`stream_options`."""

    include_obfuscation: bool = False  # padding against traffic analysis: accepted, but no padding is sent


@final
class ResponsesRequestBody(msgspec.Struct):
    """The fields that are understood."""

    input: str | list[dict[str, object]]
    instructions: str | None = None
    previous_response_id: str | None = None
    model: str | None = None
    stream: bool = False
    stream_options: ResponsesStreamOptions | None = None
    background: bool = False
    store: bool = True
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    metadata: Annotated[dict[_MetadataKey, _MetadataValue], msgspec.Meta(max_length=16)] = {}
    include: list[str] = []
    reasoning: dict[str, object] = {}
    temperature: float | None = None
    text: dict[str, object] = {}
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] = 0
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    tools: list[dict[str, object]] = []
    tool_choice: str | dict[str, object] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, msgspec.Meta(ge=1)] | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None


@final
class ReasoningOptions(msgspec.Struct):
    """`reasoning`."""

    effort: Effort | None = None
    summary: _ReasoningSummary | None = None
    generate_summary: _ReasoningSummary | None = None


@final
class TextOptions(msgspec.Struct):
    """`text`."""

    format: dict[str, object] | None = None
    verbosity: str | None = None


BODY: Final = Fields(
    ResponsesRequestBody,
    harmless={name: why for name, why in HARMLESS.items() if name not in ResponsesRequestBody.__struct_fields__}
    | {"client_metadata": "labels for a store, which this server does not have"},
    refused={
        "access_programs": (),
        "background_options": ({"completion_window": "soonest"}, {}),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        "moderation": (),
        "prompt": (),
    },
)
"""The fields of a request's body. docs/howto/openai.md has the same as a table. Unknown fields are ignored."""

REASONING: Final = Fields(ReasoningOptions, refused={"context": ("auto",), "mode": ("standard",)})
"""The fields of `reasoning`. `effort` picks the mode. The whole trace is sent with any `summary`, and without one."""

TEXT: Final = Fields(TextOptions)
"""The fields of `text`."""

# The parts that a response can have besides those that it always has. This server makes some of them. Others belong to
# hosted tools, which it does not have.
INCLUDE: Final = frozenset(
    {
        ENCRYPTED_REASONING,
        _LOGPROBS,
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "web_search_call.action.sources",
        "web_search_call.results",
    }
)

# The names of fields in this API, where those of chat completions are different.
_NAMES: Final[dict[str, str]] = {
    "logprobs": "include",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
}


class CreateResponse(NamedTuple):
    """A request that has been read.

    Attributes:
        engine_request: What to generate, without `on_disconnect`.
        echoed: The fields that the response repeats, without those that the engine's request has.
        hosted: The types of the hosted tools that are not offered to the model.
        unverified: How many traces of earlier turns were left out because this server has not signed them.
    """

    engine_request: Request
    echoed: EchoedFields
    hosted: tuple[str, ...]
    unverified: int


class DecodedBody(NamedTuple):
    """A body that has been decoded, but not checked.

    Attributes:
        fields: The fields that are understood.
        ignored: Collects the others, and then those that the model does not honour.
    """

    fields: ResponsesRequestBody
    ignored: Ignored

    @property
    def identity(self) -> object:
        """What a repeated request with the same idempotency key must have in common with the first.

        Not the messages: the earlier responses, which have some of them, may have expired since.
        """
        return "responses", msgspec.structs.replace(self.fields, stream=False, stream_options=None)

    @property
    def items(self) -> Sequence[Mapping[str, object]]:
        """The items of the input."""
        return [] if isinstance(self.fields.input, str) else self.fields.input


def decode_body(body: bytes | memoryview, *, strict_fields: bool = False) -> DecodedBody:
    """Decode the body of a request.

    Args:
        body: The body as received.
        strict_fields: Refuse unknown fields, here and in `read_request`.

    Raises:
        UnsupportedParameterError, UnknownParameterError: A field is refused, or unknown.
        InvalidRequestError: A value is invalid.
    """
    ignored = Ignored(refuses_unknown=strict_fields)
    return DecodedBody(ignored.decode(BODY, body), ignored)


def read_request(body: DecodedBody, earlier: Earlier, builder: RequestBuilder, seal: Seal) -> CreateResponse:
    """Read a request.

    Args:
        body: The decoded body.
        earlier: The earlier responses that it refers to.
        builder: Makes the engine's request.
        seal: Verifies the traces of earlier turns.

    Raises:
        UnsupportedParameterError, UnknownParameterError: A field is refused, or unknown.
        ModelNotFoundError: No model has this name.
        InvalidRequestError: A value is invalid.
    """
    fields, ignored = body
    reasoning = ignored.read(REASONING, fields.reasoning, "reasoning")
    text = ignored.read(TEXT, fields.text, "text")
    if fields.stream_options is not None and not fields.stream:
        raise InvalidRequestError("stream_options goes with stream", "stream_options")
    if fields.background and not fields.store:
        raise InvalidRequestError("a background response must be stored, or it could not be retrieved", "store")
    for name in fields.include:
        if name not in INCLUDE:
            raise UnsupportedParameterError("include")
    tools = [(f"tools[{index}]", tool) for index, tool in enumerate(fields.tools)]
    declared = read_tools(tools + tools_in(body.items), ignored)
    choice = None if fields.tool_choice is None else read_choice(fields.tool_choice, declared, ignored)
    reader = InputReader(builder.capabilities(fields.model), declared, ignored, seal)
    messages = [Message("system", fields.instructions)] if fields.instructions else []
    try:
        built = builder.build(
            messages + reader.read(fields.input, earlier),
            model=fields.model,
            effort=reasoning.effort,
            limit=fields.max_output_tokens,
            sampling={
                "temperature": fields.temperature,
                "top_p": fields.top_p,
                "presence_penalty": fields.presence_penalty,
                "frequency_penalty": fields.frequency_penalty,
                "verbosity": text.verbosity,
                # No engine cuts a prompt to fit.
                "truncation": None if fields.truncation == "disabled" else fields.truncation,
            },
            parameters=Parameters(
                tools=tuple(declared.tools),
                tool_choice=choice,
                parallel_tool_calls=fields.parallel_tool_calls,
                response_format=None if text.format is None else _read_format(text.format, ignored),
                logprobs=_LOGPROBS in fields.include or fields.top_logprobs > 0,
                top_logprobs=fields.top_logprobs or None,
            ),
        )
    except UnsupportedParameterError as error:
        name = _NAMES.get(error.param, error.param)
        raise UnsupportedParameterError(
            "top_logprobs" if name == "include" and fields.top_logprobs else name, error.why
        ) from error
    except InvalidRequestError as error:
        if error.param not in _NAMES:
            raise
        raise InvalidRequestError(str(error), _NAMES[error.param]) from error
    for name in built.ignored:
        ignored.add(_NAMES.get(name, name))
    echoed = EchoedFields(
        instructions=fields.instructions,
        previous_response_id=fields.previous_response_id,
        metadata=fields.metadata,
        max_output_tokens=fields.max_output_tokens,
        max_tool_calls=fields.max_tool_calls,
        temperature=fields.temperature,
        top_p=fields.top_p,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        top_logprobs=fields.top_logprobs,
        parallel_tool_calls=fields.parallel_tool_calls is not False,
        reasoning=EchoedReasoning(effort=reasoning.effort, summary=reasoning.summary or reasoning.generate_summary),
        background=fields.background,
        store=fields.store,
        has_sealed_traces=ENCRYPTED_REASONING in fields.include,
        safety_identifier=fields.safety_identifier,
        prompt_cache_key=fields.prompt_cache_key,
        user=fields.user,
        origins=declared.origins,
        namespaces=declared.namespaces,
        text={} if text.verbosity is None else {"verbosity": text.verbosity},
    )
    return CreateResponse(built.request, echoed, tuple(declared.hosted), reader.unverified)


def _read_format(given: Mapping[str, object], ignored: Ignored) -> ResponseFormat:
    known = ignored.known(given, _FORMAT_FIELDS, "text.format")
    wanted: ResponseFormat = valid(lambda: msgspec.convert(known, ResponseFormat), "text.format")
    return wanted
