"""The clients of the table of capabilities. As a program (`python -m`) it prints the table for the docs."""

from __future__ import annotations

from dataclasses import dataclass

from .capabilities import BEFORE, NO_ERROR, Client, Lack, table

AGAIN = "asks again"
PREVIOUS = "`previous_response_id`"
ITEMS = "`item_reference`"


@dataclass(frozen=True)
class Driver:
    """A program that uses clients of one kind.

    Attributes:
        file: The program.
        run: The name of the fixture that runs it.
        error: The class of the clients' error for a refused request.
        failure: The class of their error for a failure in a stream.
    """

    file: str
    run: str
    error: str
    failure: str

    def client(
        self,
        name: str,
        *,
        stream: str = "yes",
        second: str = "yes",
        trace: str = "yes",
        limited: str = AGAIN,
        failure: str | None = None,
        without: dict[str, Lack] | None = None,
    ) -> Client:
        """One of these clients, with the cells that differ between clients."""
        cells = {
            "stream": stream,
            "second turn": second,
            "trace goes back": trace,
            "refused request": f"`{self.error}`",
            "rate limit": limited,
            "failure in a stream": failure or f"`{self.failure}`",
        }
        return Client(name=name, driver=self.file, run=self.run, cells=cells, without=without or {})


OPENAI = Driver("drive_openai.py", "run_python", "BadRequestError", "APIError")
OPENAI_AGENTS = Driver("drive_openai_agents.py", "run_agents", "BadRequestError", "APIError")
PYDANTIC_AI = Driver("drive_pydantic_ai.py", "run_agents", "ModelRequestRejectedError", "ModelServerError")
LANGCHAIN = Driver("drive_langchain.py", "run_agents", "OpenAIInvalidRequestError", "APIError")
AGENT_FRAMEWORK = Driver("drive_agent_framework.py", "run_agents", "ChatClientException", "ChatClientException")
LLAMA_INDEX = Driver("drive_llama_index.py", "run_litellm", "BadRequestError", "APIError")
LITELLM = Driver("drive_litellm.py", "run_litellm", "BadRequestError", "APIError")
LITELLM_PROXY = Driver("drive_litellm_proxy.py", "run_litellm", "BadRequestError", "APIError")

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
    OPENAI_AGENTS.client("openai-agents chat", trace="no"),
    OPENAI_AGENTS.client("openai-agents responses"),
    OPENAI_AGENTS.client("openai-agents responses, earlier ids", second=PREVIOUS),
    PYDANTIC_AI.client("Pydantic AI chat", without=RUN_STREAM),
    PYDANTIC_AI.client("Pydantic AI chat, events"),
    PYDANTIC_AI.client("Pydantic AI responses", trace="as text", without=RUN_STREAM),
    PYDANTIC_AI.client("Pydantic AI responses, events", trace="as text"),
    PYDANTIC_AI.client("Pydantic AI responses, earlier ids", second=PREVIOUS),
    LANGCHAIN.client("LangChain chat", trace="no"),
    LANGCHAIN.client("LangChain responses"),
    LANGCHAIN.client("LangChain responses, earlier ids", second=PREVIOUS),
    AGENT_FRAMEWORK.client("Agent Framework chat", trace="no"),
    AGENT_FRAMEWORK.client("Agent Framework responses", second=PREVIOUS),
    LLAMA_INDEX.client("LlamaIndex OpenAILike", trace="no"),
    LITELLM.client("LiteLLM chat", failure="`MidStreamFallbackError`"),
    LITELLM.client(
        "LiteLLM responses", stream="at the end", limited="`RateLimitError`", failure="`ServiceUnavailableError`"
    ),
    LITELLM_PROXY.client("LiteLLM proxy, chat"),
    LITELLM_PROXY.client("LiteLLM proxy, responses", failure=NO_ERROR),
)

OPENAI_NPM = Driver("capabilities/openai.mjs", "run_node", "BadRequestError", "APIError")
AI_SDK_7 = Driver("capabilities/ai.mjs", "run_node", "AI_APICallError", "AI_StreamProviderError")
AI_SDK_6 = Driver("capabilities/ai.mjs", "run_node", "AI_APICallError", "Object")
AGENTS_JS = Driver("capabilities/agents.mjs", "run_node", "BadRequestError", "APIError")
LANGCHAIN_JS = Driver("capabilities/langchain.mjs", "run_node", "BadRequestError", "APIError")

NPM_CLIENTS = (
    OPENAI_NPM.client("openai-npm chat"),
    OPENAI_NPM.client("openai-npm chat, helpers", trace="no"),
    OPENAI_NPM.client("openai-npm responses"),
    OPENAI_NPM.client("openai-npm responses, helpers", second=PREVIOUS),
    AI_SDK_7.client("AI SDK 7 openai-compatible"),
    AI_SDK_7.client("AI SDK 7 openai chat", trace="no"),
    AI_SDK_7.client("AI SDK 7 openai responses", second=ITEMS),
    AI_SDK_7.client("AI SDK 7 openai responses, `store: false`"),
    AI_SDK_6.client("AI SDK 6 openai-compatible"),
    AI_SDK_6.client("AI SDK 6 openai chat", trace="no"),
    AI_SDK_6.client("AI SDK 6 openai responses", second=ITEMS),
    AI_SDK_6.client("AI SDK 6 openai responses, `store: false`"),
    AGENTS_JS.client("openai-agents-js chat", trace="no"),
    AGENTS_JS.client("openai-agents-js responses"),
    AGENTS_JS.client("openai-agents-js responses, earlier ids", second=PREVIOUS),
    LANGCHAIN_JS.client("LangChain JS chat", trace="no"),
    LANGCHAIN_JS.client("LangChain JS responses"),
)
CLIENTS = PYTHON_CLIENTS + NPM_CLIENTS

if __name__ == "__main__":
    print(table(CLIENTS), end="")
