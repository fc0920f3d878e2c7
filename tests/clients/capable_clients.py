"""The clients of the table of capabilities. As a program (`python -m`) it prints the table for the docs."""

from __future__ import annotations

from .capabilities import Client, table

OPENAI = ("", ", helpers", ", asyncio", ", trio")

CLIENTS = (
    *[Client(name=f"openai-python chat{form}", driver="python_openai.py", run="run_python") for form in OPENAI],
    *[Client(name=f"openai-python responses{form}", driver="python_openai.py", run="run_python") for form in OPENAI],
)

if __name__ == "__main__":
    print(table(CLIENTS), end="")
