"""The table of retries: how many requests real clients and this server make of one call that fails.

Every call has an id, `case/client/way`. It is the call's prompt, so the upstream knows what to answer, and the client's
API key, so this server's requests can be counted too. All calls run at the same time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .upstream import UpstreamRequest

Repeats = Literal["nobody", "the client", "both"]
Way = Literal["whole", "streamed"]
WAYS: tuple[Way, ...] = ("whole", "streamed")

NPM_CLIENTS = ("openai-npm chat", "openai-npm responses", "AI SDK chat", "AI SDK responses", "LangChain JS")
OPENAI_CLIENTS = ("openai-python chat", "openai-python responses")
LITELLM_CLIENTS = ("LiteLLM", "LiteLLM Router")
CLIENTS = OPENAI_CLIENTS + NPM_CLIENTS + LITELLM_CLIENTS

# With its default of 6 LangChain JS repeats a request for one to two minutes. Two retries show the same.
LANGCHAIN_RETRIES = 2

# Seconds.
SETTINGS = {
    "idle_seconds": 3.0,
    # More than the default. All calls start together, and a busy machine must not decide which of them get a status.
    "hold_seconds": 60.0,
}


Cancel = Callable[[], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way in which a call fails.

    Attributes:
        name: As the table in the docs has it.
        repeats: Who sends a request again. `nobody`: a repetition cannot mend it. `both`: no status came, so the server
            repeats each of the client's requests too.
        answer: Answers a request to the upstream. None: it does not run.
        status: The status that the client gets. None: some clients get an incomplete answer instead.
    """

    name: str
    repeats: Repeats
    answer: Callable[[UpstreamRequest, Cancel], Awaitable[None]] | None
    status: int | None = None


def _status(number: int, **headers: str) -> Callable[[UpstreamRequest, Cancel], Awaitable[None]]:
    async def answer(request: UpstreamRequest, cancel: Cancel) -> None:
        error = {"message": f"This is {number}.", "type": "scripted_error", "code": "scripted_code", "param": None}
        await request.respond(number, {"error": error}, **headers)

    return answer


async def _reset(request: UpstreamRequest, cancel: Cancel) -> None:
    request.reset()


async def _first_word(request: UpstreamRequest) -> None:
    await request.start_stream()
    await request.send(role="assistant", content="")
    await request.send(content="Once ")


async def _fall_silent(request: UpstreamRequest, cancel: Cancel) -> None:
    await _first_word(request)
    await request.wait_for_close()


async def _be_cancelled(request: UpstreamRequest, cancel: Cancel) -> None:
    await _first_word(request)
    await cancel()
    await request.wait_for_close()


CASES = (
    Case(name="400", repeats="nobody", answer=_status(400), status=400),
    Case(name="401", repeats="nobody", answer=_status(401), status=401),
    Case(name="403", repeats="nobody", answer=_status(403), status=403),
    Case(name="404", repeats="nobody", answer=_status(404), status=404),
    Case(name="413", repeats="nobody", answer=_status(413), status=413),
    Case(name="422", repeats="nobody", answer=_status(422), status=400),
    Case(name="429, `Retry-After: 1`", repeats="the client", answer=_status(429, Retry_After="1"), status=429),
    Case(name="503, `Retry-After: 1`", repeats="the client", answer=_status(503, Retry_After="1"), status=503),
    Case(name="500", repeats="the client", answer=_status(500), status=503),
    Case(name="no connection", repeats="both", answer=None, status=503),
    Case(name="reset before the status line", repeats="both", answer=_reset, status=503),
    Case(name="silent after the first word until the idle deadline", repeats="nobody", answer=_fall_silent),
    Case(name="cancelled after the first word", repeats="nobody", answer=_be_cancelled),
)
CASE = {case.name: case for case in CASES}

# LiteLLM has no class for a 403 of an OpenAI-compatible server, and its Router repeats errors without a class.
REPEATED_ALL_THE_SAME = {("403", "LiteLLM Router"): 3}

# Requests that this server sends for one request of a client where no status comes.
ATTEMPTS_WITHOUT_STATUS = 3


@dataclass(frozen=True)
class Call:
    """One call of one client.

    Attributes:
        case: How it fails.
        client: One of `CLIENTS`.
        way: Whether its answer is streamed.
    """

    case: Case
    client: str
    way: Way

    @property
    def id(self) -> str:
        """The call's prompt and API key."""
        return f"{self.case.name}/{self.client}/{self.way}"

    def arguments(self, url: str) -> dict[str, Any]:
        """The call as the programs read it that make the calls."""
        retries = LANGCHAIN_RETRIES if self.client == "LangChain JS" and self.case.repeats != "nobody" else None
        return {"id": self.id, "client": self.client, "url": url, "stream": self.way == "streamed", "retries": retries}


def find_case(call_id: str) -> Case:
    """The case of a call."""
    return CASE[call_id.split("/")[0]]


@dataclass(frozen=True)
class Measured:
    """How all calls went.

    Attributes:
        ends: By call id, the client's report: `text`, or `error` and `status`.
        client_requests: By call id, requests that reached this server.
        upstream_requests: By call id, requests that reached the upstream.
    """

    ends: Mapping[str, Mapping[str, Any]]
    client_requests: Counter[str]
    upstream_requests: Counter[str]

    def table(self) -> str:
        """The table in the docs: a row for each case, a column for each client."""
        rows = [[case.name, *(self._cell(case, client) for client in CLIENTS)] for case in CASES]
        lines = [f"| {' | '.join(row)} |\n" for row in [["", *CLIENTS], *rows]]
        lines.insert(1, "|---" * (len(CLIENTS) + 1) + "|\n")
        return "".join(lines)

    def _cell(self, case: Case, client: str) -> str:
        counted = self.client_requests if case.answer is None else self.upstream_requests
        whole, streamed = (counted[Call(case, client, way).id] for way in WAYS)
        return str(whole) if whole == streamed else f"{whole}, streamed {streamed}"
