"""Generates streams of chat completions that are odd but whole, from a seed, and knows what each of them means."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Final, Literal, TypeAlias

from crucible_trio.records import Usage

from .reads import WHOLE_CALL, Kind

Delta: TypeAlias = dict[str, object]
CallForm: TypeAlias = Literal["index", "interleaved", "id", "zero", "legacy"]
EarlyFinish: TypeAlias = Literal["none", "first", "some", "every"]

_WORDS: Final = (
    "Blue",
    " sky.",
    "é ✅",
    "进入",
    "\n\n",
    "1. Look\n",
    "2) ",
    "{",
    '"}',
    "[DONE]",
    "data: x",
    "\u2028",
    "\t",
    " ",
)

_NAMES: Final = ("f", "get_weather", "\u00e9 {")
_ARGUMENTS: Final = (
    "{}",
    '{"a": 1}',
    ' {"city": "P}a\\"[r\\\\", "n": [1, {"x": null}]}\n',
    '{"\u8fdb": "\U0001f375"}',
    "[]",
)

# Empty values of any type.
_NOTHING: Final = (None, "", [], {}, False, 0)
# Values that no field of text can be read from.
_ODD: Final = (*_NOTHING, 7, True, 1.5, [7], [None], [[]], {"x": 7}, [{"type": "image", "url": 3}])
# Values of unneeded fields.
_ANY: Final = (*_ODD, "x", ["x"], {"x": "y"}, -1, 10**30, math.nan, -math.inf)
_NO_INDEX: Final = (0, None, "0", "00", 0.0, "x", [], {}, [1], {"a": 1}, True, False, "")
_NO_FINISH: Final = (None, "", "null", "None", " NULL ", False, 0, [], {}, ["stop"], {"a": "stop"}, 5)
_NO_USAGE: Final = (None, {}, [], "", "x", 5, {"prompt_tokens": None}, {"prompt_tokens": "many"}, {"prompt_tokens": -1})
_NO_ERROR: Final = (None, "", {}, [], False, 0, {"code": 0, "message": ""}, {"message": None})
_FINISHES: Final = {
    "stop": ("stop", "STOP", "eos_token", "end_turn", " stop"),
    "length": ("length", "max_tokens", "MAX_TOKENS", "model_length"),
    "content_filter": ("content_filter", "SAFETY", "sensitive"),
}


class Repeated(dict[str, object]):
    """An object whose fields are all written twice."""


@dataclass(slots=True)
class OddStream:
    """One stream.

    Attributes:
        body: Its bytes.
        text: Its text by kind, neighbours joined.
        finish: How it ends.
        usage: Its token counts.
        whole_at: The number of bytes after which it is whole. Any shorter beginning is cut.
        promised: Whether only a body that ended as promised makes it whole.
        is_beside_first: Whether the first text comes with a finish. A clean end behind it looks whole.
        has_calls: Whether there are tool calls. A cut may then be in several of them.
    """

    body: bytes
    text: list[tuple[Kind, str]]
    finish: str
    usage: Usage
    whole_at: int
    promised: bool
    is_beside_first: bool
    has_calls: bool


@dataclass(slots=True)
class Builder:
    random: Random
    newline: str = "\n"
    parts: list[str] = field(default_factory=list)
    length: int = 0

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def add(self, text: str) -> None:
        self.parts.append(text)
        self.length += len(text.encode())

    def line(self, text: str) -> None:
        self.add(text + (self.newline or self.random.choice(("\n", "\r\n"))))

    def event(self, data: str, *, name: str = "", blank: bool = True) -> int:
        """Write an event. Returns the number of bytes at which its data is complete."""
        if name:
            self.line(f"event: {name}")
        if self.chance(0.1):
            self.line(f"{self.random.choice(('id', 'retry', 'unknown'))}: 5")
        space = "" if self.chance(0.2) else " "
        *first, last = data.split("\n")
        for part in first:
            self.line(f"data:{space}{part}")
        self.add(f"data:{space}{last}")
        at = self.length
        if blank:
            self.line("")
            self.line("")
        return at

    def dump(self, value: dict[str, object]) -> str:
        indent = 1 if self.chance(0.1) else None
        text = json.dumps(value, ensure_ascii=self.chance(0.5), indent=indent)
        if isinstance(value, Repeated):
            body = text[1:-1]
            text = f"{{{body},{body}}}"
        return text


def _noise(build: Builder) -> None:
    """An event, or less, that says nothing."""
    random = build.random
    match random.randrange(11):
        case 0:
            build.line(": keep-alive")
        case 1:
            build.line(":")
            build.line("")
        case 2:
            build.event(random.choice(("", " ", "  ")))
        case 3:
            build.event(random.choice(("", "ping", '{"type":"ping"}', "{torn", "null")), name="ping")
        case 4:
            build.event(random.choice(("ping", "keep-alive", ": OPENROUTER PROCESSING")))
        case 5:
            build.event(random.choice(("null", "[]", "7", '"x"', "true", "[7]", "{}")))
        case 6:
            build.event(build.dump({"choices": random.choice((None, [], {}, [None], [[]], [7], "", "x", 7))}))
        case 7:
            build.event(build.dump({"choices": [], "error": random.choice(_NO_ERROR), "prompt_filter_results": []}))
        case 8:
            build.event(build.dump({"object": "x", "status": "ok", "message": "alive"}))
        case 9:
            build.event(build.dump({"choices": [{"index": 1, "delta": {"content": "NO"}, "finish_reason": "error"}]}))
        case _:
            build.event(build.dump({"choices": [{"delta": random.choice((None, [], {}, [7], 7, ""))}]}))


def _as_parts(build: Builder, kind: Kind, text: str) -> object:
    """The value of `content` for a piece: a part, or a list of parts."""
    random = build.random
    if kind == "trace":
        inner = random.choice((text, [{"type": "text", "text": text}], [text], {"text": text}))
        part: object = {"type": "thinking", random.choice(("thinking", "text", "content")): inner}
    elif kind == "refusal":
        part = {"type": "refusal", random.choice(("refusal", "text")): text}
    else:
        part = random.choice(
            ({"type": "text", "text": text}, {"text": text}, text, {"type": "output_text", "text": {"value": text}})
        )
    if kind == "answer" and build.chance(0.2) and isinstance(part, dict):
        return part
    around: list[object] = [part]
    if build.chance(0.3):
        around.insert(
            random.randrange(2), random.choice((None, "", {}, 7, {"type": "reference", "reference_ids": [1]}))
        )
    return around


def _delta(build: Builder, kind: Kind, text: str) -> dict[str, object]:
    random = build.random
    delta: dict[str, object] = {}
    if kind == "trace":
        match random.randrange(6):
            case 0:
                delta["reasoning"] = delta["reasoning_content"] = text
            case 1:
                delta["reasoning"] = random.choice((text, [text], {"content": text}))
                delta["reasoning_content"] = random.choice(_NOTHING)
            case 2:
                delta["reasoning_details"] = [{"type": "reasoning.summary", "summary": text}]
            case 3:
                delta["content"] = _as_parts(build, kind, text)
            case 4:
                delta["reasoning"] = text
                delta["reasoning_details"] = [{"type": "reasoning.text", "text": text}]
            case _:
                delta["reasoning_content"] = text
    elif kind == "refusal" and build.chance(0.7):
        delta["refusal"] = text
    elif build.chance(0.3):
        delta["content"] = _as_parts(build, kind, text)
    elif kind == "refusal":
        delta["refusal"] = [text]
    else:
        delta["content"] = text
    return delta


def _odd_fields(build: Builder, delta: dict[str, object]) -> None:
    """Add fields without text to a delta."""
    random = build.random
    for name in ("content", "refusal"):
        if name not in delta and build.chance(0.3):
            delta[name] = random.choice(_ODD)
    if not any("reason" in name or name == "thinking_blocks" for name in delta) and build.chance(0.3):
        delta[random.choice(("reasoning", "reasoning_content", "reasoning_details"))] = random.choice(_ODD)
    for name in ("role", "name", "audio", "annotations", "x"):
        if build.chance(0.15):
            delta[name] = random.choice(_ANY)
    for name in ("tool_calls", "function_call"):
        if name not in delta and build.chance(0.1):
            delta[name] = random.choice(_NOTHING)


def _calls(build: Builder, form: CallForm, texts: list[str], first: int, finish: str) -> list[Delta]:
    """The deltas of some tool calls, each `name(arguments`. `first` is their first number."""
    random = build.random
    entries: list[list[Delta]] = []
    for number, text in enumerate(texts, first):
        name, _, arguments = text.removesuffix(WHOLE_CALL).partition("(")
        # After `length`, no arguments are arguments that were cut.
        if arguments == "{}" and form != "legacy" and finish != "length" and build.chance(0.5):
            arguments = ""
        # Without an id or an index, only arguments tell another call from a repeated name.
        least = 2 if form == "legacy" else 0
        marks = sorted(random.choices(range(least, len(arguments) + 1), k=random.randrange(4)))
        has_id = form in {"id", "zero"} or build.chance(0.7)
        call: list[Delta] = []
        for begin, end in zip([0, *marks], [*marks, len(arguments)], strict=True):
            piece: object = arguments[begin:end] or random.choice(("", None))
            is_first = not call
            repeats = build.chance(0.3) and (has_id or begin < len(arguments.rstrip()))
            function: Delta = {"arguments": piece}
            if is_first or repeats:
                function["name"] = name
            elif build.chance(0.3):
                function["name"] = random.choice((None, ""))
            if form == "legacy":
                call.append({"function_call": function})
                continue
            entry: Delta = {"function": function, "type": random.choice(("function", None))}
            if has_id and (is_first or repeats):
                entry["id"] = f"call_{number}"
            elif build.chance(0.3):
                entry["id"] = random.choice((None, ""))
            if form in {"index", "interleaved"}:
                entry["index"] = random.choice((number, str(number), float(number)))
            elif form == "zero":
                entry["index"] = 0
            elif build.chance(0.3):
                entry["index"] = random.choice((None, "x", -1, True, []))
            call.append(entry)
        entries.append(call)
    if form == "legacy":
        return [piece for call in entries for piece in call]
    ordered: list[Delta] = []
    while any(entries):
        waiting = [call for call in entries if call]
        # Each call begins in its turn.
        new = next((call for number, call in enumerate(entries) if call and "name" in _function(call[0])), waiting[0])
        call = random.choice((new, *waiting[: waiting.index(new) + 1])) if form == "interleaved" else waiting[0]
        ordered.append(call.pop(0))
    deltas: list[Delta] = []
    while ordered:
        count = random.choice((1, 1, 2, 5)) if form in {"index", "interleaved"} else 1
        some, ordered = ordered[:count], ordered[count:]
        if build.chance(0.1):
            some.insert(random.randrange(len(some) + 1), random.choice(({}, {"index": 0}, {"type": "function"})))
        deltas.append({"tool_calls": some[0] if len(some) == 1 and build.chance(0.05) else some})
    return deltas


def _function(entry: Delta) -> Delta:
    function = entry["function"]
    assert isinstance(function, dict)
    return function


def _choice(build: Builder, place: str, kind: Kind | None, text: str | Delta) -> dict[str, object]:
    choice: dict[str, object] = {}
    random = build.random
    if kind is not None:
        delta = text if isinstance(text, dict) else _delta(build, kind, text)
        if place == "text" and kind == "answer":
            choice["text"] = text
            choice["message"] = random.choice((None, {}, [], 7))
        elif place == "delta" and kind == "answer" and build.chance(0.05):
            choice["delta"] = text
        else:
            _odd_fields(build, delta)
            choice["message" if place == "text" else place] = delta
    elif place == "delta":
        delta = {}
        _odd_fields(build, delta)
        choice["delta"] = random.choice((delta, delta, None, [], {}))
    if place != "delta" and build.chance(0.3):
        choice["delta"] = random.choice((None, {}, [], {"content": ""}, {"role": "assistant", "content": None}))
    if build.chance(0.7):
        choice["index"] = random.choice(_NO_INDEX) if build.chance(0.5) else 0
    for name in ("logprobs", "stop_reason", "token_ids"):
        if build.chance(0.1):
            choice[name] = random.choice(_ANY)
    return choice


def _chunk(build: Builder, choice: dict[str, object], usage: object = None) -> dict[str, object]:
    random = build.random
    choices: list[object] = [choice]
    if build.chance(0.1):
        choices.insert(random.randrange(2), random.choice((None, [], 7, {"index": 1, "delta": {"content": "NO"}})))
    chunk: dict[str, object] = {"choices": choice if build.chance(0.03) else choices}
    if usage is not None:
        match random.randrange(4):
            case 0:
                choice["usage"] = usage
            case 1:
                chunk["x_groq"] = {"id": "x", "usage": usage}
            case _:
                chunk["usage"] = usage
    elif build.chance(0.3):
        random.choice((chunk, choice))["usage"] = random.choice(_NO_USAGE)
    if build.chance(0.2):
        chunk["error"] = random.choice(_NO_ERROR)
    for name in ("id", "object", "created", "model", "x_groq", "detail_x"):
        if name not in chunk and build.chance(0.3):
            chunk[name] = random.choice(_ANY)
    return _shuffled(random, chunk)


def _shuffled(random: Random, fields: dict[str, object]) -> dict[str, object]:
    names = list(fields)
    random.shuffle(names)
    make: Callable[[dict[str, object]], dict[str, object]] = Repeated if random.random() < 0.1 else dict
    return make({name: fields[name] for name in names})


def _usage(build: Builder) -> tuple[object, Usage]:
    random = build.random
    counts = [random.choice((None, random.randrange(1, 1000))) for _ in range(3)]
    first, second, details = random.choice(
        (
            ("prompt_tokens", "completion_tokens", "completion_tokens_details"),
            ("input_tokens", "output_tokens", "output_tokens_details"),
        )
    )
    shown = [
        random.choice((count, float(count), str(count))) if count else random.choice((None, "", [])) for count in counts
    ]
    value: dict[str, object] = {first: shown[0], second: shown[1]}
    if build.chance(0.5):
        value[details] = {"reasoning_tokens": shown[2]}
    else:
        value |= {details: random.choice((None, [], "x", {})), "reasoning_tokens": shown[2]}
    return value, Usage(*counts)


@cache
def make_stream(seed: int) -> OddStream:
    """The stream of a seed."""
    random = Random(seed)
    build = Builder(random, random.choice(("\n", "\n", "\r\n", "\r", "")))
    place = random.choice(("delta", "delta", "delta", "delta", "message", "text"))
    early: EarlyFinish = random.choice(("none", "none", "none", "first", "some", "every"))
    kinds: tuple[Kind, ...] = random.choice(
        (("trace", "answer", "answer", "refusal"), ("trace", "answer", "call", "call"))
    )
    pieces: list[tuple[Kind, str]] = [
        (random.choice(kinds), random.choice(_WORDS)) for _ in range(random.randrange(1, 7))
    ]
    if build.chance(0.5):  # as usual: the trace first
        pieces.sort(key=lambda piece: piece[0] != "trace")
    finish = random.choice(tuple(_FINISHES))
    final = random.choice(_FINISHES[finish])
    form: CallForm = random.choice(("index", "interleaved", "id", "zero", "legacy"))
    sends: list[tuple[Kind, str | Delta]] = []
    calls: list[str] = []
    for number, (kind, text) in enumerate(pieces):
        if kind != "call":
            sends.append((kind, text))
            continue
        arguments = random.choice(_ARGUMENTS)
        if form == "interleaved":
            arguments = arguments.rstrip()  # white space behind the end of a call has no place any more
        pieces[number] = ("call", f"{random.choice(_NAMES)}({arguments}{WHOLE_CALL}")
        calls.append(pieces[number][1])
        if number + 1 == len(pieces) or pieces[number + 1][0] != "call":
            sends += [("call", delta) for delta in _calls(build, form, calls, number + 1 - len(calls), finish)]
            calls = []
    has_calls = any(kind == "call" for kind, _ in pieces)
    if has_calls:
        early = "none" if early == "some" else early  # after a call, `tool_calls` cannot be told from the real one
    usage_value, usage = _usage(build) if build.chance(0.5) else (None, Usage())
    usage_comes = random.choice(("before", "with", "behind")) if usage_value is not None else "never"
    is_beside = build.chance(0.3)  # the finish comes with the last words
    is_done = early != "none" or build.chance(0.7)
    has_finish = is_plain = was_withdrawn = is_beside_first = False

    if build.chance(0.1):
        build.add("\ufeff")
    if early == "first" or build.chance(0.7):
        choice = _choice(build, "delta", None, "")
        has_finish = early == "first"
        choice["finish_reason"] = final if has_finish else random.choice(_NO_FINISH)
        build.event(build.dump(_chunk(build, choice)))
    whole_at = 0
    sent: list[str] = []
    for number, (kind, send) in enumerate(sends):
        while build.chance(0.25):
            _noise(build)
        is_last = number == len(sends) - 1
        choice = _choice(build, place, kind, send)
        if place == "delta" and sent and build.chance(0.1):  # the text so far, as Perplexity sends it
            choice["message"] = {"role": "assistant", "content": "".join(sent)}
        sent.append(send if isinstance(send, str) else "")
        was_withdrawn = was_withdrawn or has_finish
        has_finish = (is_last and is_beside) or early == "every" or (early == "some" and build.chance(0.5))
        is_beside_first = is_beside_first or (number == 0 and has_finish)
        if has_finish:
            # A `stop` in the middle of plain text cannot be told from the real one before more text comes.
            choice["finish_reason"] = "tool_calls" if is_plain and not is_last else final
        elif build.chance(0.7):
            choice["finish_reason"] = random.choice(_NO_FINISH)
        is_plain = is_plain or not has_finish
        whole_at = build.event(build.dump(_chunk(build, choice, usage_value if usage_comes == "before" else None)))
    if not has_finish:
        while build.chance(0.25):
            _noise(build)
        choice = _choice(build, "delta", None, "")
        chunk = _chunk(build, choice, usage_value if usage_comes == "with" else None)
        delta = choice.get("delta")
        if isinstance(delta, dict) and build.chance(0.2):
            delta["finish_reason"] = final
        else:
            random.choice((chunk, choice, choice))["finish_reason"] = final
        is_open = not is_done and usage_comes != "behind" and build.chance(0.3)
        whole_at = build.event(build.dump(chunk), blank=not is_open)
    else:
        is_open = False
        usage_comes = "behind" if usage_comes == "with" else usage_comes
    is_final = is_plain and not was_withdrawn
    if not is_open:
        if usage_comes == "behind":
            build.event(build.dump(_shuffled(random, {"choices": random.choice(([], None)), "usage": usage_value})))
        while build.chance(0.3):
            _noise(build)
            if is_final and build.chance(0.4):
                build.event(random.choice(('{"error":{"code":500,"message":"x"}}', "{torn", "boom!", '{"x":')))
            elif is_final and build.chance(0.2):
                build.event("boom", name="error")
            elif build.chance(0.2):
                build.event(build.dump(_chunk(build, {"delta": {}, "finish_reason": random.choice((final, "stop"))})))
    if is_done:
        is_open = build.chance(0.1)
        at = build.event("[DONE]", blank=not is_open)
        whole_at = whole_at if is_final else at
        while not is_open and build.chance(0.3):
            build.event(random.choice(("{torn", '{"error":"x"}', "[DONE]", '{"choices":[{"delta":{"content":"NO"}}]}')))
    joined: list[tuple[Kind, str]] = []
    for kind, text in pieces:
        before = joined.pop()[1] if kind != "call" and joined and joined[-1][0] == kind else ""
        joined.append((kind, before + text))
    return OddStream(
        body="".join(build.parts).encode(),
        text=joined,
        finish="tool_calls" if finish == "stop" and has_calls else finish,
        usage=usage,
        whole_at=whole_at,
        promised=not is_final and not is_done,
        is_beside_first=is_beside_first,
        has_calls=has_calls,
    )
