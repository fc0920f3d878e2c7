"""`WireFormat`: how a server's streams are started and found, and how its events are read. Sans-IO.

The defaults describe this package's own server. A TOML file describes another one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, final
from urllib.parse import quote, urljoin, urlsplit

import msgspec

from crucible_trio import sse
from crucible_trio.errors import ConfigError
from crucible_trio.settings.values import did_you_mean, make_struct, name_in_path, read_toml

PROMPT: Final = "How do I make a cup of tea? Think in short numbered steps, and call it thé or 茶 once."

_KEY: Final = "{key}"
_ACCEPT: Final = {"Accept": sse.MEDIA_TYPE}
_PLACEHOLDER = re.compile(r"\{(?:header:(?P<header>[^}]+)|json:(?P<json>[^}]+))\}")
_NUMBER = re.compile(r"(\d+)(?:-(\d+))?$")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """One request.

    Attributes:
        method: The method.
        target: The path with the query.
        headers: The headers.
        body: The body.
        asked: The id after which the request resumes. Empty for none.
    """

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    asked: str = ""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WireEvent:
    """One event, as the wire format reads it.

    Attributes:
        id: The event's id, or None.
        kind: The event's type.
        channel: The text that `text` continues. Each channel is compared separately.
        text: The event's text. Empty if it has none.
        facts: The values that are compared besides the text, each with the name under which it is compared.
        is_terminal: Whether the event ends the stream.
        is_control: Whether the body may end cleanly after this event although the stream has not ended.
        is_out_of_band: Whether the event is not in the log. Connections differ in these, so the text is not compared.
    """

    id: str | None
    kind: str
    channel: str
    text: str
    is_terminal: bool
    is_control: bool
    is_out_of_band: bool
    facts: tuple[tuple[str, str], ...] = ()


@final
class WireFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a server's streams are started and found, and how its events are read.

    `{key}` in path, headers or body is replaced by a different text for each stream. If a repeated start with the same
    key finds the same stream (an idempotency key, or a name in the path), the kit also checks connections that were cut
    before the first id.

    The kit needs no list of event types. It checks the ids of all events, and compares the text of each channel and the
    facts. It skips the other content of events, so a type that it does not know is not a fault.

    Attributes:
        method: Method of the start, the request that starts a stream.
        path: Path and query of the start, relative to the URL under test.
        headers: Headers of the start.
        body: Body of the start.
        events: URL of a started stream's events, for GET. `{header:Name}` and `{json:path}` are replaced by values from
            the response to the start. None: the kit resumes by sending the start again with `Last-Event-ID`.
        events_headers: Headers of that GET.
        kind: Where an event's type is: a path in its JSON, or `event:` for the SSE field.
        text: Where an event's text is: a path in its JSON, or empty if the data itself is the text. Of several paths,
            the first that leads to a text.
        channel: Further paths whose values, with the type, name the channel of a text.
        facts: By type of event, the paths of values that must be the same in every reading of a stream.
        terminal: The types, or the complete data, that end a stream.
        control: The types after which a body may end cleanly although the stream has not ended.
        id: Where an event's id is: `id:` for the SSE field, or a path in its JSON.
        resume: The query parameter that holds the id of the last event in a request that resumes. Empty for the header
            `Last-Event-ID`.
        ids: `consecutive`: the number at the end of the id counts without holes, and an event without id is out of
            band. `rising`: the number rises. `opaque`: an id is any text. `replay`: events have no ids, each connection
            begins with the first event, and an event's place is its id. In all cases no id may be repeated, and no id
            that the uncut reader received may be missing.
    """

    method: Literal["GET", "POST"] = "POST"
    path: str = "/v1/streams"
    headers: dict[str, str] = msgspec.field(
        default_factory=lambda: {"Content-Type": "application/json", "Idempotency-Key": _KEY, **_ACCEPT}
    )
    body: str = json.dumps({"input": PROMPT, "mode": "deep"})
    events: str | None = "{header:Location}/events"
    events_headers: dict[str, str] = msgspec.field(default_factory=lambda: dict(_ACCEPT))
    kind: str = "type"
    text: str | tuple[str, ...] = "delta"
    channel: tuple[str, ...] = ("segment", "index")
    facts: dict[str, tuple[str, ...]] = msgspec.field(default_factory=lambda: {"tool_call.started": ("id", "name")})
    terminal: tuple[str, ...] = ("stream.completed", "stream.incomplete", "stream.failed", "stream.cancelled")
    control: tuple[str, ...] = ("server.draining", "server.busy")
    id: str = "id:"
    resume: str = ""
    ids: Literal["consecutive", "rising", "opaque", "replay"] = "consecutive"

    @property
    def is_repeatable(self) -> bool:
        """Whether sending the start again finds the same stream."""
        return any(_KEY in part for part in (self.path, self.body, *self.headers.values()))

    def with_headers(self, headers: dict[str, str]) -> WireFormat:
        """A copy that adds headers to every request, such as `Authorization`."""
        return msgspec.structs.replace(
            self, headers=self.headers | headers, events_headers=self.events_headers | headers
        )

    def start(self, base: str, key: str) -> HttpRequest:
        """The request that starts the stream named `key`.

        Args:
            base: Path of the URL under test, without a trailing slash.
            key: The text that replaces `{key}`.
        """
        headers = tuple((name, value.replace(_KEY, key)) for name, value in self.headers.items())
        body = self.body.replace(_KEY, key).encode() if self.method == "POST" else b""
        target = base + self.path.replace(_KEY, key)
        return HttpRequest(method=self.method, target=target, headers=headers, body=body)

    def find_events(self, start: HttpRequest, headers: dict[str, str], content: bytes) -> HttpRequest | None:
        """The request for the events of a stream, from the response to its start.

        Args:
            start: The start request.
            headers: Headers of the response, names in lower case.
            content: Body of the response. Empty if it is an event stream.

        Returns:
            None if the wire has no `events`, or the response lacks a value that `events` needs.
        """
        if self.events is None:
            return None
        missing = False

        def fill(match: re.Match[str]) -> str:
            nonlocal missing
            if match["header"] is not None:
                found = headers.get(match["header"].lower(), "")
            else:
                found = _as_text(_look_up(_decode(content), match["json"]))
            missing = missing or not found
            return found

        url = _PLACEHOLDER.sub(fill, self.events)
        if missing:
            return None
        parts = urlsplit(urljoin(start.target, url))
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        return HttpRequest(method="GET", target=target, headers=tuple(self.events_headers.items()))

    def resuming(self, request: HttpRequest, last_id: str) -> HttpRequest:
        """The request that resumes after the event with this id, or the same request if the id is empty."""
        if not last_id:
            return request
        if not self.resume:
            return replace(request, headers=(*request.headers, ("Last-Event-ID", last_id)), asked=last_id)
        query = "&" if "?" in request.target else "?"
        return replace(request, target=f"{request.target}{query}{self.resume}={quote(last_id)}", asked=last_id)

    def read(self, event: sse.ServerSentEvent) -> WireEvent:
        """Find the type, the text and the channel of an event."""
        data = event.data or ""
        value = _decode(data.encode())
        kind = event.event if self.kind == "event:" else _as_text(_look_up(value, self.kind))
        is_terminal = kind in self.terminal or data in self.terminal
        is_control = kind in self.control
        if self.text:
            paths = (self.text,) if isinstance(self.text, str) else self.text
            found = (_look_up(value, path) for path in paths)
            text = next((text for text in found if isinstance(text, str)), "")
        else:
            text = "" if is_terminal or is_control else data
        channel = "/".join([kind, *(_as_text(_look_up(value, path)) for path in self.channel)]).rstrip("/")
        event_id = event.id if self.id == "id:" else _as_text(_look_up(value, self.id)) or None
        return WireEvent(
            id=event_id if self.ids != "replay" else None,
            kind=kind,
            channel=channel,
            text=text,
            is_terminal=is_terminal,
            is_control=is_control,
            is_out_of_band=not event_id and self.ids == "consecutive",
            facts=tuple((f"{path} of {channel}", _as_text(_look_up(value, path))) for path in self.facts.get(kind, ())),
        )

    def number(self, event_id: str) -> tuple[int, int] | None:
        """The number at the end of an id: 12 for `str_x.12`, and both numbers for `1526919030474-55`."""
        found = _NUMBER.search(event_id)
        return (int(found[1]), int(found[2] or 0)) if found else None


