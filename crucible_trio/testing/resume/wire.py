"""What the kit must know of a server: how a stream is started and found again, and what its events mean.

Sans-IO. The defaults describe this package's own server; a TOML file describes another one.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, final
from urllib.parse import urljoin, urlsplit

import msgspec

from crucible_trio import sse
from crucible_trio.errors import ConfigError

PROMPT: Final = "How do I make a cup of tea? Think in short numbered steps, and call it thé or 茶 once."

_KEY: Final = "{key}"
_ACCEPT: Final = {"Accept": sse.MEDIA_TYPE}
_PLACEHOLDER = re.compile(r"\{(?:header:(?P<header>[^}]+)|json:(?P<json>[^}]+))\}")
_NUMBER = re.compile(r"(\d+)(?:-(\d+))?$")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """One request; `target` is path and query."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def resuming(self, last_event_id: str) -> HttpRequest:
        """The same request from a position on; the empty id is none."""
        return replace(self, headers=(*self.headers, ("Last-Event-ID", last_event_id))) if last_event_id else self


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One event, as the wire says that it is to be read.

    Attributes:
        id: None for an event that carries none.
        kind: Its type.
        channel: What its text belongs to; texts of two channels are never joined.
        text: Empty for an event that carries none.
        is_terminal: Whether the stream ends with it.
        is_control: Whether it says why a body may end cleanly before the stream does.
    """

    id: str | None
    kind: str
    channel: str
    text: str
    is_terminal: bool
    is_control: bool


@final
class Wire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server's ways.

    `{key}` in path, headers or body becomes a text of its own for each stream. Where it makes the server find the same
    stream when the request is sent again (an idempotency key, a name in the path), a connection that was cut before
    the first id can be repeated, and is checked too.

    Attributes:
        method: Of the request that starts a stream.
        path: Its path and query, below the URL that is checked.
        headers: Its headers.
        body: Its body.
        events: Where the events of a started stream are, for GET: with `{header:Name}` or `{json:path}` out of the
            answer to the start. None: the start itself is sent again with `Last-Event-ID`.
        events_headers: The headers of that GET.
        kind: Where an event's type is: a path in its JSON, or `event:` for the field of that name.
        text: Where its text is: a path in its JSON, or empty when the data is the text.
        channel: Further paths that tell texts apart, beside the type.
        terminal: The types, or whole data, that end a stream.
        control: The types after which a body may end cleanly although the stream has not.
        ids: `consecutive`: the number at the end of an id counts without holes. `rising`: it rises. `opaque`: an id is
            any text. However that is, no id may come twice, and none that the uncut reader got may be missing.
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
    text: str = "delta"
    channel: tuple[str, ...] = ("segment",)
    terminal: tuple[str, ...] = ("stream.completed", "stream.incomplete", "stream.failed", "stream.cancelled")
    control: tuple[str, ...] = ("server.draining", "server.busy")
    ids: Literal["consecutive", "rising", "opaque"] = "consecutive"

    @property
    def is_repeatable(self) -> bool:
        """Whether the start can be sent again without starting a second stream."""
        return any(_KEY in part for part in (self.path, self.body, *self.headers.values()))

    def with_headers(self, headers: dict[str, str]) -> Wire:
        """The same, with headers for every request, such as `Authorization`."""
        return msgspec.structs.replace(
            self, headers=self.headers | headers, events_headers=self.events_headers | headers
        )

    def start(self, base: str, key: str) -> HttpRequest:
        """The request that starts the stream named `key`.

        Args:
            base: Path of the URL that is checked, without a slash at its end.
            key: What `{key}` stands for.
        """
        headers = tuple((name, value.replace(_KEY, key)) for name, value in self.headers.items())
        body = self.body.replace(_KEY, key).encode() if self.method == "POST" else b""
        target = base + self.path.replace(_KEY, key)
        return HttpRequest(method=self.method, target=target, headers=headers, body=body)

    def find_events(self, start: HttpRequest, headers: dict[str, str], content: bytes) -> HttpRequest | None:
        """The request for the events of a stream, out of what answered its start.

        Args:
            start: The request that was answered.
            headers: Of the answer, names in lower case.
            content: Of the answer; empty when it is an event stream.
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

    def read(self, event: sse.ServerSentEvent) -> Piece:
        """What an event means."""
        data = event.data or ""
        value = _decode(data.encode())
        kind = event.event if self.kind == "event:" else _as_text(_look_up(value, self.kind))
        is_terminal = kind in self.terminal or data in self.terminal
        is_control = kind in self.control
        if self.text:
            found = _look_up(value, self.text)
            text = found if isinstance(found, str) else ""
        else:
            text = "" if is_terminal or is_control else data
        channel = "/".join([kind, *(_as_text(_look_up(value, path)) for path in self.channel)]).rstrip("/")
        return Piece(id=event.id, kind=kind, channel=channel, text=text, is_terminal=is_terminal, is_control=is_control)

    def number(self, event_id: str) -> tuple[int, int] | None:
        """The number at the end of an id: `12` in `str_x.12`, and both numbers in `1526919030474-55`."""
        found = _NUMBER.search(event_id)
        return (int(found[1]), int(found[2] or 0)) if found else None


def load_wire(path: Path) -> Wire:
    """Read a wire from a TOML file; what it does not name is as it is with this package's server.

    Raises:
        ConfigError: The file cannot be read, or a name or value in it is wrong.
    """
    try:
        return msgspec.convert(tomllib.loads(path.read_text("utf-8")), Wire)
    except (OSError, UnicodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        message = f"cannot read the wire in {path}: {error}"
        raise ConfigError(message) from error


@final
@dataclass(slots=True)
class Reading:
    """What somebody got of one stream, over one connection or many.

    Attributes:
        ids: In order, as often as they came.
        texts: By channel.
        events: How many there were, those without an id too.
        ended: Whether a terminal event came.
    """

    ids: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    events: int = 0
    ended: bool = False

    def add(self, piece: Piece) -> None:
        """Take the next event."""
        self.events += 1
        self.ended = self.ended or piece.is_terminal
        if piece.id:
            self.ids.append(piece.id)
        if piece.text:
            self.texts[piece.channel] = self.texts.get(piece.channel, "") + piece.text


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
