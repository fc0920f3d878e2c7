"""The OpenAI Agents SDK as a client, with its models for chat completions and for responses. A driver."""

from __future__ import annotations

from typing import Any, ClassVar

import agents
import openai
import pydantic
from driver import Driver, main


class Weather(pydantic.BaseModel):
    city: str
    degrees: int


class OpenAIAgents(Driver):
    model_class: ClassVar[Any]
    options: ClassVar[dict[str, Any]] = {}

    def agent(self, **options: Any) -> agents.Agent:
        client = openai.AsyncOpenAI(base_url=self.call.url, api_key="none")
        return agents.Agent("test", model=self.model_class(self.call.model, client), **options)

    @property
    def weather(self) -> Any:
        @agents.function_tool
        def weather(city: str) -> str:
            return self.call.result

        return weather

    async def whole(self) -> str:
        return (await agents.Runner.run(self.agent(), self.call.prompt)).final_output

    async def streamed(self, agent: agents.Agent) -> str:
        result = agents.Runner.run_streamed(agent, self.call.prompt, **self.options)
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                self.saw(event.data.delta)
        return result.final_output

    async def stream(self) -> str:
        return await self.streamed(self.agent())

    async def second_turn(self) -> str:
        agent = self.agent()
        first = await agents.Runner.run(agent, self.call.prompt)
        turn = [*first.to_input_list(), {"role": "user", "content": self.call.second}]
        return (await agents.Runner.run(agent, turn)).final_output

    async def tools(self) -> str:
        agent = self.agent(tools=[self.weather])
        return (await agents.Runner.run(agent, self.call.prompt, **self.options)).final_output

    async def tools_streamed(self) -> str:
        return await self.streamed(self.agent(tools=[self.weather]))

    async def structured_output(self) -> Any:
        return (await agents.Runner.run(self.agent(output_type=Weather), self.call.prompt)).final_output.model_dump()

    async def image(self) -> str:
        content = [
            {"type": "input_text", "text": self.call.prompt},
            {"type": "input_image", "image_url": self.call.image, "detail": "auto"},
        ]
        return (await agents.Runner.run(self.agent(), [{"role": "user", "content": content}])).final_output


class Chat(OpenAIAgents):
    model_class = agents.OpenAIChatCompletionsModel


class Responses(OpenAIAgents):
    model_class = agents.OpenAIResponsesModel


class EarlierResponse(Responses):
    options: ClassVar = {"auto_previous_response_id": True}

    async def second_turn(self) -> str:
        agent = self.agent()
        first = await agents.Runner.run(agent, self.call.prompt)
        second = await agents.Runner.run(agent, self.call.second, previous_response_id=first.last_response_id)
        return second.final_output


if __name__ == "__main__":
    agents.set_tracing_disabled(True)  # else it sends traces to OpenAI
    main(
        {
            "openai-agents chat": Chat,
            "openai-agents responses": Responses,
            "openai-agents responses, earlier ids": EarlierResponse,
        }
    )
