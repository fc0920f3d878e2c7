"""The smallest and the largest value of each number: a server starts with it and answers."""

from __future__ import annotations

from functools import partial

import httpx
import msgspec
import pytest
import trio

from crucible_trio import open_pipeline
from crucible_trio.server import Config, serve
from crucible_trio.settings import load_settings
from crucible_trio.settings.loading import GROUPS
from crucible_trio.web import create_app

LARGEST = {"integer": 2**63 - 1, "number": float("inf")}


def extremes() -> list[tuple[str, float]]:
    found = []
    for group in GROUPS:
        for name, schema in msgspec.json.schema(group)["$defs"][group.__name__]["properties"].items():
            kind = schema.get("type")
            if kind in LARGEST and name != "workers":  # one server of one process runs here
                found += [(name, schema.get("minimum", 1e-9)), (name, schema.get("maximum", LARGEST[kind]))]
            if kind == "number":
                found.append((name, 1e15))
    return found


@pytest.mark.parametrize(("name", "value"), extremes())
async def test_a_server_runs_with_an_extreme_value(name: str, value: float) -> None:
    async def engine(request):
        yield "one"

    settings = load_settings({f"CRUCIBLE_{name.upper()}": str(value)})
    stopping = trio.Event()
    with trio.fail_after(30):
        async with open_pipeline(engine, settings.pipeline) as pipeline, trio.open_nursery() as nursery:
            config = Config.from_settings(settings.server, settings.pipeline)
            config.bind = ["127.0.0.1:0"]
            app = create_app(pipeline, settings.apis)
            [url] = await nursery.start(partial(serve, app, config, drain=pipeline.drain, shutdown=stopping.wait))
            async with httpx.AsyncClient(base_url=url, verify=False) as client:
                response = await client.get("/v1/generate", params={"prompt": "x"})
            stopping.set()
    assert response.status_code == 200
    assert "event: error" not in response.text
    ends = {"completed", "incomplete", "cancelled"}  # a deadline or a grace period of 0 may end it immediately
    assert any(f'"stream.{end}"' in response.text for end in ends)
