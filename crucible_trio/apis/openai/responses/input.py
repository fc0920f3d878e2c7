"""The `input` of a responses request: items, which become messages.

A turn of the model is several items: its trace, its text and its calls. For the engine it is one message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, final

import msgspec

from crucible_trio.apis.kit.content import GivenContent, PartReader, read_content
from crucible_trio.apis.kit.errors import UnsupportedParameterError
from crucible_trio.apis.kit.fields import Fields, dotted
from crucible_trio.apis.kit.ignored import Ignored
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.apis.kit.sealed import Seal
from crucible_trio.apis.openai.messages import (
    OpenAIMessage,
    read_message,
    read_old_refusal,
    read_old_text,
)
from crucible_trio.apis.openai.responses.earlier import Earlier, is_reference
from crucible_trio.apis.openai.responses.parts import InputParts
from crucible_trio.apis.openai.responses.tool_origins import custom_arguments
from crucible_trio.apis.openai.responses.tools import DeclaredTools
from crucible_trio.engine import Capabilities
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import Message, NonEmpty, ToolCall

MESSAGE: Final = Fields(
    OpenAIMessage,
    harmless={
        "id": "part of an earlier answer, sent back",
        "phase": "part of an earlier answer, sent back",
        "status": "part of an earlier answer, sent back",
        "type": "the item is a message",
    },
)
"""The fields of a message in `input`. Any others are ignored too, and the header `Crucible-Ignored` names them."""

# What hosted tools did in an earlier turn, on another server. The answer has their results.
_HOSTED_CALLS: Final = frozenset(
    {
        "code_interpreter_call",
        "computer_call",
        "file_search_call",
        "image_generation_call",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    }
)

_CALLS: Final = ("function_call", "custom_tool_call")
_RESULTS: Final = ("function_call_output", "custom_tool_call_output")


@final
class _FunctionCall(msgspec.Struct):
    call_id: NonEmpty
    name: NonEmpty
    arguments: str = ""
    namespace: str | None = None
    input: str = ""


@final
class _Result(msgspec.Struct):
    call_id: NonEmpty
    output: GivenContent = ""


# Those besides `call_id` and `output` change nothing.
_RESULT_FIELDS: Final = frozenset({"type", "id", "status", "name", "created_by", *_Result.__struct_fields__})


def tools_in(given: Sequence[Mapping[str, object]]) -> list[tuple[str, Mapping[str, object]]]:
    """The tools in items of type `additional_tools`, each with its place in the body.

    Raises:
        InvalidRequestError: They are not a list of objects.
    """
    found: list[tuple[str, Mapping[str, object]]] = []
    for index, item in enumerate(given):
        if item.get("type") == "additional_tools":
            at = f"input[{index}].tools"
            tools = valid(partial(msgspec.convert, item.get("tools"), list[dict[str, object]]), at)
            found += ((f"{at}[{number}]", tool) for number, tool in enumerate(tools))
    return found


@final
class InputReader:
    """Reads items.

    Args:
        can: The model's capabilities.
        declared: The tools of the request, for the names of earlier calls.
        ignored: Takes the names of fields and items that are ignored.
        seal: Verifies the traces of earlier turns.

    Attributes:
        unverified: How many traces were left out because this server has not signed them.
    """

    def __init__(self, can: Capabilities, declared: DeclaredTools, ignored: Ignored, seal: Seal) -> None:
        self.unverified = 0
        self._can = can
        self._seal = seal
        self._declared = declared
        self._ignored = ignored
        self._messages: list[Message] = []
        self._readers = InputParts(can, ignored).readers
        # The turn of the model that is being read. It is open if more text belongs to it.
        self._trace = ""
        self._answer = ""
        self._calls: list[ToolCall] = []
        self._is_open = False

    def read(self, given: str | Sequence[Mapping[str, object]], earlier: Earlier) -> list[Message]:
        """Read the whole input. Empty messages that are not the user's are left out.

        Args:
            given: A text, or items.
            earlier: What they refer to.

        Returns:
            The conversation, with that of the previous response.

        Raises:
            UnsupportedParameterError: An item or a part has a type that this server or the model does not support.
            InvalidRequestError: A value is invalid, or there is no message.
        """
        self._messages += map(self._without_trace, earlier.messages)
        if isinstance(given, str):
            if not given:
                raise InvalidRequestError("the input is empty", "input")
            given = [{"role": "user", "content": given}]
        given = [earlier.items[str(item.get("id"))] if is_reference(item) else item for item in given]
        answered = {str(item.get("call_id")) for item in given if item.get("type") in _RESULTS}
        for item in earlier.output:
            self._read_item(item, "previous_response_id", answered)
        for index, item in enumerate(given):
            self._read_item(item, f"input[{index}]", answered)
        self._end_turn()
        if not self._messages:
            raise InvalidRequestError("there is no message", "input")
        return self._messages

    def _without_trace(self, message: Message) -> Message:
        """A message of an earlier turn, which another model may have read."""
        if message.reasoning is None or self._can.reasoning_input:
            return message
        return msgspec.structs.replace(message, reasoning=None)

    def _read_item(self, item: Mapping[str, object], at: str, answered: set[str]) -> None:
        kind = item.get("type", "message")
        if kind == "message":
            self._read_message(item, at)
        elif kind == "reasoning":
            self._trace += self._trace_of(item) if self._can.reasoning_input else ""
            self._is_open = True
        elif kind in _CALLS:
            self._read_call(item, at, answered)
        elif kind in _RESULTS:
            self._read_result(item, at)
        elif isinstance(kind, str) and kind in _HOSTED_CALLS:
            self._ignored.add(f"input[].{kind}")
        elif kind != "additional_tools":
            raise UnsupportedParameterError(dotted(at, "type"))

    def _read_message(self, item: Mapping[str, object], at: str) -> None:
        unknown: dict[str, object] = {}
        asked = MESSAGE.read(item, at, unknown=unknown)
        if asked.role == "assistant":
            text = read_content(asked.content, dotted(at, "content"), _HISTORY_READERS)
            assert isinstance(text, str)  # these readers read texts only
            self._continue_turn(text)
            return
        self._ignored.add_all(unknown, at)
        self._add(read_message(asked.role, asked.content, at, self._readers))

    def _trace_of(self, item: Mapping[str, object]) -> str:
        """The trace in a reasoning item: the signed one, or else its content or its summary."""
        sealed = item.get("encrypted_content")
        if isinstance(sealed, str) and sealed:
            trace = self._seal.verify(sealed)
            self.unverified += trace is None
            return trace or ""
        for name in ("content", "summary"):
            parts = item.get(name)
            if isinstance(parts, list) and parts:
                texts = (part.get("text") for part in parts if isinstance(part, dict))
                return "".join(text for text in texts if isinstance(text, str))
        return ""

    def _continue_turn(self, text: str) -> None:
        if not text:
            return
        if self._answer and not self._is_open:  # nothing joins the two, as in examples that a program has written
            self._end_turn()
        self._answer += text
        self._is_open = False

    def _read_call(self, item: Mapping[str, object], at: str, answered: set[str]) -> None:
        if not self._can.tools:
            raise UnsupportedParameterError(dotted(at, "type"))
        given = {name: item[name] for name in _FunctionCall.__struct_fields__ if item.get(name) is not None}
        call = valid(lambda: msgspec.convert(given, _FunctionCall), at)
        if item.get("status") == "incomplete" and call.call_id not in answered:
            return  # it broke off, so it was never run
        name = self._declared.model_name(call.name, call.namespace)
        arguments = call.arguments if item["type"] == "function_call" else custom_arguments(call.input)
        self._is_open = True
        made = {"id": call.call_id, "name": name, "arguments": arguments}
        self._calls.append(valid(lambda: msgspec.convert(made, ToolCall), at))

    def _read_result(self, item: Mapping[str, object], at: str) -> None:
        if not self._can.tools:
            raise UnsupportedParameterError(dotted(at, "type"))
        given = self._ignored.known(item, _RESULT_FIELDS, at)
        result = valid(lambda: msgspec.convert(given, _Result), at)
        content = read_content(result.output, dotted(at, "output"), self._readers)
        self._add(Message("tool", content or None, tool_call_id=result.call_id))

    def _add(self, message: Message | None) -> None:
        if message is not None:
            self._end_turn()
            self._messages.append(message)

    def _end_turn(self) -> None:
        """Add the model's turn as one message. A trace without an answer or a call is no turn."""
        if self._answer or self._calls:
            self._messages.append(
                Message("assistant", self._answer or None, tool_calls=tuple(self._calls), reasoning=self._trace or None)
            )
        self._trace, self._answer, self._calls, self._is_open = "", "", [], False


# The parts of an earlier answer. Their other fields are ignored.
_HISTORY_READERS: Final[Mapping[str, PartReader]] = {
    "input_text": read_old_text,
    "output_text": read_old_text,
    "text": read_old_text,
    "refusal": read_old_refusal,
}
