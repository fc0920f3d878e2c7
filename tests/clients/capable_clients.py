"""The clients of the table of capabilities. As a program (`python -m`) it prints the table for the docs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .capabilities import BEFORE, Client, Lack, table

APIS = ("chat", "responses")


def outcomes(error: str, limited: str = "asks again") -> dict[str, str]:
    """The cells of a client whose error for a refused request is this class."""
    return {"refused request": f"`{error}`", "rate limit": limited}


def of_each_api(name: str, *, error: str, **options: Any) -> Iterator[Client]:
    """A client of chat completions, and the same of responses."""
    for api in APIS:
        yield Client(name=name.format(api), cells=outcomes(error), **options)


PYTHON_CLIENTS = (
    *of_each_api("openai-python {}", driver="drive_openai.py", run="run_python", error="BadRequestError"),
    *of_each_api("openai-python {}, helpers", driver="drive_openai.py", run="run_python", error="BadRequestError"),
    *of_each_api("openai-python {}, asyncio", driver="drive_openai.py", run="run_python", error="BadRequestError"),
    *of_each_api("openai-python {}, trio", driver="drive_openai.py", run="run_python", error="BadRequestError"),
    *of_each_api("openai-agents {}", driver="drive_openai_agents.py", run="run_agents", error="BadRequestError"),
    *of_each_api(
        "Pydantic AI {}",
        driver="drive_pydantic_ai.py",
        run="run_agents",
        error="ModelRequestRejectedError",
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
    ),
    *of_each_api("LangChain {}", driver="drive_langchain.py", run="run_agents", error="OpenAIInvalidRequestError"),
    Client(
        name="Agent Framework chat",
        driver="drive_agent_framework.py",
        run="run_agents",
        cells=outcomes("ChatClientException"),
    ),
    Client(
        name="Agent Framework responses",
        driver="drive_agent_framework.py",
        run="run_agents",
        cells=outcomes("ChatClientException") | {"second turn": "`previous_response_id`"},
    ),
)
CLIENTS = PYTHON_CLIENTS

if __name__ == "__main__":
    print(table(CLIENTS), end="")
