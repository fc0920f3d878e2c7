"""Makes calls with clients from PyPI, all at the same time, and with the retries of the client.

A program, because its clients have an environment of their own. Standard input: a list of calls, as in `retries.py`.
Prints how each of them ended.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Call = dict[str, Any]
MODEL = "scripted"


# The key tells the server which call a request belongs to.
def openai_chat(call: Call) -> str:
    import openai

    with openai.OpenAI(base_url=call["url"], api_key=call["id"]) as client:
        return of_chat(
            call, client.chat.completions.create(model=MODEL, messages=messages(call), stream=call["stream"])
        )


def openai_responses(call: Call) -> str:
    import openai

    with openai.OpenAI(base_url=call["url"], api_key=call["id"]) as client:
        answer: Any = client.responses.create(model=MODEL, input=call["id"], stream=call["stream"])
        if call["stream"]:
            answer = [event for event in answer if hasattr(event, "response")][-1].response
        if answer.status != "completed":
            raise RuntimeError(f"{answer.status}: {answer.error or answer.incomplete_details}")
        return answer.output_text


def litellm_completion(call: Call) -> str:
    import litellm

    options = {"api_base": call["url"], "api_key": call["id"], "stream": call["stream"]}
    return of_chat(call, litellm.completion(model=f"openai/{MODEL}", messages=messages(call), **options))


def litellm_router(call: Call) -> str:
    import litellm

    parameters = {"model": f"openai/{MODEL}", "api_base": call["url"], "api_key": call["id"]}
    router = litellm.Router([{"model_name": MODEL, "litellm_params": parameters}])
    return of_chat(call, router.completion(model=MODEL, messages=messages(call), stream=call["stream"]))


CLIENTS: dict[str, Callable[[Call], str]] = {
    "openai-python chat": openai_chat,
    "openai-python responses": openai_responses,
    "LiteLLM": litellm_completion,
    "LiteLLM Router": litellm_router,
}


def messages(call: Call) -> Any:
    return [{"role": "user", "content": call["id"]}]


def of_chat(call: Call, answer: Any) -> str:
    if not call["stream"]:
        return answer.choices[0].message.content
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)


def end(call: Call) -> dict[str, Any]:
    try:
        return {"text": CLIENTS[call["client"]](call)}
    except Exception as error:  # the error is the result
        return {"error": f"{type(error).__name__}: {error}", "status": getattr(error, "status_code", None)}


def main() -> None:
    calls = json.load(sys.stdin)
    standard_output, sys.stdout = sys.stdout, sys.stderr  # LiteLLM prints advice
    with ThreadPoolExecutor(len(calls)) as pool:
        ends = dict(zip([call["id"] for call in calls], pool.map(end, calls), strict=True))
    standard_output.write(json.dumps(ends))


if __name__ == "__main__":
    main()
