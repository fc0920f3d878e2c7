"""Pydantic AI as a client, with its models for chat completions and for responses. A driver."""

from __future__ import annotations

import base64
from typing import Any, ClassVar

import pydantic
from driver import Driver, main
from pydantic_ai import Agent, AgentRunResultEvent, BinaryContent, NativeOutput, PartStartEvent, TextPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.providers.openai import OpenAIProvider


class Weather(pydantic.BaseModel):
    city: str
    degrees: int


class PydanticAI(Driver):
    model_class: ClassVar[Any]
    settings: ClassVar[Any] = None

    def agent(self, **options: Any) -> Agent[None, Any]:
        provider = OpenAIProvider(base_url=self.call.url, api_key="none")
        return Agent(self.model_class(self.call.model, provider=provider), model_settings=self.settings, **options)

    @property
    def weather(self) -> Any:
        def weather(city: str) -> str:
            return self.call.result

        return weather

    async def whole(self) -> str:
        return (await self.agent().run(self.call.prompt)).output

    async def streamed(self, agent: Agent[None, Any]) -> str:
        text = ""
        async with agent.run_stream(self.call.prompt) as result:
            async for piece in result.stream_text(delta=True, debounce_by=None):
                self.saw(piece)
                text += piece
        return text

    async def stream(self) -> str:
        return await self.streamed(self.agent())

    async def second_turn(self) -> str:
        agent = self.agent()
        first = await agent.run(self.call.prompt)
        return (await agent.run(self.call.second, message_history=first.all_messages())).output

    async def tools(self) -> str:
        return (await self.agent(tools=[self.weather]).run(self.call.prompt)).output

    async def tools_streamed(self) -> str:
        return await self.streamed(self.agent(tools=[self.weather]))

    async def structured_output(self) -> Any:
        return (await self.agent(output_type=NativeOutput(Weather)).run(self.call.prompt)).output.model_dump()

    async def image(self) -> str:
        head, _, data = self.call.image.partition(";base64,")
        image = BinaryContent(base64.b64decode(data), media_type=head.removeprefix("data:"))
        return (await self.agent().run([self.call.prompt, image])).output


class Chat(PydanticAI):
    model_class = OpenAIChatModel


class Responses(PydanticAI):
    model_class = OpenAIResponsesModel


class WithEvents(PydanticAI):
    async def streamed(self, agent: Agent[None, Any]) -> str:
        async with agent.run_stream_events(self.call.prompt) as events:
            async for event in events:
                match event:
                    case PartStartEvent(part=TextPart(content=piece)):
                        self.saw(piece)
                    case AgentRunResultEvent(result=result):
                        return result.output
        raise AssertionError("no result")


class ChatWithEvents(WithEvents, Chat):
    pass


class ResponsesWithEvents(WithEvents, Responses):
    pass


class EarlierResponse(ResponsesWithEvents):
    settings = OpenAIResponsesModelSettings(openai_previous_response_id="auto")


if __name__ == "__main__":
    main(
        {
            "Pydantic AI chat": Chat,
            "Pydantic AI chat, events": ChatWithEvents,
            "Pydantic AI responses": Responses,
            "Pydantic AI responses, events": ResponsesWithEvents,
            "Pydantic AI responses, earlier ids": EarlierResponse,
        }
    )
