"""Asks three times with LiteLLM: streamed, whole, and in a second turn with the message of the first.

A program, because LiteLLM has a separate environment. Argument: the base URL. Prints the messages as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    import litellm

    ask: dict[str, Any] = {"model": "openai/small:deep", "api_base": sys.argv[1], "api_key": "none", "num_retries": 0}
    messages: list[Any] = [{"role": "user", "content": "Why?"}]
    standard_output, sys.stdout = sys.stdout, sys.stderr  # LiteLLM prints advice
    chunks = list(litellm.completion(**ask, messages=messages, stream=True))
    streamed = litellm.stream_chunk_builder(chunks).choices[0].message
    whole = litellm.completion(**ask, messages=messages).choices[0].message
    second = litellm.completion(**ask, messages=[*messages, whole, *messages]).choices[0].message
    found = {"streamed": streamed, "whole": whole, "second": second}
    standard_output.write(json.dumps({name: message.model_dump(exclude_none=True) for name, message in found.items()}))


if __name__ == "__main__":
    main()
