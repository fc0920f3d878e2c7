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

from .reads import Kind

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
    """

    body: bytes
    text: list[tuple[Kind, str]]
    finish: str
    usage: Usage
    whole_at: int
    promised: bool
    is_beside_first: bool


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
        if build.chance(0.1):
            delta[name] = random.choice(_NOTHING)


def _choice(build: Builder, place: str, kind: Kind | None, text: str) -> dict[str, object]:
    choice: dict[str, object] = {}
    random = build.random
    if kind is not None:
        delta = _delta(build, kind, text)
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
    pieces: list[tuple[Kind, str]] = [
        (random.choice(("trace", "answer", "answer", "refusal")), random.choice(_WORDS))
        for _ in range(random.randrange(1, 7))
    ]
    if build.chance(0.5):  # as usual: the trace first
        pieces.sort(key=lambda piece: piece[0] != "trace")
    finish = random.choice(tuple(_FINISHES))
    final = random.choice(_FINISHES[finish])
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
    for number, (kind, text) in enumerate(pieces):
        while build.chance(0.25):
            _noise(build)
        is_last = number == len(pieces) - 1
        choice = _choice(build, place, kind, text)
        if place == "delta" and sent and build.chance(0.1):  # the text so far, as Perplexity sends it
            choice["message"] = {"role": "assistant", "content": "".join(sent)}
        sent.append(text)
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
        before = joined.pop()[1] if joined and joined[-1][0] == kind else ""
        joined.append((kind, before + text))
    return OddStream(
        body="".join(build.parts).encode(),
        text=joined,
        finish=finish,
        usage=usage,
        whole_at=whole_at,
        promised=not is_final and not is_done,
        is_beside_first=is_beside_first,
    )
