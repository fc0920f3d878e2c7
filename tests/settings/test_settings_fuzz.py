"""Every setting with every kind of wrong value, from every source: one sentence with the setting and its source."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from crucible_trio.errors import ConfigError
from crucible_trio.settings import load_settings
from crucible_trio.settings.loading import GROUPS
from crucible_trio.settings.upstreams import UpstreamSettings

SEEDS = range(3000)
QUICK_SEEDS = range(600)
MAY_BE_EMPTY = {"openai_deep_suffix"}  # an empty text turns the suffix off
# An empty list means none.
NO_ITEMS = {"allowed_origins", "apis", "server_names", "openai_deep_efforts", "upstream_starts_in_trace"}
IN_JSON = {
    "upstream_thinking",
    "upstream_extra_body",
    "upstream_think_tags",
    "upstream_prefill",
    "upstreams",
    "openai_models",
}
SECRET = "s3cret"


def all_settings() -> dict[str, dict[str, Any]]:
    """The JSON schema of each setting. The schema comes from the same types, but not from the code that converts."""
    found: dict[str, dict[str, Any]] = {}
    for group in GROUPS:
        for name, schema in msgspec.json.schema(group)["$defs"][group.__name__]["properties"].items():
            options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
            found[name] = options[0]
    return found


SETTINGS = all_settings()


def wrong_values(name: str) -> Iterator[object]:
    """Values that are empty, of another type, or out of range."""
    schema = SETTINGS[name]
    kind = schema.get("type", "enum")
    if name not in MAY_BE_EMPTY | NO_ITEMS:
        yield ""
    if kind in {"integer", "number"}:
        yield from ["many", "nan", "1 2", "0x10", "--1"]
        yield from [schema[bound] - 1 for bound in ("minimum",) if bound in schema]
        yield from [schema[bound] for bound in ("exclusiveMinimum",) if bound in schema]
        yield from [schema[bound] + 1 for bound in ("maximum",) if bound in schema]
    if kind == "integer":
        yield from ["1.5", "inf"]
    if kind == "enum":
        yield from ["magic", "Local", "0"]
    if kind == "boolean":
        yield from ["perhaps", "2"]
    if name == "bind":
        yield from [",", "127.0.0.1:99999", "127.0.0.1", ":80", "a b:80", "127.0.0.1:0,::1:80"]
    if name == "apis":
        yield from ["OpenAI", "openai,native"]
    if name == "allowed_origins":
        yield from ["x", "https://a.example/", "https://A.example", "https://a.example,*"]
    if name == "server_names":
        yield from ["a.example:80", "https://a.example", "*"]
    if name == "openai_deep_efforts":
        yield from ["huge", "high,"[:-1] + ",Low"]
    if name == "keys":
        yield from [SECRET, f":{SECRET}", "alice:", f"alice:{SECRET},alice:{SECRET}2", f"alice:{SECRET},bob:{SECRET}"]
    if name in IN_JSON:
        yield from ["{", "[1]", "5", '"x"', '{"a": NaN}', "[" * 100_000]
    if name in {"openai_models", "upstream_think_tags"}:
        yield from ['{"a": 5}', '{"": "b"}', '{"a": ""}', '{"a": null}']
    if name == "upstreams":
        yield from ['{"a": {}}', '{"a": 5}', '{"": {"base_url": "http://x"}}', '{"a b": {"base_url": "http://x"}}']
    if name == "upstream_starts_in_trace":
        yield from ["fast", "deep,Standard"]
    if name == "upstream_thinking":
        yield from ['{"fast": {}}', '{"deep": 5}']
    if kind == "string":
        yield "\udcff"  # a byte of the environment that is not UTF-8


def wrong_types(name: str) -> Iterator[str]:
    """TOML of other types than the setting's."""
    kind = SETTINGS[name].get("type", "enum")
    if kind != "boolean":
        yield "true"
    if kind not in {"integer", "number", "boolean"}:
        yield from ["1", "-1.5"]
    if kind != "object":
        yield "{ a = 1 }"
    if kind != "array":
        yield "[1]"
    if kind in {"array", "object"}:
        yield "'x'"
    if kind == "array":
        yield from ["[1]", "[[]]", "['']"]
    if name == "keys":
        yield from ["{ alice = 5 }", "{ '' = 'x' }", "{ alice = '' }", f"{{ alice = '{SECRET}', bob = '{SECRET}' }}"]
    yield from ["1979-05-27", "07:32:00"]


