"""The clients of the table of capabilities. As a program (`python -m`) it prints the table for the docs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .capabilities import BEFORE, Client, Lack, table

# Cells of the table.
NO_TRACE = {"trace goes back": "no"}
TRACE_AS_TEXT = {"trace goes back": "as text"}
BY_RESPONSE = {"second turn": "`previous_response_id`"}
BY_ITEMS = {"second turn": "`item_reference`"}
SILENT = {"failure in a stream": "half a text"}


def outcomes(error: str, limited: str = "asks again") -> dict[str, str]:
    """The cells of a client whose error for a refused request is this class."""
    return {"refused request": f"`{error}`", "rate limit": limited}


def fails(error: str) -> dict[str, str]:
    """The cells of a client whose error for a failure in a stream is this class."""
    return {"failure in a stream": f"`{error}`"}


def of_each_api(
    name: str, *, error: str, chat: Mapping[str, str], responses: Mapping[str, str], **options: Any
) -> Iterator[Client]:
    """A client of chat completions, and the same of responses, with their cells."""
    for api, cells in (("chat", chat), ("responses", responses)):
        yield Client(name=name.format(api), cells=outcomes(error) | dict(cells), **options)


def of_openai_python(form: str, responses: Mapping[str, str]) -> Iterator[Client]:
    """The openai package."""
    return of_each_api(
        f"openai-python {{}}{form}",
        driver="drive_openai.py",
        run="run_python",
        error="BadRequestError",
        chat=fails("APIError"),
        responses=responses,
    )


PYTHON_CLIENTS = (
    *of_openai_python("", SILENT),
    *of_openai_python(", helpers", fails("RuntimeError")),
    *of_openai_python(", asyncio", SILENT),
    *of_openai_python(", trio", fails("RuntimeError")),
    *of_each_api(
        "openai-agents {}",
        driver="drive_openai_agents.py",
        run="run_agents",
        error="BadRequestError",
        chat=NO_TRACE | fails("APIError"),
        responses=fails("ModelBehaviorError"),
    ),
    *of_each_api(
        "Pydantic AI {}",
        driver="drive_pydantic_ai.py",
        run="run_agents",
        error="ModelRequestRejectedError",
        chat=fails("ModelServerError"),
        responses=TRACE_AS_TEXT | fails("ModelAPIError"),
        without={
            "tools, streamed": Lack(
                "Pydantic AI: `run_stream` takes a text before a call for the final output, and the agent stops there. "
                "`run_stream_events` goes on.",
                report={"text": BEFORE},
            )
        },
    ),
    *of_each_api(
        "Pydantic AI {}, events",
        driver="drive_pydantic_ai.py",
        run="run_agents",
        error="ModelRequestRejectedError",
        chat=fails("ModelServerError"),
        responses=TRACE_AS_TEXT | fails("ModelAPIError"),
    ),
    *of_each_api(
        "LangChain {}",
        driver="drive_langchain.py",
        run="run_agents",
        error="OpenAIInvalidRequestError",
        chat=NO_TRACE | fails("APIError"),
        responses=fails("ValueError"),
    ),
    *of_each_api(
        "Agent Framework {}",
        driver="drive_agent_framework.py",
        run="run_agents",
        error="ChatClientException",
        chat=NO_TRACE | fails("ChatClientException"),
        responses=BY_RESPONSE | SILENT,
    ),
)


def of_npm(
    driver: str, clients: Mapping[str, Mapping[str, str]], *, error: str = "BadRequestError"
) -> Iterator[Client]:
    """The clients of one driver, by name, with their cells."""
    for name, cells in clients.items():
        yield Client(name=name, driver=f"capabilities/{driver}", run="run_node", cells=outcomes(error) | dict(cells))


NPM_CLIENTS = (
    *of_npm(
        "openai.mjs",
        {
            "openai-npm chat": fails("APIError"),
            "openai-npm responses": SILENT,
            "openai-npm chat, helpers": NO_TRACE | fails("APIError"),
            "openai-npm responses, helpers": BY_RESPONSE | SILENT,
        },
    ),
    *of_npm(
        "ai.mjs",
        {
            f"AI SDK {major} {provider}": cells | fails(failure)
            for major, failure in ((7, "AI_StreamProviderError"), (6, "Object"))
            for provider, cells in {
                "openai-compatible": {},
                "openai chat": NO_TRACE,
                "openai responses": BY_ITEMS,
                "openai responses, `store: false`": {},
            }.items()
        },
        error="AI_APICallError",
    ),
    *of_npm(
        "agents.mjs",
        {
            "openai-agents-js chat": NO_TRACE | fails("APIError"),
            "openai-agents-js responses": fails("ModelBehaviorError"),
            "openai-agents-js responses, `previousResponseId`": BY_RESPONSE | fails("ModelBehaviorError"),
        },
    ),
    *of_npm(
        "langchain.mjs",
        {"LangChain JS chat": NO_TRACE | fails("APIError"), "LangChain JS responses": SILENT},
    ),
)
CLIENTS = PYTHON_CLIENTS + NPM_CLIENTS

if __name__ == "__main__":
    print(table(CLIENTS), end="")
