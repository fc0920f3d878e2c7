"""The capabilities of real clients through this server, in front of a scripted chat upstream.

Each call has an id, `capability/client`. It is in the call's prompt, so the upstream knows what to answer. A driver is
a program that makes all calls of its clients, at the same time. It reads the calls as a JSON list (`Script.calls`) from
its standard input, and prints a JSON object with a report for each id:

| capability | the driver | its report |
|---|---|---|
| `whole` | asks `prompt` | `{"text"}` |
| `stream` | asks `prompt`, streamed. Requests the URL `seen` when it has the first piece of text | `{"text"}` |
| `second turn` | asks `prompt`, then `second` in the same conversation | `{"text"}`: the second answer |
| `tools` | asks `prompt` with the tool `weather(city)`, which returns `result` | `{"text"}` |
| `tools, streamed` | the same, streamed | `{"text"}` |
| `structured output` | asks `prompt` for an object with `city` (text) and `degrees` (integer) | `{"value"}` |
| `image` | asks `prompt` with the image `image`, a data URL | `{"text"}` |
| `refused request`, `rate limit` | asks `prompt` | `{"text"}`, or `{"error", "status", "message"}` |

`error` is the name of the client's own error class. A driver that cannot make a call reports `{"missing": true}`.
`Let me look. ` comes before the streamed tool call. It is not a part of the reported text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import TypeAlias
from urllib.parse import quote, unquote

import trio

from .upstream import MODEL, Json, UpstreamRequest

NO_ERROR = "no error"
BEFORE = "Let me look. "
PIECES = ("It is ", "31 degrees ", "in Rome.")
AGAIN = ("It is 3 degrees ", "in Oslo.")
THOUGHT = "The user wants the temperature."
TRACE_FIELD = "reasoning_content"  # of the upstream's answers, and of the requests to it
TRACE_AS_TEXT = f"<think>\n{THOUGHT}\n</think>"  # Pydantic AI, if it cannot send a trace otherwise
CALL_ID = "call_scripted"
ARGUMENTS = ('{"city"', ': "Ro', 'me"}')
RESULT = "31 degrees"
VALUE = {"city": "Rome", "degrees": 31}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
IMAGE = f"data:image/png;base64,{PIXEL}"
TEXT = "".join(PIECES)
REFUSED = "The scripted server refuses this."

SEEN_SECONDS = 15  # only a client that withholds the first piece takes this long


class Exchange:
    """One call of one client: the requests, and the client's report.

    Attributes:
        prompt: The call's prompt.
        second: The prompt of its second turn.
        sent: The bodies of the client's requests.
        bodies: The bodies of the upstream's requests.
        seen: Set when the client has the first piece of text.
        is_streamed: Whether the client had it before the upstream sent the second.
        report: The driver's report.
    """

    def __init__(self, call_id: str) -> None:
        self.prompt = f"[{call_id}] How warm is it in Rome?"
        self.second = f"[{call_id}] And in Oslo?"
        self.sent: list[Json] = []
        self.bodies: list[Json] = []
        self.seen = trio.Event()
        self.is_streamed = False
        self.report: Json = {}

    @property
    def text(self) -> str:
        """The text that the client got."""
        assert set(self.report) == {"text"}, self.report
        text: str = self.report["text"]
        return text

    def turns(self, number: int) -> list[tuple[str, str]]:
        """Role and text of each turn of a request, without the system prompt."""
        turns = groupby(conversation(self.bodies[number]), key=itemgetter("role"))  # an image may have its own message
        return [(role, "".join(map(text_of, group))) for role, group in turns]


SYSTEM_ROLES = {"system", "developer"}


def conversation(body: Json) -> list[Json]:
    """The messages of a request, without the system prompt and without messages that are only a trace."""
    messages = [message for message in body["messages"] if message["role"] not in SYSTEM_ROLES]
    return [message for message in messages if text_of(message) or message.get("tool_calls")]


def text_of(message: Json) -> str:
    """The text of a message, without a trace."""
    content = message.get("content") or ""
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return text.replace(TRACE_AS_TEXT, "")


# How the upstream answers. Each answer gets the exchange with this request already in it.

Answer: TypeAlias = Callable[[UpstreamRequest, Exchange], Awaitable[None]]


async def _say(request: UpstreamRequest, exchange: Exchange, *pieces: str) -> None:
    await request.start_stream()
    await request.send(role="assistant", content="")
    await request.send(**{TRACE_FIELD: THOUGHT})
    for piece in pieces:
        await request.send(content=piece)
    await request.finish()


async def _answer(request: UpstreamRequest, exchange: Exchange) -> None:
    await _say(request, exchange, *(PIECES if len(exchange.bodies) == 1 else AGAIN))


async def _answer_slowly(request: UpstreamRequest, exchange: Exchange) -> None:
    """Withhold the rest of the answer until the client has the first piece."""
    first, *rest = PIECES
    await request.start_stream()
    await request.send(role="assistant", content=first)
    with trio.move_on_after(SEEN_SECONDS):
        await exchange.seen.wait()
        exchange.is_streamed = True
    for piece in rest:
        await request.send(content=piece)
    await request.finish()


async def _break_off(request: UpstreamRequest, exchange: Exchange) -> None:
    await request.start_stream()
    await request.send(role="assistant", content=PIECES[0])
    with trio.move_on_after(SEEN_SECONDS):
        await exchange.seen.wait()
    request.reset()


async def _call_the_tool(request: UpstreamRequest, exchange: Exchange, before: str | None = None) -> None:
    if len(exchange.bodies) > 1:
        await _say(request, exchange, *PIECES)
        return
    await request.start_stream()
    await request.send(role="assistant", content="")
    await request.send(**{TRACE_FIELD: THOUGHT})
    if before:
        await request.send(content=before)
    function = {"name": "weather", "arguments": ""}
    await request.send(tool_calls=[{"index": 0, "id": CALL_ID, "type": "function", "function": function}])
    for piece in ARGUMENTS:
        await request.send(tool_calls=[{"index": 0, "function": {"arguments": piece}}])
    await request.finish("tool_calls")


async def _say_a_word_and_call_the_tool(request: UpstreamRequest, exchange: Exchange) -> None:
    await _call_the_tool(request, exchange, BEFORE)


async def _answer_in_json(request: UpstreamRequest, exchange: Exchange) -> None:
    await _say(request, exchange, *json.dumps(VALUE).partition(" "))


async def _refuse(request: UpstreamRequest, exchange: Exchange) -> None:
    await request.respond(400, _error(REFUSED))


async def _limit_the_first(request: UpstreamRequest, exchange: Exchange) -> None:
    if len(exchange.bodies) > 1:
        await _say(request, exchange, *PIECES)
    else:
        await request.respond(429, _error("Too many requests."), Retry_After="1")


def _error(message: str) -> Json:
    return {"error": {"message": message, "type": "scripted_error", "param": None, "code": "scripted_code"}}


# The checks of a call. Each returns the text of its cell in the table.


def _check_answer(exchange: Exchange) -> str:
    assert exchange.text == TEXT
    assert [exchange.turns(0)] == [[("user", exchange.prompt)]]
    assert len(exchange.bodies) == 1
    return "yes"


def _check_stream(exchange: Exchange) -> str:
    _check_answer(exchange)
    return "yes" if exchange.is_streamed else "at the end"


# How a client of the responses API names the first turn if it does not send it again.
EARLIER = ("previous_response_id", "item_reference")


def _check_second_turn(exchange: Exchange) -> str:
    assert exchange.text == "".join(AGAIN)
    assert len(exchange.bodies) == 2
    assert exchange.turns(1) == [("user", exchange.prompt), ("assistant", TEXT), ("user", exchange.second)]
    for way in EARLIER:
        if way in json.dumps(exchange.sent[-1]):
            return f"`{way}`"
    return "yes"


def _check_tools(exchange: Exchange, before: str = "") -> str:
    assert exchange.text == TEXT
    first, second = exchange.bodies
    for body in (first, second):
        [function] = [tool["function"] for tool in body["tools"] if tool["type"] == "function"]
        assert function["name"] == "weather"
        assert set(function["parameters"]["properties"]) == {"city"}
    asked, called, result = conversation(second)
    assert text_of(asked) == exchange.prompt
    assert text_of(called) == before
    [call] = called["tool_calls"]
    assert (call["id"], call["function"]["name"]) == (CALL_ID, "weather")
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    assert (result["role"], result["tool_call_id"]) == ("tool", CALL_ID)
    assert RESULT in text_of(result)
    return "yes"


def _check_streamed_tools(exchange: Exchange) -> str:
    return _check_tools(exchange, BEFORE)


def _check_trace(exchange: Exchange) -> str:
    _check_tools(exchange)
    called = [message for message in exchange.bodies[1]["messages"] if message["role"] == "assistant"]
    if any(TRACE_AS_TEXT in (message["content"] or "") for message in called):
        return "as text"
    return "yes" if [message.get(TRACE_FIELD) for message in called] == [THOUGHT] else "no"


def _check_structured_output(exchange: Exchange) -> str:
    assert exchange.report == {"value": VALUE}
    [body] = exchange.bodies
    wanted = body["response_format"]
    assert wanted["type"] == "json_schema"
    assert set(wanted["json_schema"]["schema"]["properties"]) == set(VALUE)
    return "yes"


def _check_image(exchange: Exchange) -> str:
    [body] = exchange.bodies
    contents = [message["content"] for message in body["messages"] if message["role"] == "user"]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    assert [part["image_url"]["url"] for part in parts if part["type"] == "image_url"] == [IMAGE]
    return _check_answer(exchange)


def _check_refused_request(exchange: Exchange) -> str:
    assert (exchange.report.get("status"), len(exchange.bodies)) == (400, 1), exchange.report
    assert REFUSED in exchange.report["message"]
    return f"`{exchange.report['error']}`"


def _check_rate_limit(exchange: Exchange) -> str:
    if "error" in exchange.report:
        assert (exchange.report["status"], len(exchange.bodies)) == (429, 1), exchange.report
        return f"`{exchange.report['error']}`"
    assert exchange.text == TEXT
    first, second = exchange.bodies
    assert first == second
    return "asks again"


def _check_broken_off(exchange: Exchange) -> str:
    assert len(exchange.bodies) == 1
    if "error" in exchange.report:
        return f"`{exchange.report['error']}`"
    assert PIECES[0].startswith(exchange.text)
    return NO_ERROR


@dataclass(frozen=True)
class Capability:
    """One thing that clients can do.

    Attributes:
        name: As the table in the docs has it.
        answer: Answers the requests of such a call.
        check: Checks how the call went. Returns the text of its cell in the table.
        asked: What the driver does, if another capability has the same call.
    """

    name: str
    answer: Answer = field(repr=False)
    check: Callable[[Exchange], str] = field(repr=False)
    asked: str | None = None


CAPABILITIES = (
    Capability("whole", _answer, _check_answer),
    Capability("stream", _answer_slowly, _check_stream),
    Capability("second turn", _answer, _check_second_turn),
    Capability("tools", _call_the_tool, _check_tools),
    Capability("tools, streamed", _say_a_word_and_call_the_tool, _check_streamed_tools),
    Capability("trace goes back", _call_the_tool, _check_trace, asked="tools"),
    Capability("structured output", _answer_in_json, _check_structured_output),
    Capability("image", _answer, _check_image),
    Capability("refused request", _refuse, _check_refused_request),
    Capability("rate limit", _limit_the_first, _check_rate_limit),
    Capability("failure in a stream", _break_off, _check_broken_off, asked="stream"),
)
CAPABILITY = {capability.name: capability for capability in CAPABILITIES}


@dataclass(frozen=True)
class Lack:
    """A reason why a client does not have a capability.

    Attributes:
        why: A sentence for the docs.
        report: The driver's report.
    """

    why: str
    report: Mapping[str, object] = field(default_factory=lambda: {"missing": True})


@dataclass(frozen=True, kw_only=True)
class Client:
    """One client.

    Attributes:
        name: As the table in the docs has it, and as the driver gets it.
        driver: The file of the program that uses it.
        run: The name of the fixture that runs this program.
        cells: By capability, the text of its cell in the table, if it is not `yes`. It is as the check returns it.
        without: The capabilities that it does not have.
    """

    name: str
    driver: str
    run: str
    cells: Mapping[str, str] = field(default_factory=dict)
    without: Mapping[str, Lack] = field(default_factory=dict)

    def cell(self, capability: Capability) -> str:
        """The text of a cell in the table."""
        return "no" if capability.name in self.without else self.cells.get(capability.name, "yes")


def call_id(capability: Capability, client: Client) -> str:
    """The id of a call."""
    return f"{capability.name}/{client.name}"


def table(clients: Sequence[Client]) -> str:
    """The table in the docs, and a sentence for each cell with `no`."""
    names = [capability.name for capability in CAPABILITIES]
    rows = [[client.name, *(client.cell(capability) for capability in CAPABILITIES)] for client in clients]
    lines = [f"| {' | '.join(row)} |\n" for row in [["", *names], *rows]]
    lines.insert(1, "|---" * (len(names) + 1) + "|\n")
    reasons = dict.fromkeys(f"- {lack.why}\n" for client in clients for lack in client.without.values())
    return "".join([*lines, "\n", *reasons])


class Script:
    """Answers the upstream's requests, and has the exchanges by call id."""

    def __init__(self, clients: Sequence[Client]) -> None:
        ids = [call_id(capability, client) for client in clients for capability in CAPABILITIES]
        self.exchanges = {each: Exchange(each) for each in ids}

    def calls(self, url: str, upstream_url: str) -> list[Json]:
        """All calls, as a driver reads them."""
        shared = {"url": url, "model": MODEL, "result": RESULT, "image": IMAGE}
        calls = []
        for each, exchange in self.exchanges.items():
            capability, client = each.split("/", 1)
            own = {"id": each, "capability": CAPABILITY[capability].asked or capability, "client": client}
            texts = {"prompt": exchange.prompt, "second": exchange.second}
            calls.append(own | texts | shared | {"seen": f"{upstream_url}/seen?{quote(each, safe='')}"})
        return calls

    async def answer(self, request: UpstreamRequest) -> None:
        """Answer one request."""
        path, _, query = request.target.partition("?")
        if path.endswith("/seen"):
            self.exchanges[unquote(query)].seen.set()
            await request.respond(200, {})
            return
        ids = self._call_ids(request.body)
        if len(ids) != 1:
            await request.respond(400, _error(f"The request belongs to no call, or to several: {ids}"))
            return
        [found] = ids
        exchange = self.exchanges[found]
        exchange.bodies.append(request.body)
        await CAPABILITY[found.split("/")[0]].answer(request, exchange)

    def add_sent(self, body: bytes) -> None:
        """Keep the body of a client's request."""
        sent = json.loads(body)
        for each in self._call_ids(sent):  # none in a tool's result, if the request names the response before it
            self.exchanges[each].sent.append(sent)

    def _call_ids(self, body: Json) -> set[str]:
        return self.exchanges.keys() & set(re.findall(r"\[([^/\[\]]+/[^\]]+)\]", json.dumps(body)))


Run: TypeAlias = Callable[..., Awaitable[str]]


async def run_driver(script: Script, run: Run, driver: str, *, url: str, upstream_url: str) -> None:
    """Let a driver make all calls, and keep its reports."""
    calls = script.calls(url, upstream_url)
    reports = json.loads(await run(driver, standard_input=json.dumps(calls)))
    for each, report in reports.items():
        script.exchanges[each].report = report