def check_sentence(error: ConfigError, name: str, origin: str) -> None:
    text = str(error)
    assert name in text
    assert origin in text
    assert "\n" not in text
    assert "\udcff" not in text
    assert len(text) < 400 + len(origin)
    assert SECRET not in text
    assert not re.search(r"Expected|`\$|Traceback|object at|Object|\bint\b|\bstr\b|NoneType|msgspec|class", text), text


@pytest.mark.parametrize("name", SETTINGS)
def test_a_wrong_variable_gives_a_sentence(name: str) -> None:
    variable = f"CRUCIBLE_{name.upper()}"
    values = list(wrong_values(name))
    assert values
    for value in values:
        with pytest.raises(ConfigError) as refusal:
            load_settings({variable: str(value)})
        check_sentence(refusal.value, name, f"(variable {variable})")


@pytest.mark.parametrize("name", SETTINGS)
def test_a_wrong_entry_of_a_file_gives_a_sentence(name: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    texts = [json.dumps(value) for value in wrong_values(name) if "\udcff" not in str(value) and len(str(value)) < 1000]
    for text in [*texts, *wrong_types(name)]:
        file.write_text(f"{name} = {text}\n")
        with pytest.raises(ConfigError) as refusal:
            load_settings({}, config_file=file)
        check_sentence(refusal.value, name, f"(file {file})")


@pytest.mark.parametrize("name", SETTINGS)
def test_a_wrong_option_gives_a_sentence(name: str) -> None:
    values = list(wrong_values(name))
    if SETTINGS[name].get("type") == "array":
        values = [(value,) for value in values if value not in {",", "high,Low"}]
    for value in [*values, object(), b"x", {"a": object()}]:
        if isinstance(value, dict) and name == "upstream_extra_body":
            continue  # it may hold anything
        with pytest.raises(ConfigError) as refusal:
            load_settings({}, option_names={name: "--option"}, **{name: value})
        check_sentence(refusal.value, name, "(option --option)")


TABLES = msgspec.json.schema(UpstreamSettings)["$defs"]
FIELDS = TABLES["UpstreamSettings"]["properties"]
# TOML texts of wrong values for single fields of a table.
WRONG_IN_TABLE = {
    "kind": ["'magic'", "''"],
    "base_url": ["''", "[]"],
    "key_variable": ["''", f"'{SECRET}'", "'A-B'", "'NOT_SET'", "'EMPTY'"],
    "key": [f"'{SECRET}'", "''"],
    "models": ["[]", "['']", "['a', 'a']", "'a'", "[[]]"],
    "thinking": ["{ fast = {} }", "{ deep = 5 }", "{ deep = { a = 1979-05-27 } }", "{ deep = { a = nan } }"],
    "starts_in_trace": ["['fast']", "'deep'"],
    "think_tags": ["{ '' = 'b' }", "{ a = '' }", "{ a = 5 }"],
    "limit_field": ["'limit'", "''"],
    "extra_body": ["{ a = 1979-05-27 }", "{ a = [inf] }", "[1]"],
    "reasoning_input": ["'thoughts'", "''"],
    "prefill": ["{ bodies = {} }", "{ body = 5 }", "{ echoes = 'perhaps' }", "{ message = { a = 1979-05-27 } }"],
    "headers": [
        f"{{ '' = '{SECRET}' }}",
        f"{{ 'a b' = '{SECRET}' }}",
        f'{{ "é" = "{SECRET}" }}',
        "{ X-Key = '' }",
        f'{{ X-Key = "{SECRET}\\n" }}',
        f'{{ X-Key = "{SECRET} " }}',
        f'{{ X-Key = "{SECRET}é" }}',
        "{ X-Key = 5 }",
        f"{{ authorization = 'Bearer {SECRET}' }}",
        "{ Content-Length = '5' }",
        "{ transfer-encoding = 'chunked' }",
    ],
    "capabilities": ["{ tool = true }", "{ tools = 'perhaps' }", "{ sampling = ['x'] }", "{ sampling = 'seed' }"],
    "unknown": ["1", "'x'", "{}"],
}


def wrong_fields() -> Iterator[tuple[str, str]]:
    for field, texts in WRONG_IN_TABLE.items():
        schema = FIELDS.get(field, {"type": "nothing"})
        kinds = {option.get("type", "object") for option in schema.get("anyOf", [schema])}
        if field in {"kind", "limit_field", "reasoning_input"}:
            kinds = {"string"}
        others = {"array": "[1]", "object": "{ a = 1 }", "boolean": "true", "integer": "5", "date": "1979-05-27"}
        yield from ((field, text) for text in texts)
        yield from ((field, text) for kind, text in others.items() if kind not in kinds and field != "unknown")


def test_every_field_of_a_table_is_tried() -> None:
    assert WRONG_IN_TABLE.keys() == FIELDS.keys() | {"unknown"}


@pytest.mark.parametrize(("field", "text"), list(wrong_fields()))
def test_a_wrong_field_of_a_table_gives_a_sentence_with_table_and_field(field: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    url = "" if field == "base_url" else "base_url = 'http://a'\n"
    file.write_text(f"[upstreams.good]\nbase_url = 'http://b'\n[upstreams.vllm]\n{url}{field} = {text}\n")
    with pytest.raises(ConfigError) as refusal:
        load_settings({"EMPTY": ""}, config_file=file)
    check_sentence(refusal.value, "upstreams.vllm", f"(file {file})")
    assert re.search(rf"\b{field}\b", str(refusal.value))


@pytest.mark.parametrize(
    "line",
    [
        "thinking = { deep = {} }",
        "starts_in_trace = ['deep']",
        "think_tags = {}",
        "limit_field = 'max_completion_tokens'",
        "extra_body = { a = 1 }",
        "reasoning_input = 'reasoning'",
        "prefill = { echoes = true }",
        "headers = { X-Team = 'blue' }",
    ],
)
def test_a_table_of_another_crucible_trio_refuses_the_fields_of_openais_api(line: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"[upstreams.a]\nbase_url = 'http://x'\nkind = 'crucible'\n{line}\n")
    field = line.partition(" ")[0]
    with pytest.raises(ConfigError) as refusal:
        load_settings({}, config_file=file)
    sentence = f"upstreams.a: {field} is for kind 'openai': set it on the server behind base_url (file {file})"
    assert str(refusal.value) == sentence
    file.write_text("[upstreams.a]\nbase_url = 'http://x'\nkind = 'crucible'\nmodels = ['m']\n")
    assert load_settings({}, config_file=file).engine.upstreams["a"].kind == "crucible"


def test_a_table_without_an_address_gives_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[upstreams.vllm]\nkind = 'openai'\n")
    with pytest.raises(ConfigError) as refusal:
        load_settings({}, config_file=file)
    assert str(refusal.value) == f"upstreams.vllm.base_url is missing (file {file})"


def random_text(chance: random.Random) -> str:
    pieces = ["", "0", "1", "-1", "1e9", "inf", "nan", "true", "a:b", "{", "}", "[", "]", '"', "'", ",", ":", "=", "\n"]
    pieces += ["127.0.0.1:80", "https://a", "\x00", "\udcff", "é", "\u2028", "null", "9" * 30, "deep", "local", " "]
    return "".join(chance.choice(pieces) for _ in range(chance.randrange(5)))


@pytest.mark.parametrize("seeds", [QUICK_SEEDS, pytest.param(SEEDS, marks=pytest.mark.slow)], ids=["quick", "all"])
def test_random_settings_load_or_give_a_sentence(seeds: range, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    refused = loaded = 0
    for seed in seeds:
        chance = random.Random(seed)
        names = chance.sample(sorted(SETTINGS), chance.randrange(1, 4))
        environment: dict[str, str] = {}
        options: dict[str, object] = {}
        lines = []
        for name in names:
            text = random_text(chance)
            source = chance.randrange(3)
            if source == 0:
                environment[f"CRUCIBLE_{name.upper()}"] = text
            elif source == 1:
                options[name] = text
            else:
                lines.append(f"{name} = {json.dumps(text) if chance.random() < 0.7 else text}")
        file.write_text("\n".join(lines), "utf-8", errors="surrogateescape")
        message = ""
        try:
            load_settings(environment, config_file=file, **options)
        except ConfigError as error:
            message = str(error)
        if not message:
            loaded += 1
            continue
        refused += 1
        origins = [f"variable {variable}" for variable in environment] + [f"argument {name}" for name in options]
        assert any(origin in message for origin in [*origins, f"file {file}"]), seed
        assert "\n" not in message, seed
    assert refused > len(seeds) / 2
    assert loaded > len(seeds) / 60
