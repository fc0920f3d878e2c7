"""Microsoft's Agent Framework as a client, with its clients for chat completions and for responses. A driver."""

from __future__ import annotations

from typing import Any, ClassVar

import pydantic
from agent_framework import Agent, Content, Message
from agent_framework.openai import OpenAIChatClient, OpenAIChatCompletionClient
from driver import Driver, main


class Weather(pydantic.BaseModel):
    city: str
    degrees: int


class AgentFramework(Driver):
    client_class: ClassVar[Any]

    def agent(self, **options: Any) -> Agent:
        return Agent(self.client_class(self.call.model, base_url=self.call.url, api_key="none"), **options)

    @property
    def weather(self) -> Any:
        def weather(city: str) -> str:
            return self.call.result

        return weather

    async def whole(self) -> str:
        return (await self.agent().run(self.call.prompt)).text

    async def streamed(self, agent: Agent) -> str:
        updates = agent.run(self.call.prompt, stream=True)
        async for update in updates:
            self.saw(update.text)
        return (await updates.get_final_response()).messages[-1].text

    async def stream(self) -> str:
        return await self.streamed(self.agent())

    async def second_turn(self) -> str:
        agent = self.agent()
        session = agent.create_session()
        await agent.run(self.call.prompt, session=session)
        return (await agent.run(self.call.second, session=session)).text

    async def tools(self) -> str:
        return (await self.agent(tools=[self.weather]).run(self.call.prompt)).text

    async def tools_streamed(self) -> str:
        return await self.streamed(self.agent(tools=[self.weather]))

    async def structured_output(self) -> Any:
        answer = await self.agent().run(self.call.prompt, options={"response_format": Weather})
        return answer.value.model_dump()

    async def image(self) -> str:
        image = Content.from_uri(self.call.image, media_type="image/png")
        return (await self.agent().run(Message("user", [Content.from_text(self.call.prompt), image]))).text


class Chat(AgentFramework):
    client_class = OpenAIChatCompletionClient


class Responses(AgentFramework):
    client_class = OpenAIChatClient


if __name__ == "__main__":
    main({"Agent Framework chat": Chat, "Agent Framework responses": Responses})
