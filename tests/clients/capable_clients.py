"""The clients of the table of capabilities. As a program (`python -m`) it prints the table for the docs."""

from __future__ import annotations

from .capabilities import Client, table

OPENAI = ("", ", helpers", ", asyncio", ", trio")


NPM_CLIENTS = (
    Client(name="openai-npm chat", driver="capabilities/openai.mjs", run="run_node"),
    Client(name="openai-npm chat, helpers", driver="capabilities/openai.mjs", run="run_node", returns_trace=False),
    Client(name="openai-npm responses", driver="capabilities/openai.mjs", run="run_node"),
    Client(name="openai-npm responses, helpers", driver="capabilities/openai.mjs", run="run_node"),
    *[
        Client(
            name=f"AI SDK {major} {provider}",
            driver="capabilities/ai.mjs",
            run="run_node",
            refused="AI_APICallError",
            returns_trace=provider != "openai chat",
        )
        for major in (7, 6)
        for provider in ("openai-compatible", "openai chat", "openai responses", "openai responses, `store: false`")
    ],
    Client(name="openai-agents-js chat", driver="capabilities/agents.mjs", run="run_node", returns_trace=False),
    Client(name="openai-agents-js responses", driver="capabilities/agents.mjs", run="run_node"),
    Client(name="openai-agents-js responses, `previousResponseId`", driver="capabilities/agents.mjs", run="run_node"),
    Client(name="LangChain JS chat", driver="capabilities/langchain.mjs", run="run_node", returns_trace=False),
    Client(name="LangChain JS responses", driver="capabilities/langchain.mjs", run="run_node"),
)

CLIENTS = (
    *[Client(name=f"openai-python chat{form}", driver="python_openai.py", run="run_python") for form in OPENAI],
    *[Client(name=f"openai-python responses{form}", driver="python_openai.py", run="run_python") for form in OPENAI],
    *NPM_CLIENTS,
)

if __name__ == "__main__":
    print(table(CLIENTS), end="")
