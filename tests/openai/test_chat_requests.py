"""The fields of a chat completion request: supported, harmless, or refused by name."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from trio.testing import MockClock

from crucible_trio.apis.kit.request_builder import RequestBuilder
from crucible_trio.apis.openai.chat.messages import MESSAGE
from crucible_trio.apis.openai.chat.requests import BODY
from crucible_trio.engine import Capabilities
from crucible_trio.engines.upstream.request_body import UPSTREAM_CAPABILITIES
from crucible_trio.errors import ConfigError
from crucible_trio.request import Message, Parameters, Request, Sampling
from crucible_trio.settings import ApiSettings, load_settings
from crucible_trio.testing import ScriptedEngine

SAMPLING = ("temperature", "top_p", "seed", "stop")


def engine(*, sampling: Iterable[str] = (), capabilities: Capabilities | None = None) -> ScriptedEngine:
    return ScriptedEngine("a", models=["small", "org/large"], sampling=sampling, capabilities=capabilities)


def able() -> ScriptedEngine:
    """An engine with the capabilities of an upstream."""
    return engine(capabilities=UPSTREAM_CAPABILITIES)


async def asked(open_api, fields: dict[str, object], **settings: object) -> Request:
    """The request that the engine gets."""
    async with open_api(engine=settings.pop("engine", None) or engine(sampling=SAMPLING), **settings) as api:
        answer = await api.chat(**fields)
        assert answer.status == 200, answer.body
        [run] = api.engine.runs
        return run.request


async def refusal(open_api, fields: dict[str, object], **settings: object) -> tuple[object, ...]:
    """Status, code and param of the refusal. Checks that no stream was started."""
    async with open_api(engine=settings.pop("engine", None) or engine(sampling=SAMPLING), **settings) as api:
        answers = [await api.chat(stream=stream, **fields) for stream in (False, True)]
        assert await api.pipeline.list() == []
        assert answers[0].body == answers[1].body
        error = answers[0].error
        assert api.number("requests_refused_total", code=error["code"]) == 2
        return answers[0].status, error["code"], error["param"]


async def test_every_supported_field_reaches_the_engine(open_api, autojump_clock: MockClock) -> None:
    fields = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Why"}, {"type": "text", "text": "so?"}]},
            {"role": "assistant", "content": "So."},
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Why?", "name": "Ann"},
        ],
        "model": "org/large",
        "max_completion_tokens": 7,
        "reasoning_effort": "high",
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 1,
        "stop": ["x", "y"],
    }
    assert await asked(open_api, fields) == Request(
        input=(
            Message("system", "Be brief."),
            Message("user", "Why\nso?"),
            Message("assistant", "So."),
            Message("system", "Be kind."),
            Message("user", "Why?"),
        ),
        mode="deep",
        model="org/large",
        max_output_tokens=7,
        sampling=Sampling(0.5, 0.9, 1, ("x", "y")),
    )


async def test_fields_that_are_not_given_use_the_engines_defaults(open_api, autojump_clock: MockClock) -> None:
    assert await asked(open_api, {}) == Request(input=(Message("user", "Why?"),), mode="standard", model="small")


async def test_the_message_of_an_answer_can_be_sent_back_unchanged(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        message = (await api.chat()).json["choices"][0]["message"]
        message |= {"tool_calls": None, "function_call": None, "audio": None, "annotations": []}
        message |= {"reasoning_content": "x", "reasoning": "x"}
        messages = [{"role": "user", "content": "Why?"}, message, {"role": "user", "content": "Who?"}]
        assert (await api.chat(messages=messages)).status == 200
        assert api.engine.runs[-1].request.messages[1] == Message("assistant", "a")


async def test_empty_instructions_and_empty_answers_are_dropped(open_api, autojump_clock: MockClock) -> None:
    for role in ("system", "developer", "assistant"):
        for content in ("", None, [], [{"type": "text", "text": ""}]):
            messages = [{"role": role, "content": content}, {"role": "user", "content": "Why?"}]
            assert (await asked(open_api, {"messages": messages})).input == (Message("user", "Why?"),)


# Limits


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_both_names_of_the_token_limit_work(open_api, name, autojump_clock: MockClock) -> None:
    assert (await asked(open_api, {name: 5})).max_output_tokens == 5
    assert await refusal(open_api, {name: 0}) == (400, "invalid_request", name)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_over_the_servers_maximum_counts_as_the_maximum(
    open_api, name, autojump_clock: MockClock
) -> None:
    for limit, counts in ((49, 49), (50, 49), (10**18, 49)):
        assert (await asked(open_api, {name: limit}, max_output_tokens=49)).max_output_tokens == counts


async def test_two_limits_that_differ_are_refused(open_api, autojump_clock: MockClock) -> None:
    assert (await asked(open_api, {"max_tokens": 5, "max_completion_tokens": 5})).max_output_tokens == 5
    fields = {"max_tokens": 5, "max_completion_tokens": 6}
    assert await refusal(open_api, fields) == (400, "invalid_request", "max_tokens")


# Modes and models


@pytest.mark.parametrize(
    ("fields", "model", "mode"),
    [
        ({}, "small", "standard"),
        ({"model": "small"}, "small", "standard"),
        ({"model": "small:deep"}, "small", "deep"),
        ({"model": "org/large:deep"}, "org/large", "deep"),
        ({"model": "small:deep", "reasoning_effort": "none"}, "small", "deep"),
        ({"model": "gpt"}, "org/large", "standard"),
        ({"model": "gpt", "reasoning_effort": "medium"}, "org/large", "deep"),
        ({"model": "o3"}, "small", "deep"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "small", "standard"),
        ({"chat_template_kwargs": {}}, "small", "standard"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "small", "deep"),
        ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"}, "small", "deep"),
        *[({"reasoning_effort": effort}, "small", "standard") for effort in ("none", "minimal", "low", None)],
        *[({"reasoning_effort": effort}, "small", "deep") for effort in ("medium", "high", "xhigh", "max")],
    ],
)
async def test_model_names_and_efforts_select_model_and_mode(
    open_api, fields, model, mode, autojump_clock: MockClock
) -> None:
    request = await asked(open_api, fields, openai_models={"gpt": "org/large", "o3": "small:deep"})
    assert (request.model, request.mode) == (model, mode)


async def test_the_meaning_of_names_and_efforts_is_configurable(open_api, autojump_clock: MockClock) -> None:
    settings = {"openai_deep_suffix": "-thinking", "openai_deep_efforts": ("low",)}
    assert (await asked(open_api, {"model": "small-thinking"}, **settings)).mode == "deep"
    assert (await asked(open_api, {"reasoning_effort": "low"}, **settings)).mode == "deep"
    assert (await asked(open_api, {"reasoning_effort": "high"}, **settings)).mode == "standard"
    for suffix in ("-thinking", ""):
        settings = {"openai_deep_suffix": suffix}
        assert await refusal(open_api, {"model": "small:deep"}, **settings) == (404, "model_not_found", "model")


def test_names_and_efforts_can_be_configured_in_the_environment() -> None:
    settings = load_settings(
        {
            "CRUCIBLE_OPENAI_MODELS": '{"o3": "small:deep"}',
            "CRUCIBLE_OPENAI_DEEP_EFFORTS": "high, max",
            "CRUCIBLE_OPENAI_DEEP_SUFFIX": "",
        }
    ).apis
    assert settings.openai_models == {"o3": "small:deep"}
    assert settings.openai_deep_efforts == ("high", "max")
    assert settings.openai_deep_suffix == ""
    with pytest.raises(ConfigError, match="openai_deep_efforts"):
        load_settings({"CRUCIBLE_OPENAI_DEEP_EFFORTS": "huge"})


def test_a_models_full_name_wins_over_the_deep_suffix() -> None:
    asks = RequestBuilder(ScriptedEngine(models=("small", "small:deep")), ApiSettings(), 100)
    assert asks.resolve("small:deep") == ("small:deep", "standard")
    assert asks.resolve("small:deep:deep") == ("small:deep", "deep")


def test_an_alias_for_a_missing_model_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"openai_models\.gpt must be .*: there is no model 'lost'"):
        RequestBuilder(ScriptedEngine(models=("small",)), ApiSettings(openai_models={"gpt": "lost"}), 100)


@pytest.mark.parametrize("model", ["gpt-4o", "", "small:", ":deep", "Small", "small:deep:deep"])
async def test_an_unknown_model_is_404_as_with_openai(open_api, model, autojump_clock: MockClock) -> None:
    assert await refusal(open_api, {"model": model}) == (404, "model_not_found", "model")


async def test_an_unknown_effort_is_refused(open_api, autojump_clock: MockClock) -> None:
    assert await refusal(open_api, {"reasoning_effort": "huge"}) == (400, "invalid_request", "reasoning_effort")


async def test_other_chat_template_arguments_go_to_an_engine_that_takes_unknown_fields(
    open_api, autojump_clock: MockClock
) -> None:
    fields = {"chat_template_kwargs": {"enable_thinking": True, "x": 1}}
    assert await refusal(open_api, fields) == (400, "unsupported_parameter", "chat_template_kwargs")
    request = await asked(open_api, fields, engine=able())
    assert (request.mode, request.extra) == ("deep", fields)
    bad = {"chat_template_kwargs": {"enable_thinking": "x"}}
    assert await refusal(open_api, bad) == (400, "invalid_request", "chat_template_kwargs.enable_thinking")


# Sampling


async def test_one_stop_text_is_a_list_of_one(open_api, autojump_clock: MockClock) -> None:
    assert (await asked(open_api, {"stop": "x"})).sampling == Sampling(stop=("x",))
    assert (await asked(open_api, {"stop": []})).sampling == Sampling()


STEERING = {
    "temperature": 0,
    "top_p": 0.9,
    "top_k": 3,
    "min_p": 0.1,
    "seed": 1,
    "frequency_penalty": 0.5,
    "presence_penalty": -0.5,
    "logit_bias": {"5": 1},
    "verbosity": "low",
}


@pytest.mark.parametrize("name", STEERING)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_field_that_only_steers_is_ignored_with_a_header_or_refused_by_a_setting(
    open_api, name, stream, autojump_clock: MockClock
) -> None:
    async with open_api(engine=engine()) as api:
        answer = await api.chat(stream=stream, **{name: STEERING[name]})
        assert (answer.status, answer.header("crucible-ignored")) == (200, name)
        assert api.engine.runs[0].request == Request((Message("user", "Why?"),), model="small")
    fields = {name: STEERING[name]}
    expected = (400, "unsupported_parameter", name)
    assert await refusal(open_api, fields, engine=engine(), strict_fields=True) == expected


async def test_all_ignored_fields_are_named(open_api, autojump_clock: MockClock) -> None:
    async with open_api(engine=engine(sampling=["top_p"])) as api:
        answer = await api.chat(temperature=0.5, top_p=0.5, seed=1, max_tokens=5)
        assert answer.header("crucible-ignored") == "temperature, seed"
        assert api.engine.runs[0].request.sampling == Sampling(top_p=0.5)
        assert not (await api.chat(top_p=0.5)).has_header("crucible-ignored")


async def test_a_stop_text_that_the_engine_does_not_honour_is_refused(open_api, autojump_clock: MockClock) -> None:
    assert await refusal(open_api, {"stop": "x"}, engine=engine()) == (400, "unsupported_parameter", "stop")


async def test_every_field_that_steers_reaches_an_engine_that_honours_it(open_api, autojump_clock: MockClock) -> None:
    request = await asked(open_api, STEERING, engine=able())
    steering = {name: value for name, value in STEERING.items() if name != "verbosity"}
    assert request.sampling == Sampling(**steering)
    assert request.parameters == Parameters(verbosity="low")


async def test_openais_default_sampling_is_accepted_by_an_engine_without_sampling(
    open_api, autojump_clock: MockClock
) -> None:
    async with open_api(engine=engine()) as api:
        answer = await api.chat(temperature=1, top_p=1.0, frequency_penalty=0, logit_bias={}, verbosity="medium")
        assert answer.status == 200
        assert not answer.has_header("crucible-ignored")
        assert api.engine.runs[0].request.sampling == Sampling()
    assert (await asked(open_api, {"temperature": 1, "top_p": 1.0})).sampling == Sampling(1, 1)


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", 3), ("top_p", 0), ("seed", -1), ("stop", ["x"] * 17), ("stop", [""])]
)
async def test_a_value_out_of_its_range_is_refused_by_name(open_api, field, value, autojump_clock: MockClock) -> None:
    status, code, param = await refusal(open_api, {field: value})
    assert (status, code, str(param).partition("[")[0]) == (400, "invalid_request", field)


# Harmless and refused fields


ANYTHING = ["text", 1, True, {"x": "y"}, ["x"], None]


@pytest.mark.parametrize("name", BODY.harmless)
async def test_a_harmless_field_changes_nothing(open_api, name, autojump_clock: MockClock) -> None:
    plain = await asked(open_api, {})
    for value in ANYTHING:
        assert await asked(open_api, {name: value}) == plain


@pytest.mark.parametrize("name", BODY.refused)
async def test_an_unsupported_field_is_refused_by_name_unless_it_asks_for_nothing(
    open_api, name, autojump_clock: MockClock
) -> None:
    plain = await asked(open_api, {})
    for value in [*BODY.refused[name], None]:
        assert await asked(open_api, {name: value}) == plain
    for value in ["x", 2, {"type": "json_object"}, [{"type": "function"}]]:
        assert await refusal(open_api, {name: value}) == (400, "unsupported_parameter", name)


@pytest.mark.parametrize("name", MESSAGE.refused)
async def test_an_unsupported_field_of_a_message_is_refused_by_name(open_api, name, autojump_clock: MockClock) -> None:
    messages = [{"role": "assistant", "content": "a", name: "x"}]
    expected = (400, "unsupported_parameter", f"messages[0].{name}")
    assert await refusal(open_api, {"messages": messages}) == expected


@pytest.mark.parametrize("name", ["x", "input", "max_output_tokens", "mode", "Model", ""])
async def test_an_unknown_field_goes_to_an_engine_that_takes_it_and_is_refused_by_name_for_others(
    open_api, name, autojump_clock: MockClock
) -> None:
    assert await refusal(open_api, {name: 1}) == (400, "unknown_parameter", name)
    assert (await asked(open_api, {name: {"y": [1]}}, engine=able())).extra == {name: {"y": [1]}}


@pytest.mark.parametrize(
    ("messages", "code", "param"),
    [
        ([], "invalid_request", "messages"),
        ("Why?", "invalid_request", "messages"),
        (["Why?"], "invalid_request", "messages[0]"),
        ([{"role": "user"}], "invalid_request", "messages[0].content"),
        ([{"content": "Why?"}], "invalid_request", "messages[0].role"),
        ([{"role": "user", "content": ""}], "invalid_request", "messages[0].content"),
        ([{"role": "user", "content": []}], "invalid_request", "messages[0].content"),
        ([{"role": "user", "content": 1}], "invalid_request", "messages[0].content"),
        ([{"role": "user", "content": None}], "invalid_request", "messages[0].content"),
        ([{"role": "tool", "content": "x", "tool_call_id": "c"}], "unsupported_parameter", "messages[0].role"),
        ([{"role": "robot", "tool_call_id": "c", "x": 1}], "invalid_request", "messages[0].role"),
        ([{"role": "user", "content": "x", "tool_calls": [{}]}], "unknown_parameter", "messages[0].tool_calls"),
        ([{"role": "user", "content": "x", "tool_call_id": "c"}], "unknown_parameter", "messages[0].tool_call_id"),
        ([{"role": "system", "content": "x", "tool_call_id": "c"}], "unknown_parameter", "messages[0].tool_call_id"),
        ([{"role": "system", "content": ""}], "invalid_request", "messages"),
        ([{"role": "assistant", "content": None}], "invalid_request", "messages"),
        ([{"role": "user", "content": "x", "x": 1}], "unknown_parameter", "messages[0].x"),
        ([{"role": "user", "content": [{"type": "text"}]}], "invalid_request", "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"text": "x"}]}], "invalid_request", "messages[0].content[0].type"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x", "x": 1}]}],
            "unknown_parameter",
            "messages[0].content[0].x",
        ),
        *[
            (
                [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": kind, kind: {}}]}],
                "unsupported_parameter",
                "messages[0].content[1].type",
            )
            for kind in ("image_url", "input_audio", "file", "refusal", "input_text", "x")
        ],
    ],
)
async def test_an_invalid_message_is_refused_with_the_path_of_the_field(
    open_api, messages, code, param, autojump_clock: MockClock
) -> None:
    assert await refusal(open_api, {"messages": messages}) == (400, code, param)


async def test_stream_options_need_a_stream(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        answer = await api.chat(stream_options={"include_usage": True})
        assert (answer.status, answer.error["param"]) == (400, "stream_options")
        answer = await api.chat(stream=True, stream_options={"x": True})
        assert (answer.status, answer.error["param"]) == (400, "stream_options.x")
        assert (await api.chat(stream=True, stream_options={"include_obfuscation": True})).status == 200
        assert (await api.chat(stream=False, stream_options=None)).status == 200
