from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from crucible_trio.engines import open_engine
from crucible_trio.errors import ConfigError
from crucible_trio.request import Request
from crucible_trio.settings import EngineSettings


async def test_replay_opens(drive) -> None:
    async with open_engine(EngineSettings(engine="replay", replay_speed=math.inf)) as engine:
        assert engine.info.name == "replay"
        with trio.fail_after(10):
            pieces, finish = await drive(engine, Request("x"))
    assert pieces
    assert finish.reason == "stop"


async def test_upstream_opens() -> None:
    settings = EngineSettings(engine="upstream", upstream_base_url="http://127.0.0.1:1/v1", model="m")
    async with open_engine(settings) as engine:
        assert engine.info.name == "upstream"
        assert engine.info.models == ("m",)


async def test_local_opens(drive, weights: Path) -> None:
    pytest.importorskip("xllamacpp")
    with trio.fail_after(60):
        async with open_engine(EngineSettings(engine="local", model=str(weights), local_slots=1)) as engine:
            assert engine.info.name == "local"
            pieces, finish = await drive(engine, Request("Hello", max_output_tokens=3))
    assert pieces
    assert finish.reason == "length"


async def test_a_model_that_is_missing_is_an_error_and_no_recording_replaces_it(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.gguf")
    with pytest.raises(ConfigError):
        async with open_engine(EngineSettings(engine="local", model=missing)):
            pass


def test_unused_engines_are_not_imported() -> None:
    program = "import sys, crucible_trio.engines; print('httpx' in sys.modules, 'xllamacpp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]
