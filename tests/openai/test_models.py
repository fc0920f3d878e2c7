"""`GET /v1/models/{model}`, which `models.retrieve` of an SDK calls."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from crucible_trio.engine import EngineInfo
from crucible_trio.engines.router import RouterEngine
from crucible_trio.testing import ScriptedEngine


@pytest.mark.parametrize("name", ["org/large", "org/large:deep", "small", "gpt"])
async def test_every_model_name_that_a_request_may_use_is_found(open_api, name, autojump_clock: MockClock) -> None:
    engine = ScriptedEngine("a", models=["small", "org/large"])
    async with open_api(engine=engine, openai_models={"gpt": "small"}) as api:
        answer = await api.get(f"/v1/models/{name}")
        assert answer.status == 200
        assert answer.json == {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "scripted",
            "sampling": [],
            "capabilities": [],
        }


async def test_an_unknown_name_is_404_as_with_openai(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        answer = await api.get("/v1/models/lost")
        assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")


async def test_the_model_list_has_every_field_that_the_sdks_expect(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        for entry in (await api.get("/v1/models")).json["data"]:
            assert {"id", "object", "created", "owned_by"} <= set(entry)


@pytest.mark.parametrize("name", ["large", "large:deep", "gpt"])
async def test_a_name_that_a_request_may_use_is_found_behind_a_router(
    open_api, name, autojump_clock: MockClock
) -> None:
    engines = [ScriptedEngine("a", name="one", models=["small"]), ScriptedEngine("b", name="two", models=["large"])]
    async with open_api(engine=RouterEngine(engines), openai_models={"gpt": "large"}) as api:
        answer = await api.get(f"/v1/models/{name}")
        assert (answer.status, answer.json["id"], answer.json["owned_by"]) == (200, name, "two")


async def test_the_model_list_asks_a_router_for_its_models_once(
    open_api, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0

    def info(router: RouterEngine) -> EngineInfo:
        nonlocal read
        read += 1
        return original(router)

    original = RouterEngine.info.fget
    monkeypatch.setattr(RouterEngine, "info", property(info))
    reads = []
    for count in (1, 50):
        engine = RouterEngine([ScriptedEngine("a", models=[f"model-{number}" for number in range(count)])])
        async with open_api(engine=engine) as api:
            read = 0
            assert len((await api.get("/v1/models")).json["data"]) == count
            reads.append(read)
    assert reads[0] == reads[1]  # it puts them together anew each time: the square of their number
