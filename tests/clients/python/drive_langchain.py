"""LangChain's ChatOpenAI as a client, over chat completions and over responses. A driver."""

from __future__ import annotations

from typing import Any, ClassVar

import pydantic
from driver import Driver, main
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


class Weather(pydantic.BaseModel):
    city: str
    degrees: int


class Chat(Driver):
    options: ClassVar[dict[str, Any]] = {}

    @property
    def model(self) -> ChatOpenAI:
        return ChatOpenAI(model=self.call.model, base_url=self.call.url, api_key="none", **self.options)

    @property
    def weather(self) -> Any:
        @tool
        def weather(city: str) -> str:
            """The weather in a city."""
            return self.call.result

        return weather

    @property
    def turn(self) -> list[Any]:
        return [HumanMessage(self.call.prompt)]

    async def ask(self, model: Any, turn: list[Any]) -> Any:
        return await model.ainvoke(turn)

    async def ask_streamed(self, model: Any, turn: list[Any]) -> Any:
        whole = None
        async for piece in model.astream(turn):
            self.saw(piece.text)
            whole = piece if whole is None else whole + piece
        return whole

    async def whole(self) -> str:
        return (await self.ask(self.model, self.turn)).text

    async def stream(self) -> str:
        return (await self.ask_streamed(self.model, self.turn)).text

    async def second_turn(self) -> str:
        answer = await self.ask(self.model, self.turn)
        return (await self.ask(self.model, [*self.turn, answer, HumanMessage(self.call.second)])).text

    async def tools(self, ask: Any = None) -> str:
        ask = ask or self.ask
        model = self.model.bind_tools([self.weather])
        answer = await ask(model, self.turn)
        results: list[ToolMessage] = [await self.weather.ainvoke(call) for call in answer.tool_calls]
        return (await ask(model, [*self.turn, answer, *results])).text

    async def tools_streamed(self) -> str:
        return await self.tools(self.ask_streamed)

    async def structured_output(self) -> Any:
        return (await self.model.with_structured_output(Weather).ainvoke(self.turn)).model_dump()

    async def image(self) -> str:
        image = {"type": "image_url", "image_url": {"url": self.call.image}}
        return (await self.ask(self.model, [HumanMessage([{"type": "text", "text": self.call.prompt}, image])])).text


class Responses(Chat):
    options: ClassVar = {"use_responses_api": True}


class EarlierResponse(Responses):
    options: ClassVar = {"use_responses_api": True, "use_previous_response_id": True}


if __name__ == "__main__":
    main(
        {
            "LangChain chat": Chat,
            "LangChain responses": Responses,
            "LangChain responses, earlier ids": EarlierResponse,
        }
    )
