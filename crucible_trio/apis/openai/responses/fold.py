"""From the records of a log to the events and the object of one response.

```
stream.created     response.created, response.in_progress
reasoning.delta    output_item.added (once), reasoning_summary_part.added (per segment), reasoning_summary_text.delta
reasoning.done     the segment's .done events, output_item.done
output.delta       output_item.added and content_part.added (once), output_text.delta
refusal.delta      the same with a refusal part, refusal.delta
tool_call.started  output_item.added
tool_call.delta    function_call_arguments.delta
tool_call.done     function_call_arguments.done, output_item.done
                   of a custom tool: custom_tool_call_input.delta and .done, output_item.done
terminal           the open item's .done events, then response.completed, .incomplete or .failed
```

Reasoning that follows a piece of the answer closes the open message and opens a new reasoning item. The next piece of
the answer opens a new message. So the events of two items are never mixed, and `output_index` is the item's place in
`output`. The answer is all messages joined, as the SDKs' `output_text` joins them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, final

import msgspec

from crucible_trio.apis.kit.endings import CONTENT_FILTER
from crucible_trio.apis.kit.sealed import Seal
from crucible_trio.apis.openai.responses.events import (
    ErrorEvent,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponsesEvent,
    TerminalEvent,
    encode_event,
)
from crucible_trio.apis.openai.responses.failures import late_error
from crucible_trio.apis.openai.responses.items import (
    OpenCall,
    OpenCustomCall,
    OpenFunctionCall,
    OpenItem,
    OpenMessage,
    OpenReasoning,
    OpenRefusal,
)
from crucible_trio.apis.openai.responses.objects import (
    EchoedFields,
    IncompleteDetails,
    ItemStatus,
    OutputItem,
    ResponseError,
    ResponseObject,
    ResponseStatus,
    format_response_id,
    usage_of,
)
from crucible_trio.apis.openai.responses.tool_origins import ToolOrigin
from crucible_trio.records import (
    AnyRecord,
    OutputDelta,
    ReasoningDelta,
    ReasoningDone,
    RefusalDelta,
    StreamCancelled,
    StreamCompleted,
    StreamContinued,
    StreamCreated,
    StreamFailed,
    StreamIncomplete,
    Terminal,
    ToolCallDelta,
    ToolCallDone,
    ToolCallStarted,
    UnknownRecord,
    UpstreamFields,
)

# Of a stream that completed with a tool call that broke off: a client must not take such a call for whole.
_CALL_BROKE_OFF: Final = "incomplete_tool_call"

_EVENTS: Final[dict[ResponseStatus, type[TerminalEvent]]] = {
    "completed": ResponseCompleted,
    "incomplete": ResponseIncomplete,
    "failed": ResponseFailed,
    "cancelled": ResponseIncomplete,  # the SDKs know no `response.cancelled`
}


@final
class ResponseFold:
    """Folds the records of a log, from record 1 on and in order. Its state depends only on them and on its arguments.

    Args:
        echoed: The request's fields that the response repeats.
        seal: Signs the traces. None: the items have no `encrypted_content`.

    Attributes:
        next_number: The `sequence_number` of the next event, which is also the number of events so far.
    """

    def __init__(self, echoed: EchoedFields, seal: Seal | None = None) -> None:
        self.next_number = 0
        self._echoed = echoed
        self._seal = seal
        self._suffix = ""  # of the items' ids
        self._created_at = 0.0
        self._response: ResponseObject | None = None  # without its output, which grows
        self._finished: list[OutputItem] = []
        self._open: OpenItem | None = None
        self._has_broken_call = False

    def feed(self, record: AnyRecord) -> list[ResponsesEvent]:
        """Fold the next record.

        Returns:
            Its events, numbered. `stream.continued`, `upstream.fields`, `reasoning.done` without a trace, and a piece
            of a custom tool's input have none.
        """
        events = list(self._events(record))
        for event in events:
            event.sequence_number = self.next_number
            self.next_number += 1
        return events

    def encode(self, record: AnyRecord) -> list[bytes]:
        """As `feed`, with the bytes of each event (`NumberedFold`)."""
        return [encode_event(event) for event in self.feed(record)]

    def keep_alive(self) -> bytes:
        """The event `response.in_progress` again (`NumberedFold`).

        Clients with a watchdog count events, and not comments. The event has the number of the one before it, and no
        place in the log. It is known to all SDKs, which do not know events for this purpose.
        """
        return encode_event(self.in_progress())

    def response(self) -> ResponseObject:
        """The response with its output so far. Call it after the first record."""
        assert self._response is not None
        output = [*self._finished] if self._open is None else [*self._finished, self._open.item("in_progress")]
        return msgspec.structs.replace(self._response, output=output)

    def in_progress(self) -> ResponseInProgress:
        """Event 1 again, with the number of the last event. Call it after the first record and before the last one."""
        assert self._response is not None
        return ResponseInProgress(response=self._response, sequence_number=self.next_number - 1)

    def _events(self, record: AnyRecord) -> Iterator[ResponsesEvent]:
        match record:
            case StreamCreated():
                self._suffix = format_response_id(record.stream).removeprefix("resp_")
                self._created_at = record.created_at
                self._response = _new_response(record, self._echoed)
                yield ResponseCreated(response=self.response())
                yield ResponseInProgress(response=self.response())
            case ReasoningDelta():
                if not isinstance(self._open, OpenReasoning):
                    yield from self._finish_item("completed")
                    index = len(self._finished)
                    self._open = OpenReasoning(f"rs_{self._suffix}_{index}", index, self._seal)
                    yield from self._open.begin()
                yield from self._open.add(record.segment, record.delta)
            case ReasoningDone():
                yield from self._finish_item("completed")
            case OutputDelta():
                if not isinstance(self._open, OpenMessage):
                    yield from self._finish_item("completed")
                    self._open = OpenMessage(f"msg_{self._suffix}_{len(self._finished)}", len(self._finished))
                    yield from self._open.begin()
                yield from self._open.add(record.delta, record.logprobs or ())
            case RefusalDelta():
                if not isinstance(self._open, OpenRefusal):
                    yield from self._finish_item("completed")
                    self._open = OpenRefusal(f"msg_{self._suffix}_{len(self._finished)}", len(self._finished))
                    yield from self._open.begin()
                yield from self._open.add(record.delta)
            case ToolCallStarted():
                yield from self._finish_item("completed")
                self._open = self._open_call(record)
                yield from self._open.begin()
            case ToolCallDelta():
                assert isinstance(self._open, OpenCall)  # a call's records are contiguous
                yield from self._open.add(record.delta)
            case ToolCallDone():
                assert isinstance(self._open, OpenCall)
                self._open.is_whole = True
                yield from self._finish_item("completed")
            case StreamContinued() | UpstreamFields() | UnknownRecord():
                pass
            case _:
                yield from self._end(record)

    def _open_call(self, started: ToolCallStarted) -> OpenCall:
        tool = self._echoed.origins.get(started.name) or ToolOrigin(started.name)
        index = len(self._finished)
        if tool.kind == "custom":
            return OpenCustomCall(f"ctc_{self._suffix}_{index}", index, started.id, tool)
        return OpenFunctionCall(f"fc_{self._suffix}_{index}", index, started.id, tool)

    def _finish_item(self, status: ItemStatus) -> Iterator[ResponsesEvent]:
        if self._open is not None:
            item, self._open = self._open, None
            if isinstance(item, OpenCall) and not item.is_whole:
                status = "incomplete"
                self._has_broken_call = True
            yield from item.finish(status)
            self._finished.append(item.item(status))

    def _end(self, record: Terminal) -> Iterator[ResponsesEvent]:
        assert self._response is not None
        status, reason = _outcome(record)
        yield from self._finish_item("completed" if status == "completed" else "incomplete")
        if status == "completed" and self._has_broken_call:
            status, reason = "incomplete", _CALL_BROKE_OFF
        error = None
        if isinstance(record, StreamFailed):
            failure = late_error(record.error)
            error = ResponseError(failure.code or record.error.code, failure.message)
            yield ErrorEvent(code=error.code, message=error.message, param=failure.param, error=failure)
        self._response = msgspec.structs.replace(
            self._response,
            status=status,
            completed_at=int(self._created_at + record.timings.total_ms / 1000) if status == "completed" else None,
            error=error,
            incomplete_details=None if reason is None else IncompleteDetails(reason),
            usage=usage_of(record.usage),
        )
        yield _EVENTS[status](response=self.response())


def _new_response(created: StreamCreated, echoed: EchoedFields) -> ResponseObject:
    return ResponseObject(
        id=format_response_id(created.stream),
        created_at=int(created.created_at),
        model=created.model,
        background=echoed.background,
        frequency_penalty=echoed.frequency_penalty or 0.0,
        instructions=echoed.instructions,
        max_output_tokens=echoed.max_output_tokens,
        max_tool_calls=echoed.max_tool_calls,
        metadata=echoed.metadata,
        parallel_tool_calls=echoed.parallel_tool_calls,
        presence_penalty=echoed.presence_penalty or 0.0,
        previous_response_id=echoed.previous_response_id,
        prompt_cache_key=echoed.prompt_cache_key,
        reasoning=echoed.reasoning,
        safety_identifier=echoed.safety_identifier,
        store=echoed.store,
        temperature=1.0 if echoed.temperature is None else echoed.temperature,
        text=echoed.text,
        tool_choice=echoed.tool_choice,
        tools=echoed.tools,
        top_logprobs=echoed.top_logprobs,
        top_p=1.0 if echoed.top_p is None else echoed.top_p,
        user=echoed.user,
    )


def _outcome(record: Terminal) -> tuple[ResponseStatus, str | None]:
    match record:
        case StreamCompleted(finish_reason=reason) if reason == CONTENT_FILTER:
            return "incomplete", reason
        case StreamCompleted():
            return "completed", None
        case StreamIncomplete(reason=reason):
            return "incomplete", reason
        case StreamCancelled():
            # Not None: an SDK that finds no reason takes the text for complete.
            return "cancelled", "cancelled"
        case _:
            return "failed", None
