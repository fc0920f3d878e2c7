"""LlamaIndex's OpenAILike as a client. A driver."""

from __future__ import annotations

from typing import Any

import pydantic
from driver import Driver, main
from llama_index.core.agent.workflow import AgentStream, FunctionAgent
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.llms.openai_like import OpenAILike


class Weather(pydantic.BaseModel):
    city: str
    degrees: int


class Chat(Driver):
    @property
    def model(self) -> OpenAILike:
        return OpenAILike(
            model=self.call.model,
            api_base=self.call.url,
            api_key="none",
            is_chat_model=True,
            is_function_calling_model=True,
            should_use_structured_outputs=True,
        )

    @property
    def weather(self) -> Any:
        def weather(city: str) -> str:
            """The weather in a city."""
            return self.call.result

        return weather

    @property
    def turn(self) -> list[ChatMessage]:
        return [ChatMessage(self.call.prompt)]

    async def whole(self) -> str:
        return (await self.model.achat(self.turn)).message.content

    async def stream(self) -> str:
        answer = None
        async for answer in await self.model.astream_chat(self.turn):
            self.saw(answer.delta)
        return answer.message.content

    async def second_turn(self) -> str:
        model = self.model
        answer = (await model.achat(self.turn)).message
        return (await model.achat([*self.turn, answer, ChatMessage(self.call.second)])).message.content

    async def tools(self, *, streams: bool = False) -> str:
        agent = FunctionAgent(tools=[self.weather], llm=self.model, streaming=streams)
        handler = agent.run(self.call.prompt)
        async for event in handler.stream_events():
            if isinstance(event, AgentStream):
                self.saw(event.delta)
        return (await handler).response.content

    async def tools_streamed(self) -> str:
        return await self.tools(streams=True)

    async def structured_output(self) -> Any:
        return (await self.model.as_structured_llm(Weather).achat(self.turn)).raw.model_dump()

    async def image(self) -> str:
        message = ChatMessage(blocks=[TextBlock(text=self.call.prompt), ImageBlock(url=self.call.image)])
        return (await self.model.achat([message])).message.content


if __name__ == "__main__":
    main({"LlamaIndex OpenAILike": Chat})
