"""`GET /v1/models/{model}`, which `models.retrieve` of an SDK calls."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

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
