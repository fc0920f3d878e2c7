"""The clients of the table of capabilities. As a program (`python -m`) it prints the table for the docs."""

from __future__ import annotations

from dataclasses import dataclass

from .capabilities import BEFORE, Client, Lack, table

AGAIN = "asks again"
PREVIOUS = "`previous_response_id`"


@dataclass(frozen=True)
class Driver:
    """A program that uses clients of one kind.

    Attributes:
        file: The program.
        run: The name of the fixture that runs it.
        error: The class of the clients' error for a refused request.
    """

    file: str
    run: str
    error: str

    def client(
        self, name: str, *, second: str = "yes", limited: str = AGAIN, without: dict[str, Lack] | None = None
    ) -> Client:
        """One of these clients, with its cells for a second turn and a rate limit."""
        cells = {"second turn": second, "refused request": f"`{self.error}`", "rate limit": limited}
        return Client(name=name, driver=self.file, run=self.run, cells=cells, without=without or {})


OPENAI = Driver("drive_openai.py", "run_python", "BadRequestError")
OPENAI_AGENTS = Driver("drive_openai_agents.py", "run_agents", "BadRequestError")
PYDANTIC_AI = Driver("drive_pydantic_ai.py", "run_agents", "ModelRequestRejectedError")
LANGCHAIN = Driver("drive_langchain.py", "run_agents", "OpenAIInvalidRequestError")
AGENT_FRAMEWORK = Driver("drive_agent_framework.py", "run_agents", "ChatClientException")
LLAMA_INDEX = Driver("drive_llama_index.py", "run_litellm", "BadRequestError")
LITELLM = Driver("drive_litellm.py", "run_litellm", "BadRequestError")
LITELLM_PROXY = Driver("drive_litellm_proxy.py", "run_litellm", "BadRequestError")

RUN_STREAM = {
    "tools, streamed": Lack(
        "Pydantic AI: `run_stream` takes a text before a tool call for the final output, and the agent stops there. "
        "`run_stream_events` goes on.",
        report={"text": BEFORE},
    )
}

PYTHON_CLIENTS = (
    OPENAI.client("openai-python chat"),
    OPENAI.client("openai-python chat, helpers"),
    OPENAI.client("openai-python chat, asyncio"),
    OPENAI.client("openai-python chat, trio"),
    OPENAI.client("openai-python responses"),
    OPENAI.client("openai-python responses, helpers"),
    OPENAI.client("openai-python responses, asyncio"),
    OPENAI.client("openai-python responses, trio"),
    OPENAI_AGENTS.client("openai-agents chat"),
    OPENAI_AGENTS.client("openai-agents responses"),
    OPENAI_AGENTS.client("openai-agents responses, earlier ids", second=PREVIOUS),
    PYDANTIC_AI.client("Pydantic AI chat", without=RUN_STREAM),
    PYDANTIC_AI.client("Pydantic AI chat, events"),
    PYDANTIC_AI.client("Pydantic AI responses", without=RUN_STREAM),
    PYDANTIC_AI.client("Pydantic AI responses, events"),
    PYDANTIC_AI.client("Pydantic AI responses, earlier ids", second=PREVIOUS),
    LANGCHAIN.client("LangChain chat"),
    LANGCHAIN.client("LangChain responses"),
    LANGCHAIN.client("LangChain responses, earlier ids", second=PREVIOUS),
    AGENT_FRAMEWORK.client("Agent Framework chat"),
    AGENT_FRAMEWORK.client("Agent Framework responses", second=PREVIOUS),
    LLAMA_INDEX.client("LlamaIndex OpenAILike"),
    LITELLM.client("LiteLLM chat"),
    LITELLM.client("LiteLLM responses", limited="`RateLimitError`"),
    LITELLM_PROXY.client("LiteLLM proxy, chat"),
    LITELLM_PROXY.client("LiteLLM proxy, responses"),
)
CLIENTS = PYTHON_CLIENTS

if __name__ == "__main__":
    print(table(CLIENTS), end="")
