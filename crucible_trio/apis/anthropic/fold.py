"""From the records of a log to the events of a message, and the message object.

```
stream.created     message_start
reasoning.delta    content_block_start (once), thinking_delta
reasoning.done     signature_delta, content_block_stop
output.delta       content_block_start (once), text_delta
refusal.delta      the same
tool_call.started  content_block_start
tool_call.delta    input_json_delta
tool_call.done     content_block_stop
terminal           content_block_stop of an open text or trace, then message_delta and message_stop. Or error
```

A tool call that broke off has no `content_block_stop`: an agent may run the tool as soon as it reads that event.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal, TypeAlias, final

import msgspec

from crucible_trio.apis.anthropic.errors import AnthropicError, error_of
from crucible_trio.apis.anthropic.events import (
    PING,
    Block,
    BlockDelta,
    BlockStart,
    BlockStop,
    InputJsonDelta,
    MessageDelta,
    MessageEnd,
    MessageEvent,
    MessageObject,
    MessageStart,
    MessageStop,
    MessageUsage,
    SignatureDelta,
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
    encode_event,
    format_message_id,
    usage_of,
)
from crucible_trio.apis.kit.endings import ending_of
from crucible_trio.apis.kit.sealed import Seal
from crucible_trio.records import (
    TERMINAL,
    AnyRecord,
    OutputDelta,
    ReasoningDelta,
    ReasoningDone,
    RefusalDelta,
    StreamCompleted,
    StreamCreated,
    Terminal,
    ToolCallDelta,
    ToolCallDone,
    ToolCallStarted,
    decode_frame,
    format_event_id,
)

ThinkingView: TypeAlias = Literal["shown", "omitted", "hidden"]
"""`omitted`: the blocks have no text, and their signature holds the trace. `hidden`: there are no blocks."""

UNPARSED: Final = "__unparsed"
"""The one key of a call's input, in a message that is not streamed, if the model's arguments are no JSON object."""

_Kind: TypeAlias = Literal["thinking", "text", "tool_use"]


@final
class MessageFold:
    """Folds the records of a log, from record 1 on and in order (`NumberedFold`).

    Args:
        view: How the trace is shown.
        seal: Signs the trace.

    Attributes:
        next_number: The number of the next event, which is also the number of events so far.
    """

    def __init__(self, view: ThinkingView, seal: Seal) -> None:
        self.next_number = 0
        self._view = view
        self._seal = seal
        self._message_id = ""
        self._open: _Kind | None = None
        self._blocks = 0  # begun so far. The open block is the last of them
        self._trace: list[str] = []  # of the open block
        self._refused = False
        self._whole_calls = 0
        self._broken_calls = 0

    def encode(self, record: AnyRecord) -> list[bytes]:
        """Fold the next record, and return the bytes of each of its events (`NumberedFold`)."""
        return [self._numbered(event) for event in self.feed(record)]

    def keep_alive(self) -> bytes:
        """`ping` (`NumberedFold`)."""
        return PING

    def _numbered(self, event: MessageEvent) -> bytes:
        event_id = format_event_id(self._message_id, self.next_number)
        self.next_number += 1
        return encode_event(event, event_id)

    def feed(self, record: AnyRecord) -> Iterator[MessageEvent]:
        """Fold the next record. Consume all events before the next call."""
        match record:
            case StreamCreated():
                self._message_id = format_message_id(record.stream)
                yield MessageStart(_new_message(self._message_id, record.model))
            case ReasoningDelta() if self._view != "hidden":
                yield from self._begin("thinking", ThinkingBlock("", ""))
                self._trace.append(record.delta)
                if self._view == "shown":
                    yield self._delta(ThinkingDelta(record.delta))
            case ReasoningDone() if self._view != "hidden":
                yield from self._close()
            case OutputDelta(delta=text) | RefusalDelta(delta=text) if text:
                self._refused = self._refused or isinstance(record, RefusalDelta)
                yield from self._begin("text", TextBlock(""))
                yield self._delta(TextDelta(text))
            case ToolCallStarted():
                yield from self._close()
                yield from self._begin("tool_use", ToolUseBlock(record.id, record.name, {}))
            case ToolCallDelta(delta=arguments):
                yield self._delta(InputJsonDelta(arguments))
            case ToolCallDone():
                self._whole_calls += 1
                self._open = None
                yield BlockStop(self._blocks - 1)
            case _ if isinstance(record, TERMINAL):
                yield from self._end(record)

    def _begin(self, kind: _Kind, block: Block) -> Iterator[MessageEvent]:
        if self._open == kind:
            return
        yield from self._close()
        self._open = kind
        self._blocks += 1
        yield BlockStart(self._blocks - 1, block)

    def _close(self) -> Iterator[MessageEvent]:
        """Close the open block, if there is one that is no call. A call is closed by its own record."""
        kind, self._open = self._open, None
        if kind is None:
            return
        if kind == "tool_use":
            self._broken_calls += 1
            return
        if kind == "thinking":
            trace = "".join(self._trace)
            self._trace.clear()
            signature = self._seal.sign(trace) if self._view == "omitted" else self._seal.signature(trace)
            yield BlockDelta(self._blocks - 1, SignatureDelta(signature))
        yield BlockStop(self._blocks - 1)

    def _delta(self, delta: ThinkingDelta | TextDelta | InputJsonDelta) -> BlockDelta:
        return BlockDelta(self._blocks - 1, delta)

    def _end(self, terminal: Terminal) -> Iterator[MessageEvent]:
        error = error_of(terminal)
        if error is not None:
            yield error
            return
        yield from self._close()
        reason = self._stop_reason(terminal)
        stop = terminal.stop_string if reason == "stop_sequence" and isinstance(terminal, StreamCompleted) else None
        yield MessageDelta(MessageEnd(reason, stop), usage_of(terminal.usage))
        yield MessageStop()

    def _stop_reason(self, terminal: Terminal) -> StopReason:
        match ending_of(terminal, whole_calls=self._whole_calls, open_calls=self._broken_calls):
            case "cut":
                return "max_tokens"
            case "filtered":
                return "refusal"
            case "calls":
                return "tool_use"
            case "stopped" if self._refused:
                return "refusal"
        stopped_by_string = isinstance(terminal, StreamCompleted) and terminal.stop_string is not None
        return "stop_sequence" if stopped_by_string else "end_turn"


def _new_message(message_id: str, model: str) -> MessageObject:
    # The tokens of the prompt are not known yet. `message_delta` has them.
    return MessageObject(message_id, "assistant", model, [], None, None, MessageUsage(0, 0))


def whole_message(frames: Iterable[bytes], fold: MessageFold) -> MessageObject:
    """Make one object of a stream that ended well: the content of all blocks that have a `content_block_stop`.

    Args:
        frames: The whole log.
        fold: Has folded nothing yet.
    """
    message: MessageObject | None = None
    content: list[Block] = []
    block: Block | None = None
    pieces: list[str] = []
    signature = ""
    for frame in frames:
        for event in fold.feed(decode_frame(frame)):
            match event:
                case MessageStart(message=message):
                    pass
                case BlockStart(content_block=block):
                    pieces, signature = [], ""
                case BlockDelta(delta=delta):
                    if isinstance(delta, SignatureDelta):
                        signature = delta.signature
                    else:
                        pieces.append(_text_of(delta))
                case BlockStop():
                    assert block is not None
                    content.append(_whole_block(block, "".join(pieces), signature))
                case MessageDelta(delta=end, usage=usage):
                    assert message is not None
                    message = msgspec.structs.replace(
                        message, stop_reason=end.stop_reason, stop_sequence=end.stop_sequence, usage=usage
                    )
                case AnthropicError() | MessageStop():
                    pass
    assert message is not None
    return msgspec.structs.replace(message, content=content)


def _text_of(delta: ThinkingDelta | TextDelta | InputJsonDelta) -> str:
    match delta:
        case ThinkingDelta(thinking=text) | TextDelta(text=text) | InputJsonDelta(partial_json=text):
            return text


def _whole_block(block: Block, text: str, signature: str) -> Block:
    match block:
        case ThinkingBlock():
            return ThinkingBlock(text, signature)
        case TextBlock():
            return TextBlock(text)
        case ToolUseBlock():
            return ToolUseBlock(block.id, block.name, _input_of(text))


def _input_of(arguments: str) -> dict[str, object]:
    if not arguments.strip():
        return {}
    try:
        return msgspec.json.decode(arguments, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError):
        return {UNPARSED: arguments}
