"""Pydantic AI with its model for Anthropic's Messages API: a text, a stream, and a turn with a tool.

A program, because Pydantic AI has a separate environment. Argument: the server's URL. Prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel, AnthropicModelSettings
from pydantic_ai.providers.anthropic import AnthropicProvider


def weather(city: str) -> str:
    return f"31 in {city}"


async def ask(url: str) -> dict[str, Any]:
    model = AnthropicModel("small", provider=AnthropicProvider(base_url=url, api_key="none"))
    thinking = AnthropicModelSettings(anthropic_thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=4096)
    agent = Agent(model, model_settings=thinking, tools=[weather])
    whole = await agent.run("Hot?")
    seen: list[str] = []

    async def handle(context: Any, events: Any) -> None:
        seen.extend([event.event_kind async for event in events])

    streamed = await agent.run("Hot?", event_stream_handler=handle)  # streams every answer of the model
    kinds = [part.part_kind for message in whole.all_messages() for part in message.parts]
    return {
        "whole": whole.output,
        "streamed": streamed.output,
        "seen": seen,
        "kinds": kinds,
        "tokens": whole.usage.output_tokens,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(ask(sys.argv[1]))))
