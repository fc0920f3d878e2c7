"""The body of `POST /v1/messages`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, NamedTuple, final

import msgspec

from crucible_trio.apis.anthropic.content import MessageReader
from crucible_trio.apis.anthropic.fold import ThinkingView
from crucible_trio.apis.anthropic.tools import read_choice, read_tools
from crucible_trio.apis.kit.content import GivenContent
from crucible_trio.apis.kit.fields import Fields
from crucible_trio.apis.kit.ignored import Ignored
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.apis.kit.request_builder import RequestBuilder
from crucible_trio.apis.kit.sealed import Seal
from crucible_trio.request import JsonSchemaFormat, Parameters, Request
from crucible_trio.settings.apis import Effort

_StopSequence = Annotated[str, msgspec.Meta(min_length=1)]


@final
class MessagesRequestBody(msgspec.Struct):
    """The fields that are understood."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    messages: Annotated[list[dict[str, object]], msgspec.Meta(min_length=1)]
    model: str | None = None
    system: GivenContent = ""
    stream: bool = False
    thinking: dict[str, object] = {}
    output_config: dict[str, object] = {}
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[_StopSequence] = []
    tools: list[dict[str, object]] = []
    tool_choice: dict[str, object] | None = None


@final
class Thinking(msgspec.Struct):
    """`thinking`."""

    type: Literal["enabled", "adaptive", "between_tools", "disabled"] = "disabled"
    display: Literal["summarized", "omitted"] | None = None
    budget_tokens: object = None


@final
class OutputConfig(msgspec.Struct):
    """`output_config`."""

    effort: Effort | None = None
    format: dict[str, object] | None = None


@final
class _Format(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, object]


BODY: Final = Fields(
    MessagesRequestBody,
    harmless={
        "cache_control": "a hint for a cache",
        "diagnostics": "asks for reports about a cache",
        "inference_geo": "this server runs in one place",
        "metadata": "names an end user. Here keys name the owners",
        "service_tier": "this server has one tier",
        "speed": "this server has one speed",
    },
    refused={
        "container": (),
        "fallbacks": ([],),
        "mcp_servers": ([],),
        "thread": (),
    },
)
"""The fields of a request's body. docs/howto/anthropic.md has the same as a table. Unknown fields are ignored."""

THINKING: Final = Fields(Thinking)
"""The fields of `thinking`. No engine takes a budget of tokens for the trace."""

OUTPUT_CONFIG: Final = Fields(OutputConfig)
"""The fields of `output_config`."""

NAMES: Final[Mapping[str, str]] = {"stop": "stop_sequences", "response_format": "output_config.format"}
"""The names of a request's fields that differ from those of chat completions."""


@final
class MessageFacts(msgspec.Struct, frozen=True):
    """What a message's fold needs besides the log. It is stored with the stream.

    Attributes:
        view: How the trace is shown. `shown` for a stream that another API has started.
    """

    view: ThinkingView = "shown"


class MessagesRequest(NamedTuple):
    """A request that has been read.

    Attributes:
        engine_request: What to generate.
        ignored: Fields that are unknown, or that the model does not honour.
        stream: Whether to answer with events.
        facts: What the fold needs.
        hosted: The types of the tools that are not offered to the model.
        unverified: How many traces of earlier turns were left out because this server has not signed them.
    """

    engine_request: Request
    ignored: tuple[str, ...]
    stream: bool
    facts: MessageFacts
    hosted: tuple[str, ...]
    unverified: int


def read_request(body: bytes | memoryview, builder: RequestBuilder, seal: Seal) -> MessagesRequest:
    """Read a request.

    Args:
        body: The body as received.
        builder: Makes the engine's request.
        seal: Verifies the traces of earlier turns.

    Raises:
        UnsupportedParameterError: A field is refused.
        ModelNotFoundError: No model has this name.
        InvalidRequestError: A value is invalid.
    """
    ignored = Ignored()
    fields = ignored.decode(BODY, body)
    thinking = ignored.read(THINKING, fields.thinking, "thinking")
    if thinking.budget_tokens is not None:
        ignored.add("thinking.budget_tokens")
    output = ignored.read(OUTPUT_CONFIG, fields.output_config, "output_config")
    declared = read_tools(fields.tools, ignored)
    choice, parallel = read_choice(fields.tool_choice, declared.tools)
    offered = {tool.name for tool in declared.tools}
    reader = MessageReader(builder.capabilities(fields.model), offered, ignored, seal)
    built = builder.build(
        reader.read(fields.system, fields.messages),
        model=fields.model,
        effort=None if thinking.type == "disabled" and fields.thinking else output.effort,
        thinking=thinking.type == "enabled" or (thinking.type != "disabled" and output.effort is None),
        limit=fields.max_tokens,
        sampling={
            "temperature": fields.temperature,
            "top_p": fields.top_p,
            "top_k": fields.top_k,
            "stop": fields.stop_sequences or None,
        },
        parameters=Parameters(
            tools=declared.tools,
            tool_choice=choice,
            parallel_tool_calls=parallel,
            response_format=None if output.format is None else _read_format(output.format, ignored),
        ),
    )
    for name in built.ignored:
        ignored.add(name)
    facts = MessageFacts(_view_of(thinking))
    return MessagesRequest(built.request, ignored.names, fields.stream, facts, declared.hosted, reader.unverified)


def _view_of(thinking: Thinking) -> ThinkingView:
    # Programs that did not ask for a trace often take block 0 for the answer.
    if thinking.type == "disabled":
        return "hidden"
    return "omitted" if thinking.display == "omitted" else "shown"


def _read_format(given: Mapping[str, object], ignored: Ignored) -> JsonSchemaFormat:
    at = "output_config.format"
    known = ignored.known(given, _Format.__struct_fields__, at)
    asked = valid(lambda: msgspec.convert(known, _Format), at)
    return JsonSchemaFormat("answer", asked.schema, strict=True)
