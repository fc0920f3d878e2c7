"""The openai package as a client: plain calls and the helpers, and all three of its clients.

A driver of the capabilities. Synchronous clients run the same code: `got` and `each` wait only for what must be waited
for.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import openai
import pydantic
from driver import Driver, main

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}

FUNCTION = {"name": "weather", "description": "The weather.", "parameters": PARAMETERS, "strict": True}


class Weather(pydantic.BaseModel):
    city: str
    degrees: int


async def got(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def each(stream: Any) -> AsyncIterator[Any]:
    if hasattr(stream, "__aiter__"):
        async for item in stream:
            yield item
    else:
        for item in stream:
            yield item


@asynccontextmanager
async def opened(manager: Any) -> AsyncIterator[Any]:
    if hasattr(manager, "__aenter__"):
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value


class OpenAI(Driver):
    """What both APIs share.

    Attributes:
        client_class: The kind of client.
        has_helpers: Whether streams and structured output go through the helpers.
        url: The base URL, if it is not this server's.
        key: The API key.
    """

    client_class: Any = openai.OpenAI
    has_helpers = False
    url = ""
    key = "none"
    tool: ClassVar[Any]

    async def run(self, method: Any) -> Any:
        return await asyncio.to_thread(lambda: asyncio.run(method()))  # synchronous calls hold up their event loop

    async def ask(self, client: Any, turn: list[Any], *, stream: bool, **more: Any) -> Any:
        raise NotImplementedError

    def text_of(self, answer: Any) -> str:
        raise NotImplementedError

    def result(self, answer: Any) -> list[Any]:
        """The answer with a call, and the tool's result."""
        raise NotImplementedError

    def history(self, answer: Any) -> list[Any]:
        raise NotImplementedError

    @property
    def client(self) -> Any:
        return opened(self.client_class(base_url=self.url or self.call.url, api_key=self.key))

    @property
    def turn(self) -> list[Any]:
        return [{"role": "user", "content": self.call.prompt}]

    async def whole(self, *, stream: bool = False) -> str:
        async with self.client as client:
            return self.text_of(await self.ask(client, self.turn, stream=stream))

    async def stream(self) -> str:
        return await self.whole(stream=True)

    async def second_turn(self) -> str:
        async with self.client as client:
            answer = await self.ask(client, self.turn, stream=False)
            second = {"role": "user", "content": self.call.second}
            return self.text_of(await self.ask(client, [*self.turn, *self.history(answer), second], stream=False))

    async def tools(self, *, stream: bool = False) -> str:
        async with self.client as client:
            answer = await self.ask(client, self.turn, stream=stream, tools=[self.tool])
            turn = [*self.turn, *self.result(answer)]
            return self.text_of(await self.ask(client, turn, stream=stream, tools=[self.tool]))

    async def tools_streamed(self) -> str:
        return await self.tools(stream=True)


class Chat(OpenAI):
    tool: ClassVar = {"type": "function", "function": FUNCTION}

    async def ask(self, client: Any, turn: list[Any], *, stream: bool, **more: Any) -> Any:
        asked = {"model": self.call.model, "messages": turn} | more
        completions = client.chat.completions
        if not stream:
            return (await got(completions.create(**asked))).choices[0].message.to_dict()
        if self.has_helpers:
            async with opened(completions.stream(**asked)) as events:
                async for event in each(events):
                    self.saw(event.delta if event.type == "content.delta" else "")
                return (await got(events.get_final_completion())).choices[0].message.to_dict()
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        async for chunk in each(await got(completions.create(stream=True, **asked))):
            for choice in chunk.choices:
                self.saw(choice.delta.content)
                message["content"] += choice.delta.content or ""
                for piece in choice.delta.tool_calls or ():
                    if piece.id:
                        message["tool_calls"] = [piece.to_dict()]
                    else:
                        message["tool_calls"][0]["function"]["arguments"] += piece.function.arguments
        return message

    def text_of(self, answer: Any) -> str:
        return answer["content"]

    def history(self, answer: Any) -> list[Any]:
        return [answer]

    def result(self, answer: Any) -> list[Any]:
        [call] = answer["tool_calls"]
        return [answer, {"role": "tool", "tool_call_id": call["id"], "content": self.call.result}]

    async def structured_output(self) -> Any:
        schema = {"name": "Weather", "schema": Weather.model_json_schema()}
        asked = {"model": self.call.model, "messages": self.turn}
        async with self.client as client:
            completions = client.chat.completions
            if self.has_helpers:
                answer = await got(completions.parse(response_format=Weather, **asked))
                return answer.choices[0].message.parsed.model_dump()
            wanted = {"type": "json_schema", "json_schema": schema}
            answer = await got(completions.create(response_format=wanted, **asked))
            return Weather.model_validate_json(answer.choices[0].message.content).model_dump()

    async def image(self) -> str:
        image = {"type": "image_url", "image_url": {"url": self.call.image}}
        content = [{"type": "text", "text": self.call.prompt}, image]
        async with self.client as client:
            return self.text_of(await self.ask(client, [{"role": "user", "content": content}], stream=False))