def load_wire(path: Path) -> WireFormat:
    """Read a wire format from a TOML file. The defaults are those of this package's server.

    Raises:
        ConfigError: The file cannot be read, or a name or value in it is invalid.
    """
    values = read_toml(path, "wire file")
    names = WireFormat.__struct_fields__
    if unknown := next((name for name in values if name not in names), None):
        message = f"unknown name {name_in_path(unknown)} (wire file {path}){did_you_mean(unknown, names)}"
        raise ConfigError(message)
    try:
        return make_struct(WireFormat, values)
    except ConfigError as error:
        message = f"{error} (wire file {path})"
        raise ConfigError(message) from error


@final
@dataclass(slots=True)
class Reading:
    """The events that one client received of one stream, over one connection or several.

    Attributes:
        ids: The ids in order of arrival, including repeated ones.
        texts: The text of each channel. Events that are out of band have no part in it.
        facts: The other values that are compared, by their names. Several with one name are joined.
        events: Number of events, including those without id.
        ended: Whether a terminal event arrived.
        has_text: Whether any event had text.
    """

    ids: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    events: int = 0
    ended: bool = False
    has_text: bool = False

    @property
    def compared(self) -> dict[str, str]:
        """All that must be the same in every reading of a stream, besides the ids."""
        return self.texts | self.facts

    def add(self, event: WireEvent) -> None:
        """Add the next event."""
        self.events += 1
        self.ended = self.ended or event.is_terminal
        self.has_text = self.has_text or bool(event.text)
        if event.id:
            self.ids.append(event.id)
        if event.is_out_of_band:
            return
        if event.text:
            self.texts[event.channel] = self.texts.get(event.channel, "") + event.text
        for name, value in event.facts:
            self.facts[name] = f"{self.facts[name]} {value}" if name in self.facts else value


def _decode(data: bytes) -> object:
    try:
        value: object = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    return value


def _look_up(value: object, path: str) -> object:
    for name in path.split("."):
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def _as_text(value: object) -> str:
    return "" if value is None else str(value)
