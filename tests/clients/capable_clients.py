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
AT_THE_END = {"stream": "at the end"}
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
    Client(
        name="openai-agents responses, earlier ids",
        driver="drive_openai_agents.py",
        run="run_agents",
        cells=outcomes("BadRequestError") | BY_RESPONSE | fails("ModelBehaviorError"),
    ),
    Client(
        name="Pydantic AI responses, earlier ids",
        driver="drive_pydantic_ai.py",
        run="run_agents",
        cells=outcomes("ModelRequestRejectedError") | BY_RESPONSE | fails("ModelAPIError"),
    ),
    Client(
        name="LangChain responses, earlier ids",
        driver="drive_langchain.py",
        run="run_agents",
        cells=outcomes("OpenAIInvalidRequestError") | BY_RESPONSE | fails("ValueError"),
    ),
    Client(
        name="LlamaIndex OpenAILike",
        driver="drive_llama_index.py",
        run="run_litellm",
        cells=outcomes("BadRequestError") | fails("APIError"),
    ),
    Client(
        name="LiteLLM chat",
        driver="drive_litellm.py",
        run="run_litellm",
        cells=outcomes("BadRequestError") | fails("MidStreamFallbackError"),
    ),
    Client(
        name="LiteLLM responses",
        driver="drive_litellm.py",
        run="run_litellm",
        cells=outcomes("BadRequestError", "`RateLimitError`") | AT_THE_END | fails("ServiceUnavailableError"),
    ),
    *of_each_api(
        "LiteLLM proxy, {}",
        driver="drive_litellm_proxy.py",
        run="run_litellm",
        error="BadRequestError",
        chat=fails("APIError"),
        responses=SILENT,
    ),
)
CLIENTS = PYTHON_CLIENTS

if __name__ == "__main__":
    print(table(CLIENTS), end="")
