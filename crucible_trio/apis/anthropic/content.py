"""The messages of a request, whose content is blocks, as messages for the engine.

One message of the user can hold results of tools and text. For the engine these are several messages: each result, then
the rest. A message of the model holds its trace, text and calls in any order, and is one message for the engine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Final, Literal, final

import msgspec

from crucible_trio.apis.anthropic.blocks import BlockReader
from crucible_trio.apis.anthropic.fold import UNPARSED
from crucible_trio.apis.kit.content import GivenContent, PartReader, read_content
from crucible_trio.apis.kit.errors import UnsupportedParameterError
from crucible_trio.apis.kit.fields import dotted
from crucible_trio.apis.kit.ignored import Ignored
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.apis.kit.sealed import Seal
from crucible_trio.engine import Capabilities
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import Message, NonEmpty, Part, TextPart, ToolCall

# Says to a model that a tool has failed. A chat completion has no other place for it.
_FAILED: Final = "The tool call failed."


@final
class _Message(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: GivenContent


@final
class _ToolUse(msgspec.Struct):
    id: NonEmpty
    name: NonEmpty
    input: dict[str, object] = {}


@final
class _ToolResult(msgspec.Struct):
    tool_use_id: NonEmpty
    content: GivenContent = ""
    is_error: bool = False


@final
class MessageReader:
    """Reads messages.

    Args:
        can: The model's capabilities.
        tools: The names of the tools that the model is offered.
        ignored: Takes the names of fields and blocks that are ignored.
        seal: Verifies the traces of earlier turns.

    Attributes:
        unverified: How many traces were left out because this server has not signed them.
    """

    def __init__(self, can: Capabilities, tools: Collection[str], ignored: Ignored, seal: Seal) -> None:
        self.unverified = 0
        self._can = can
        self._ignored = ignored
        self._seal = seal
        self._messages: list[Message] = []
        self._blocks = BlockReader(can, tools, ignored)
        self._users_readers: Mapping[str, PartReader] = {**self._blocks.users, "tool_result": self._read_result}

    def read(self, system: GivenContent, given: Sequence[Mapping[str, object]]) -> list[Message]:
        """Read the conversation. Empty messages that are not the user's are left out.

        Args:
            system: The system prompt.
            given: The messages.

        Raises:
            UnsupportedParameterError: A block has a type that this server or the model does not support.
            InvalidRequestError: A value is invalid, or there is no message.
        """
        self._read_system(system, "system")
        for index, fields in enumerate(given):
            at = f"messages[{index}]"
            known = self._ignored.known(fields, _Message.__struct_fields__, "messages[]")
            message = valid(partial(msgspec.convert, known, _Message), at)
            place = dotted(at, "content")
            match message.role:
                case "system":
                    self._read_system(message.content, place)
                case "user":
                    self._read_user(message.content, place)
                case "assistant":
                    self._read_answer(message.content, place)
        if all(message.role == "system" for message in self._messages):
            raise InvalidRequestError("there is no message", "messages")
        return self._messages

    def _read_system(self, content: GivenContent, at: str) -> None:
        text = read_content(content, at, self._blocks.system)
        if text:
            self._messages.append(Message("system", text))

    def _read_user(self, content: GivenContent, at: str) -> None:
        before = len(self._messages)
        read = read_content(content, at, self._users_readers)  # adds a message for each result
        if read:
            self._messages.append(Message("user", read))
        elif len(self._messages) == before:
            raise InvalidRequestError("a message is empty", at)

    def _read_answer(self, content: GivenContent, at: str) -> None:
        """Add the model's turn as one message. A trace without an answer or a call is no turn."""
        blocks: list[dict[str, object]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts: list[str] = []
        traces: list[str] = []
        calls: list[ToolCall] = []
        for index, block in enumerate(blocks):
            place = f"{at}[{index}]"
            match block.get("type"):
                case "text":
                    texts.append(self._blocks.text(block, place))
                case "thinking" | "redacted_thinking":
                    traces.append(self._trace_of(block))
                case "tool_use":
                    calls.append(self._read_call(block, place))
                case str(kind):  # what a server did in an earlier turn. The answer has the results
                    self._ignored.add(f"messages[].content[].{kind}")
                case _:
                    raise InvalidRequestError("a block has a type", dotted(place, "type"))
        text, trace = "".join(texts), "".join(traces)
        if text or calls:
            self._messages.append(Message("assistant", text or None, tool_calls=tuple(calls), reasoning=trace or None))

    def _trace_of(self, block: Mapping[str, object]) -> str:
        """The trace in a block. Empty if the model cannot read it, or if this server has not signed it."""
        if not self._can.reasoning_input:
            return ""
        trace, signature = block.get("thinking"), block.get("signature")
        if isinstance(signature, str):
            if isinstance(trace, str) and trace and self._seal.matches(trace, signature):
                return trace
            if not trace and (sealed := self._seal.verify(signature)) is not None:
                return sealed
        self.unverified += 1
        return ""

    def _read_call(self, block: Mapping[str, object], at: str) -> ToolCall:
        if not self._can.tools:
            raise UnsupportedParameterError(dotted(at, "type"))
        call = self._blocks.read(block, at, _ToolUse)
        unparsed = call.input.get(UNPARSED)
        arguments = unparsed if isinstance(unparsed, str) else msgspec.json.encode(call.input).decode()
        made = {"id": call.id, "name": call.name, "arguments": arguments}
        return valid(lambda: msgspec.convert(made, ToolCall), at)

    def _read_result(self, block: Mapping[str, object], at: str) -> None:
        if not self._can.tools:
            raise UnsupportedParameterError(dotted(at, "type"))
        result = self._blocks.read(block, at, _ToolResult)
        content: str | tuple[Part, ...] = read_content(result.content, dotted(at, "content"), self._blocks.results)
        if result.is_error:
            content = f"{_FAILED}\n{content}".strip() if isinstance(content, str) else (TextPart(_FAILED), *content)
        self._messages.append(Message("tool", content or None, tool_call_id=result.tool_use_id))
