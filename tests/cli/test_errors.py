"""A command reports a configuration error as one sentence, whichever task raised it."""

from __future__ import annotations

import ast
from pathlib import Path

import click
import pytest
import trio

import crucible_trio
from crucible_trio.cli.main import _run
from crucible_trio.errors import ConfigError

PACKAGE = Path(crucible_trio.__file__).parent


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_config_error_becomes_one_sentence_at_any_depth_of_nurseries(depth) -> None:
    async def fail(levels: int) -> None:
        if not levels:
            message = "cannot listen on 127.0.0.1:8000"
            raise ConfigError(message)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, levels - 1)

    with pytest.raises(click.ClickException) as caught:
        _run(lambda: fail(depth))
    assert (caught.value.message, caught.value.exit_code) == ("cannot listen on 127.0.0.1:8000", 2)
    assert caught.value.__context__ is None


def test_other_errors_keep_their_group_and_results_are_returned() -> None:
    async def fail() -> None:
        async with trio.open_nursery():
            raise RuntimeError

    async def answer() -> int:
        return 3

    with pytest.RaisesGroup(RuntimeError):
        _run(fail)
    assert _run(answer) == 3


def test_no_block_for_groups_raises() -> None:
    # Before Python 3.11.4 an exception raised inside `except*` is wrapped in a group, and Debian 12 has 3.11.2.
    blocks = 0
    for file in PACKAGE.glob("**/*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            for handler in node.handlers if isinstance(node, ast.TryStar) else ():
                blocks += 1
                assert not any(isinstance(inner, ast.Raise) for inner in ast.walk(handler)), f"{file}:{handler.lineno}"
    assert blocks > 0
