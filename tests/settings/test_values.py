"""Values are converted, and a wrong part of one is named in plain words."""

from __future__ import annotations

import itertools
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from crucible_trio.config import Count, Secret, Text
from crucible_trio.errors import ConfigError
from crucible_trio.settings.values import convert, did_you_mean, make_struct, quote, read_toml


class Server(msgspec.Struct, forbid_unknown_fields=True):
    url: Text
    slots: Count = 1
    kind: Literal["a", "b"] | None = None

    def __post_init__(self) -> None:
        if self.url == "x":
            message = "the url is x"
            raise ConfigError(message)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ([{"url": "u"}, {"url": ""}], list[Server], "it[1].url must be text that is not empty, but it is empty"),
        ([{"url": "u", "slots": 0}], list[Server], "it[0].slots must be a whole number of 1 or more, not 0"),
        ([{"url": "u", "kind": "c"}], list[Server], "it[0].kind must be one of a, b, not 'c'"),
        ([{"url": "u", "kind": None, "sluts": 1}], list[Server], "it[0] has the unknown key 'sluts': a key must be one "
         "of url, slots, kind"),
        ([{}], list[Server], "it[0].url is missing"),
        (["u"], list[Server], "it[0] must be a table, not 'u'"),
        ({"url": "x"}, Server, "it: the url is x"),
        ("u", list[Server], "it must be a list, not 'u'"),
        ({"a b": 5}, dict[str, str], "it.'a b' must be text, not 5"),
        ({"a-b": True}, dict[str, str], "it.a-b must be text, not true"),
        ({"c": 1}, dict[Literal["a"], int], "it has the unknown key 'c': a key must be one of a"),
        ({"a": ["x"], "b": 5}, dict[str, list[str]], "it.b must be a list, not 5"),
        (["x"], tuple[Secret, ...] | None, None),
        ([5], tuple[Secret, ...] | None, "it[0] must be text that is not empty"),
        (5, dict[str, Secret], "it must be a table"),
        (date(2026, 1, 1), int, "it must be a whole number, not a date"),
        ([1], str, "it must be text, not a list"),
        ({"a": 1}, float, "it must be a number, not a table"),
        (0.5, Annotated[float, msgspec.Meta(gt=1)], "it must be a number greater than 1, not 0.5"),
        ([1 << 20_000], tuple[Annotated[int, msgspec.Meta(ge=0, le=9)], ...], "it[0] must be a whole number from 0 to "
         "9, not a number with thousands of digits"),
        ("x" * 100, int, f"it must be a whole number, not '{'x' * 59}..."),
        (["\udcff"], tuple[str, ...], "it must be UTF-8 text"),
        ({"\udcff": 1}, dict[str, Any], "it must be UTF-8 text"),
    ],
    ids=itertools.count(),  # pytest cannot write the large number into an id
)  # fmt: skip
def test_a_wrong_part_is_named(value: object, kind: object, message: str | None) -> None:
    if message is None:
        convert("it", value, kind)
        return
    with pytest.raises(ConfigError) as refusal:
        convert("it", value, kind)
    assert str(refusal.value) == message
    assert refusal.value.settings == ("it",)


def test_a_value_that_is_nested_too_deeply_is_refused() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ConfigError, match="it is nested too deeply"):
        convert("it", value, Any)


def test_text_may_stand_for_a_number() -> None:
    assert convert("it", "5", int) == 5
    assert convert("it", None, int | None) is None
    assert make_struct(Server, {"url": "u", "slots": "3", "other": 1}) == Server("u", 3)


def test_a_quoted_value_is_one_line() -> None:
    assert quote("a\nb") == r"'a\nb'"
    assert quote(float("inf")) == "inf"


def test_a_similar_name_is_suggested() -> None:
    assert did_you_mean("engin", ["engine", "bind"]) == ", did you mean engine?"
    assert did_you_mean("x", ["engine", "bind"]) == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"\xff", "it is not UTF-8 text"),
        (b"a = ", "it is not TOML: Invalid value (at end of document)"),
        (b"a = " + b"[" * 100_000, "it is nested too deeply"),
        (b"a = " + b"9" * 5000, "it is not TOML: "),  # Python refuses to read so long a number
    ],
)
def test_a_file_that_cannot_be_read_gives_the_reason(content: bytes | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as refusal:
        read_toml(file, "file", " (option --x)")
    assert str(refusal.value).startswith(f"cannot read the file {file}: {reason}")
    assert str(refusal.value).endswith(" (option --x)")
