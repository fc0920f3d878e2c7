"""The clients of the table of capabilities. As a program (`python -m`) it prints the table for the docs."""

from __future__ import annotations

from .capabilities import Client, table

OPENAI = ("", ", helpers", ", asyncio", ", trio")


NPM_CLIENTS = (
    *[
        Client(name=f"openai-npm {form}", driver="capabilities/openai.mjs", run="run_node")
        for form in ("chat", "chat, helpers", "responses", "responses, helpers")
    ],
    *[
        Client(
            name=f"AI SDK {major} {provider}", driver="capabilities/ai.mjs", run="run_node", refused="AI_APICallError"
        )
        for major in (7, 6)
        for provider in ("openai-compatible", "openai chat", "openai responses")
    ],
    *[
        Client(name=f"openai-agents-js {model}", driver="capabilities/agents.mjs", run="run_node")
        for model in ("chat", "responses", "responses, previousResponseId")
    ],
    *[
        Client(name=f"LangChain JS {api}", driver="capabilities/langchain.mjs", run="run_node")
        for api in ("chat", "responses")
    ],
)

CLIENTS = (
    *[Client(name=f"openai-python chat{form}", driver="python_openai.py", run="run_python") for form in OPENAI],
    *[Client(name=f"openai-python responses{form}", driver="python_openai.py", run="run_python") for form in OPENAI],
    *NPM_CLIENTS,
)

if __name__ == "__main__":
    print(table(CLIENTS), end="")
