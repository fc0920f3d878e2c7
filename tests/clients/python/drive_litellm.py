"""LiteLLM as a client, over chat completions and over responses. A driver."""

from __future__ import annotations

import json
from typing import Any

import litellm
import pydantic
from driver import Driver, main


class Weather(pydantic.BaseModel):
    city: str
    degrees: int


PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather.", "parameters": PARAMETERS}


class LiteLLM(Driver):
    @property
    def options(self) -> dict[str, Any]:
        return {"model": f"openai/{self.call.model}", "api_base": self.call.url, "api_key": "none"}

    @property
    def turn(self) -> list[Any]:
        return [{"role": "user", "content": self.call.prompt}]


class Chat(LiteLLM):
    async def ask(self, turn: list[Any], **more: Any) -> Any:
        return (await litellm.acompletion(messages=turn, **self.options, **more)).choices[0].message

    async def ask_streamed(self, turn: list[Any], **more: Any) -> Any:
        chunks = []
        async for chunk in await litellm.acompletion(messages=turn, stream=True, **self.options, **more):
            self.saw(chunk.choices[0].delta.content)
            chunks.append(chunk)
        return litellm.stream_chunk_builder(chunks).choices[0].message

    async def whole(self) -> str:
        return (await self.ask(self.turn)).content

    async def stream(self) -> str:
        return (await self.ask_streamed(self.turn)).content

    async def second_turn(self) -> str:
        answer = await self.ask(self.turn)
        return (await self.ask([*self.turn, answer, {"role": "user", "content": self.call.second}])).content

    async def tools(self, ask: Any = None) -> str:
        ask = ask or self.ask
        tools = [{"type": "function", "function": FUNCTION}]
        answer = await ask(self.turn, tools=tools)
        [made] = answer.tool_calls
        result = {"role": "tool", "tool_call_id": made.id, "content": self.call.result}
        return (await ask([*self.turn, answer, result], tools=tools)).content

    async def tools_streamed(self) -> str:
        return await self.tools(self.ask_streamed)

    async def structured_output(self) -> Any:
        return json.loads((await self.ask(self.turn, response_format=Weather)).content)

    async def image(self) -> str:
        image = {"type": "image_url", "image_url": {"url": self.call.image}}
        return (
            await self.ask([{"role": "user", "content": [{"type": "text", "text": self.call.prompt}, image]}])
        ).content


class Responses(LiteLLM):
    async def ask(self, turn: list[Any], **more: Any) -> Any:
        return await litellm.aresponses(input=turn, **self.options, **more)

    async def ask_streamed(self, turn: list[Any], **more: Any) -> Any:
        event = None
        async for event in await litellm.aresponses(input=turn, stream=True, **self.options, **more):
            self.saw(event.delta if event.type == "response.output_text.delta" else "")
        return event.response

    async def whole(self) -> str:
        return (await self.ask(self.turn)).output_text

    async def stream(self) -> str:
        return (await self.ask_streamed(self.turn)).output_text

    async def second_turn(self) -> str:
        answer = await self.ask(self.turn)
        second = {"role": "user", "content": self.call.second}
        return (await self.ask([*self.turn, *history(answer), second])).output_text

    async def tools(self, ask: Any = None) -> str:
        ask = ask or self.ask
        tools = [{"type": "function", **FUNCTION}]
        answer = await ask(self.turn, tools=tools)
        *_, made = answer.output
        result = {"type": "function_call_output", "call_id": made.call_id, "output": self.call.result}
        return (await ask([*self.turn, *history(answer), result], tools=tools)).output_text

    async def tools_streamed(self) -> str:
        return await self.tools(self.ask_streamed)

    async def structured_output(self) -> Any:
        return json.loads((await self.ask(self.turn, text_format=Weather)).output_text)

    async def image(self) -> str:
        image = {"type": "input_image", "image_url": self.call.image, "detail": "auto"}
        content = [{"type": "input_text", "text": self.call.prompt}, image]
        return (await self.ask([{"role": "user", "content": content}])).output_text


def history(answer: Any) -> list[Any]:
    return [item if isinstance(item, dict) else item.model_dump(exclude_none=True) for item in answer.output]


if __name__ == "__main__":
    main({"LiteLLM chat": Chat, "LiteLLM responses": Responses})
