"""The input of a response as a list of items: `GET /v1/responses/{id}/input_items`.

The items are made from the messages that the model got. So the ids are not those that the client sent, the role
`developer` is `system`, and a request with `previous_response_id` shows the whole conversation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, final

import msgspec

from crucible_trio.apis.kit.parsing import valid
from crucible_trio.apis.openai.responses.objects import Json
from crucible_trio.apis.openai.responses.tool_origins import ToolOrigin, custom_input
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import AudioPart, FilePart, ImagePart, Message, Part, TextPart, ToolCall


@final
class PageOptions(msgspec.Struct, frozen=True):
    """The query parameters of a list."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None


@final
class ItemPage(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a list."""

    object: Literal["list"] = "list"
    data: list[Json]
    first_id: str | None
    last_id: str | None
    has_more: bool


def read_page_options(given: Mapping[str, str]) -> PageOptions:
    """Read the query parameters of a list.

    Raises:
        InvalidRequestError: A value is invalid.
    """
    return valid(lambda: msgspec.convert(dict(given), PageOptions, strict=False))


def page_of(items: Sequence[dict[str, object]], options: PageOptions) -> ItemPage:
    """The part of the list that the options ask for.

    Raises:
        InvalidRequestError: `after` names no item of the list.
    """
    ordered = list(items) if options.order == "asc" else list(reversed(items))
    if options.after is not None:
        ids = [item["id"] for item in ordered]
        if options.after not in ids:
            message = "after is the id of an item in the list"
            raise InvalidRequestError(message, "after")
        ordered = ordered[ids.index(options.after) + 1 :]
    data = ordered[: options.limit]
    return ItemPage(
        data=data,
        first_id=str(data[0]["id"]) if data else None,
        last_id=str(data[-1]["id"]) if data else None,
        has_more=len(ordered) > len(data),
    )


def items_of(messages: Sequence[Message], suffix: str, origins: Mapping[str, ToolOrigin]) -> list[dict[str, object]]:
    """The items of a conversation, oldest first.

    Args:
        messages: The conversation.
        suffix: The random part of the response's id, for the ids of the items.
        origins: The tools as the client knows them, where the model knows them by another name.
    """
    items: list[dict[str, object]] = []
    custom_calls: set[str] = set()
    for message in messages:
        for kind, fields in _items_of(message, origins, custom_calls):
            items.append({"id": f"{kind}_{suffix}_in{len(items)}", **fields})
    return items


def _items_of(
    message: Message, origins: Mapping[str, ToolOrigin], custom_calls: set[str]
) -> Iterator[tuple[str, dict[str, object]]]:
    """The items of one message, each with the beginning of its id."""
    if message.role == "tool":
        assert message.tool_call_id is not None
        kind, name = (
            ("cto", "custom_tool_call_output")
            if message.tool_call_id in custom_calls
            else ("fco", "function_call_output")
        )
        output = message.content if isinstance(message.content, str) else _parts(message)
        yield kind, {"type": name, "call_id": message.tool_call_id, "output": output or "", "status": "completed"}
        return
    if message.reasoning is not None:
        summary = [{"type": "summary_text", "text": message.reasoning}]
        yield "rs", {"type": "reasoning", "summary": summary, "status": "completed"}
    if message.content is not None:
        yield "msg", {"type": "message", "role": message.role, "content": _parts(message), "status": "completed"}
    for call in message.tool_calls:
        origin = origins.get(call.name) or ToolOrigin(call.name)
        if origin.kind == "custom":
            custom_calls.add(call.id)
        yield "fc" if origin.kind == "function" else "ctc", _call(call, origin)


def _call(call: ToolCall, origin: ToolOrigin) -> dict[str, object]:
    fields: dict[str, object] = {"call_id": call.id, "name": origin.name, "status": "completed"}
    if origin.namespace is not None:
        fields["namespace"] = origin.namespace
    if origin.kind == "custom":
        return {"type": "custom_tool_call", "input": custom_input(call.arguments), **fields}
    return {"type": "function_call", "arguments": call.arguments, **fields}


def _parts(message: Message) -> list[dict[str, object]]:
    parts = (TextPart(message.content),) if isinstance(message.content, str) else message.content or ()
    if message.role == "assistant":
        return [{"type": "output_text", "text": message.text, "annotations": [], "logprobs": []}]
    return [_part(part) for part in parts]


def _part(part: Part) -> dict[str, object]:
    match part:
        case TextPart():
            return {"type": "input_text", "text": part.text}
        case ImagePart():
            return {"type": "input_image", "image_url": part.url, "detail": part.detail or "auto"}
        case FilePart():
            name = {} if part.name is None else {"filename": part.name}
            field = "file_data" if part.url.startswith("data:") else "file_url"
            return {"type": "input_file", field: part.url, **name}
        case AudioPart():
            return {"type": "input_audio", "input_audio": {"data": part.data, "format": part.format}}