class Responses(OpenAI):
    tool: ClassVar = {"type": "function"} | FUNCTION

    async def ask(self, client: Any, turn: list[Any], *, stream: bool, **more: Any) -> Any:
        asked = {"model": self.call.model, "input": turn} | more
        if not stream:
            return await got(client.responses.create(**asked))
        if self.has_helpers:
            async with opened(client.responses.stream(**asked)) as events:
                await self.last(events)
                return await got(events.get_final_response())
        return (await self.last(await got(client.responses.create(stream=True, **asked)))).response

    async def last(self, events: Any) -> Any:
        event = None
        async for event in each(events):
            self.saw(event.delta if event.type == "response.output_text.delta" else "")
        return event

    def text_of(self, answer: Any) -> str:
        return answer.output_text

    def history(self, answer: Any) -> list[Any]:
        return [item.to_dict() for item in answer.output]

    def result(self, answer: Any) -> list[Any]:
        *_, call = answer.output
        result = {"type": "function_call_output", "call_id": call.call_id, "output": self.call.result}
        return [*self.history(answer), result]

    async def structured_output(self) -> Any:
        schema = {"type": "json_schema", "name": "Weather", "schema": Weather.model_json_schema()}
        asked = {"model": self.call.model, "input": self.turn}
        async with self.client as client:
            if self.has_helpers:
                return (await got(client.responses.parse(text_format=Weather, **asked))).output_parsed.model_dump()
            answer = await got(client.responses.create(text={"format": schema}, **asked))
            return Weather.model_validate_json(answer.output_text).model_dump()

    async def image(self) -> str:
        image = {"type": "input_image", "image_url": self.call.image, "detail": "auto"}
        content = [{"type": "input_text", "text": self.call.prompt}, image]
        async with self.client as client:
            return self.text_of(await self.ask(client, [{"role": "user", "content": content}], stream=False))


class OnAsyncio:
    client_class = openai.AsyncOpenAI

    async def run(self, method: Any) -> Any:
        return await method()


class OnTrio:
    client_class = openai.AsyncOpenAI

    async def run(self, method: Any) -> Any:
        import trio  # the driver of LiteLLM's proxy uses this module without it

        return await asyncio.to_thread(trio.run, method)


class HelpedChat(Chat):
    has_helpers = True


class HelpedResponses(Responses):
    has_helpers = True


class AsyncioChat(OnAsyncio, Chat):
    pass


class AsyncioResponses(OnAsyncio, Responses):
    pass


class TrioChat(OnTrio, HelpedChat):
    pass


class TrioResponses(OnTrio, HelpedResponses):
    pass


if __name__ == "__main__":
    main(
        {
            "openai-python chat": Chat,
            "openai-python chat, helpers": HelpedChat,
            "openai-python chat, asyncio": AsyncioChat,
            "openai-python chat, trio": TrioChat,
            "openai-python responses": Responses,
            "openai-python responses, helpers": HelpedResponses,
            "openai-python responses, asyncio": AsyncioResponses,
            "openai-python responses, trio": TrioResponses,
        }
    )
