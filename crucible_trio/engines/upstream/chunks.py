"""Read one chunk of a chat completion, in any of the forms that servers use. No trio: nothing here waits.

Servers agree on `choices[0].delta.content` and on little else:

* The trace comes as `reasoning_content`, as `reasoning`, as a part of a list in `content`, or as a list of details.
* `message` (a whole message) or `text` can take the place of `delta`. Some servers send both, and `message` then holds
  the text so far.
* `content` may be null, a list of parts, or an object. `index` may be null or a text.
* `finish_reason` may be missing, null, empty, or the text "null". Usage may be in the choice.
* The stop string that ended the answer comes with the finish reason: as `stop_reason` (vLLM) or `matched_stop`
  (SGLang) of the choice, or as `stopping_word` (llama.cpp). The number of a stop token can be in its place.
* Tool calls have forms of their own: `call_pieces`.

A value of an unexpected type is skipped and counted, because it must not be the reason that other text is lost. An
empty value carries nothing, so it is not counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, final

import msgspec

from crucible_trio.content import ServerFields
from crucible_trio.engines.upstream.call_pieces import CALL_FIELDS, CallPiece, read_calls
from crucible_trio.engines.upstream.failures import error_in_chunk
from crucible_trio.engines.upstream.json_cuts import without_depths
from crucible_trio.engines.upstream.passed_fields import PassedFields
from crucible_trio.engines.upstream.skipped import SkippedFields

PartKind: TypeAlias = Literal["content", "trace", "refusal"]
"""`content` may hold a trace between tags."""

# The first one with text counts: some servers send the same trace under several names.
_TRACE_FIELDS: Final = ("reasoning_content", "reasoning", "reasoning_details", "thinking_blocks")
# They also hold signatures, which a client sends back to the server as they came. So they are passed on as well.
_SIGNED_FIELDS: Final = frozenset({"reasoning_details", "thinking_blocks"})
# All other fields of a delta may hold text that we do not understand, so an operator should hear of them.
_KNOWN_FIELDS: Final = frozenset(
    {*_TRACE_FIELDS, *CALL_FIELDS, "content", "refusal", "finish_reason", "usage", "role", "name"}
)

# The fields of a part that hold its text, and the kind of text they stand for. None: the kind of the part.
_PART_FIELDS: Final[Mapping[str, PartKind | None]] = {
    "text": None,
    "thinking": "trace",
    "reasoning": "trace",
    "summary": "trace",
    "refusal": "refusal",
    "content": None,
    "value": None,
}
# Parts inside parts: Mistral's thinking parts hold a list of text parts.
_MAX_DEPTH: Final = 4

_STOP_FIELDS: Final = ("stop_reason", "matched_stop", "stopping_word")

_NO_FINISH: Final = frozenset({"", "null", "none"})


@final
class UpstreamChunk(msgspec.Struct):
    """The content of one chunk.

    Attributes:
        parts: Its pieces of text in order, none of them empty.
        calls: Its pieces of tool calls. They come after the text.
        logprobs: The log probabilities of its tokens.
        finish: Its finish reason in lower case.
        stop_string: The text that its server says has ended the answer. Comes with `finish`, and need not be a stop
            string of the request.
        usage: Its reports of token counts.
        error: The error that it reports.
        passed: Its fields that are not interpreted, as far as they are passed on.
        is_completion: Whether it has the form of a chunk at all.
    """

    parts: list[tuple[PartKind, str]]
    calls: list[CallPiece] = []
    logprobs: list[object] = []
    finish: str | None = None
    stop_string: str | None = None
    usage: list[dict[str, Any]] = []
    error: object = None
    passed: list[ServerFields] = []
    is_completion: bool = True

    @property
    def is_only_text(self) -> bool:
        """Whether it has one piece of text, and nothing else that means something."""
        others = (self.calls, self.logprobs, self.finish, self.stop_string, self.usage, self.error, self.passed)
        return len(self.parts) == 1 and self.is_completion and not any(others)


def decode_data(data: str) -> object:
    """Decode the data of one event.

    Raises:
        ValueError: It is not JSON.
    """
    try:
        return _decode(data)
    except RecursionError:  # a field that is not interpreted must not be the reason that the text is lost
        return _decode(without_depths(data))


def _decode(data: str) -> object:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        # `json` also accepts: half of a character beyond U+FFFF, which is split over two chunks as two escapes (the
        # recorder joins the halves), NaN and Infinity in log probabilities, and control characters in strings.
        return json.loads(data, strict=False)


@final
class ChunkReader:
    """Reads the chunks of one stream.

    Args:
        skipped: Counts the skipped values.
        passed: Decides which fields are passed on without being interpreted. None: none are.
    """

    def __init__(self, skipped: SkippedFields, passed: PassedFields | None = None) -> None:
        self._skipped = skipped
        self._passed = passed
        self._delta_has_text = False  # so far in the stream

    def read(self, fields: dict[str, Any]) -> UpstreamChunk:
        """Read the next chunk."""
        chunk = UpstreamChunk([], calls=[], logprobs=[], usage=[], error=error_in_chunk(fields), passed=[])
        choices = fields.get("choices")
        if isinstance(choices, list):
            for choice in choices:
                self._read_choice(choice, chunk)
        elif isinstance(choices, dict):
            self._read_choice(choices, chunk)
        elif choices:
            self._skipped.add("choices", may_hold_text=True)
        if usage := fields.get("usage"):
            self._read_usage(usage, "usage", chunk)
        if isinstance(groq := fields.get("x_groq"), dict):
            self._read_usage(groq.get("usage"), "x_groq.usage", chunk)
        if chunk.finish is None and "finish_reason" in fields:
            chunk.finish = self._read_finish(fields["finish_reason"], "finish_reason")
        if chunk.finish is not None and chunk.stop_string is None:
            chunk.stop_string = _stop_string_in(fields) or _stop_string_in(fields.get("__verbose"))
        chunk.is_completion = "choices" in fields or bool(chunk.usage)
        if self._passed is not None and chunk.is_completion and chunk.error is None:
            chunk.passed += self._passed.changed("chunk", fields, self._skipped)
        return chunk

    def _read_choice(self, choice: object, chunk: UpstreamChunk) -> None:
        if not isinstance(choice, dict):
            if choice:
                self._skipped.add("choices", may_hold_text=True)
            return
        if (index := choice.get("index")) is not None and not self._is_first(index):
            self._skipped.add("choices.index")
            return
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self._read_delta(delta, "delta", chunk)
        elif isinstance(delta, str):
            self._add_text(delta, "content", "delta", chunk)
        elif delta:
            self._skipped.add("delta", may_hold_text=True)
        self._delta_has_text = self._delta_has_text or bool(chunk.parts) or bool(chunk.calls)
        if not self._delta_has_text:
            self._read_in_place_of_delta(choice, chunk)
        if self._passed is not None:
            chunk.passed += self._passed.changed("choice", choice, self._skipped)
        if isinstance(logprobs := choice.get("logprobs"), dict) and isinstance(logprobs.get("content"), list):
            chunk.logprobs += logprobs["content"]
        if usage := choice.get("usage"):
            self._read_usage(usage, "choices.usage", chunk)
        if reason := choice.get("finish_reason"):
            chunk.finish = self._read_finish(reason, "finish_reason") or chunk.finish
        if chunk.finish is not None:
            chunk.stop_string = chunk.stop_string or _stop_string_in(choice)
        if chunk.error is None and choice.get("error"):
            chunk.error = choice["error"]

    def _is_first(self, index: object) -> bool:
        """Whether a choice is the one that the request asked for. An index that says nothing does not say otherwise."""
        if isinstance(index, str) and index.isascii() and index.isdigit():
            return not index.strip("0")
        if isinstance(index, (int, float)) and not isinstance(index, bool):
            return index == 0
        if index:
            self._skipped.add("choices.index")
        return True

    def _read_in_place_of_delta(self, choice: dict[str, Any], chunk: UpstreamChunk) -> None:
        message = choice.get("message")
        if isinstance(message, dict):
            self._read_delta(message, "message", chunk)
        else:
            self._add_text(message, "content", "message", chunk)
        if not chunk.parts:
            self._add_text(choice.get("text"), "content", "text", chunk)

    def _read_delta(self, delta: dict[str, Any], path: str, chunk: UpstreamChunk) -> None:
        if len(delta) == 1 and isinstance(content := delta.get("content"), str):  # nearly every chunk
            self._add_text(content, "content", path, chunk)
            return
        for name in _TRACE_FIELDS:
            if (value := delta.get(name)) and self._add_text(value, "trace", f"{path}.{name}", chunk):
                break
        if content := delta.get("content"):
            self._add_text(content, "content", f"{path}.content", chunk)
        if refusal := delta.get("refusal"):
            self._add_text(refusal, "refusal", f"{path}.refusal", chunk)
        passed: dict[str, object] = {}
        for name, value in delta.items():
            if not value or (name in _KNOWN_FIELDS and name not in _SIGNED_FIELDS):
                continue
            passed[name] = value
            if name not in _KNOWN_FIELDS:
                self._skipped.add(f"{path}.{name}", may_hold_text=isinstance(value, (str, list, dict)))
        if passed and self._passed is not None:
            chunk.passed += self._passed.changed("delta", passed, self._skipped)
        if "tool_calls" in delta or "function_call" in delta:
            chunk.calls += read_calls(delta, path, self._skipped)
        if usage := delta.get("usage"):
            self._read_usage(usage, f"{path}.usage", chunk)
        if reason := delta.get("finish_reason"):
            chunk.finish = self._read_finish(reason, f"{path}.finish_reason") or chunk.finish

    def _add_text(self, value: object, kind: PartKind, path: str, chunk: UpstreamChunk, depth: int = 0) -> bool:
        """Add the text in a value: a text, a part, or a list of them. Returns whether there was any."""
        if not value:
            return False
        if isinstance(value, str):
            chunk.parts.append((kind, value))
            return True
        if depth < _MAX_DEPTH:
            if isinstance(value, list):
                before = len(chunk.parts)
                for item in value:
                    self._add_text(item, kind, path, chunk, depth + 1)
                return len(chunk.parts) > before
            if isinstance(value, dict):
                names = [name for name in _PART_FIELDS if name in value]
                for name in names:
                    own = kind if kind == "trace" else _PART_FIELDS[name] or _kind_of_part(value, kind)
                    if self._add_text(value[name], own, f"{path}.{name}", chunk, depth + 1):
                        return True
                if names:
                    return False
        self._skipped.add(path, may_hold_text=True)
        return False

    def _read_usage(self, value: object, path: str, chunk: UpstreamChunk) -> None:
        if isinstance(value, dict):
            chunk.usage.append(value)
        elif value:
            self._skipped.add(path)

    def _read_finish(self, value: object, path: str) -> str | None:
        if isinstance(value, str):
            word = value.strip().lower()
            return None if word in _NO_FINISH else word
        if value:
            self._skipped.add(path)
        return None


def _stop_string_in(fields: object) -> str | None:
    if not isinstance(fields, dict):
        return None
    return next((value for name in _STOP_FIELDS if isinstance(value := fields.get(name), str) and value), None)


def _kind_of_part(part: Mapping[str, Any], kind: PartKind) -> PartKind:
    name = part.get("type")
    if isinstance(name, str):
        if "think" in name or "reason" in name:
            return "trace"
        if "refus" in name:
            return "refusal"
    return kind
