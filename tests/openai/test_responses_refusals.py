"""Unsupported fields of a response request are refused by name and start nothing. Harmless ones are ignored."""

from __future__ import annotations

import pytest

ASK = {"model": "scripted", "input": "Why?"}
USER = {"role": "user", "content": "And?"}
PATH = "/v1/responses"
PART = "input[].content[]"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tools"),
        ({"tools": [{"type": "custom", "name": "f"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"include": ["reasoning.encrypted_content", "reasoning.more"]}, "include"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"background_options": {"completion_window": "2h"}}, "background_options"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"image": {}}, "image"),
        ({"input": [{"type": "compaction_trigger"}]}, "input[0].type"),
        ({"access_programs": {}}, "access_programs"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {}}}}, "text.format"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"reasoning": {"context": "all_turns"}}, "reasoning.context"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]}, "input[0].type"),
        ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, "input[0].type"),
        ({"input": [{"type": ["message"], "role": "user", "content": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ],
)
async def test_an_unsupported_field_is_refused_by_name(
    fields: dict[str, object], param: str, open_api, autojump_clock
) -> None:
    await _is_refused(open_api, ASK | fields, 400, "unsupported_parameter", param)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"mode": "deep"}, "mode"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"reasoning": {"depth": 3}}, "reasoning.depth"),
        ({"text": {"size": 3}}, "text.size"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "text", "x": 1}}}, "text.format.x"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search", "external_web_access": True}]}, "tools.web_search"),
        ({"input": [USER | {"name": "Eve"}, USER | {"name": "Bob"}]}, "input[].name"),
        ({"input": [USER, {"type": "web_search_call", "id": "ws_1"}]}, "input[].web_search_call"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "x", "b": 1}]}]}, f"{PART}.b"),
    ],
)  # fmt: skip
async def test_an_unknown_field_is_ignored_and_a_header_names_it(
    fields: dict[str, object], name: str, open_api, autojump_clock
) -> None:
    async with open_api("Hi") as api:
        answer = await api.post(PATH, ASK | fields)
    assert (answer.status, answer.header("crucible-ignored")) == (200, name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a\r\nb, c", "a%0D%0Ab%2C%20c"),
        ("\u00e9[0]", "%C3%A9[0]"),
        ("100%", "100%25"),
        ("", '""'),
        ("n" * 80, "n" * 80),
        ("n" * 81, "n" * 80 + "..."),
        ("n" * 79 + "\u00e9", "n" * 79 + "..."),
        ("\u00e9" * 100_000, "%C3%A9" * 13 + "..."),
    ],
)
async def test_every_name_fits_into_the_header(name: str, expected: str, open_api, autojump_clock) -> None:
    async with open_api("Hi") as api:
        answer = await api.post(PATH, ASK | {name: 1, "null": None, "x": 1})
    assert (answer.status, answer.header("crucible-ignored")) == (200, f"{expected}, x")


async def test_the_header_counts_the_names_that_it_leaves_out(open_api, autojump_clock) -> None:
    names = [f"x{number}" for number in range(50)]
    async with open_api("Hi") as api:
        for count, more in ((20, []), (21, ["and 1 more"]), (50, ["and 30 more"])):
            answer = await api.post(PATH, ASK | dict.fromkeys(names[:count], 1))
            assert answer.header("crucible-ignored") == ", ".join(names[:20] + more)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": 3}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["text"]}, "input[0]"),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": ""}]}, "input[0].content"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options.include_usage"),
        ({"background": True, "store": False}, "store"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {"a": "b" * 513}}, "metadata"),
        ({"metadata": {"a" * 65: "b"}}, "metadata"),
        ({"metadata": {str(number): "b" for number in range(17)}}, "metadata"),
        ({"reasoning": {"effort": "extreme"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
        ({"reasoning": 3}, "reasoning"),
        ({"text": "long"}, "text"),
        ({"instructions": ["x"]}, "instructions"),
        ({"truncation": "left"}, "truncation"),
        ({"max_tool_calls": 0}, "max_tool_calls"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
    ],
)
async def test_an_invalid_value_is_refused_by_name(
    fields: dict[str, object], param: str, open_api, autojump_clock
) -> None:
    error = await _is_refused(open_api, ASK | fields, 400, "invalid_request", None)
    assert error["param"] == param


async def test_a_wrong_word_is_refused_with_the_right_ones(open_api, autojump_clock) -> None:
    error = await _is_refused(open_api, ASK | {"reasoning": {"summary": "zz"}}, 400, "invalid_request", None)
    assert error["message"] == "reasoning.summary is one of: auto, concise, detailed"


async def test_an_unknown_model_is_404(open_api, autojump_clock) -> None:
    await _is_refused(open_api, ASK | {"model": "gpt-9"}, 404, "model_not_found", "model")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000, b'{"input": "a", "input": 1}'])
async def test_an_invalid_body_is_400(body: bytes, open_api, autojump_clock) -> None:
    async with open_api("Hi") as api:
        answer = await api.post(PATH, body, Content_Type="application/json")
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
        assert await api.pipeline.list() == []


async def test_a_query_parameter_of_a_start_is_refused(open_api, autojump_clock) -> None:
    async with open_api("Hi") as api:
        answer = await api.post(f"{PATH}?stream=true", ASK)
        assert (answer.status, answer.error["param"]) == (400, "stream")
        assert await api.pipeline.list() == []


async def test_an_invalid_idempotency_key_is_refused(open_api, autojump_clock) -> None:
    async with open_api("Hi") as api:
        answer = await api.post(PATH, ASK, Idempotency_Key="a b")
        assert (answer.status, answer.error["param"]) == (400, "Idempotency-Key")
        assert await api.pipeline.list() == []


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "max_tool_calls": 3},
        {"tools": [{"type": "function", "name": "f"}], "tool_choice": "none", "client_metadata": {"a": "b"}},
        {"include": ["web_search_call.results", "message.input_image.image_url"], "frequency_penalty": 0},
        {"tools": None, "tool_choice": "auto", "include": [], "truncation": "disabled", "top_logprobs": 0},
        {"previous_response_id": None, "conversation": None, "prompt": None, "moderation": None},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}},
        {"reasoning": {"effort": None, "summary": "auto", "context": "auto", "mode": "standard"}},
        {"user": "u", "safety_identifier": "s", "service_tier": "flex"},
        {"store": False, "include": ["reasoning.encrypted_content"]},
        {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "implicit"}},
        {"temperature": 1, "top_p": 1.0, "metadata": {}, "store": None, "background": None, "stream": None},
        {"input": [{"role": "system", "content": ""}, {"role": "user", "content": "Why?"}]},
        {"input": [{"role": "user", "content": "Why?"}, {"type": "message", "role": "assistant", "content": []}, USER]},
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        {"instructions": "", "background_options": {"completion_window": "soonest"}, "context_management": []},
    ],
)
async def test_a_harmless_or_empty_field_is_accepted(fields: dict[str, object], open_api, autojump_clock) -> None:
    async with open_api("Hi") as api:
        answer = await api.post(PATH, ASK | fields)
    assert answer.status == 200, answer.body


@pytest.mark.parametrize(
    ("settings", "status", "code"),
    [
        ({"max_streams": 1}, 503, "overloaded"),
        ({"max_streams_per_owner": 1, "keys": {"alice": "key"}}, 429, "too_many_streams"),
    ],
)
async def test_a_reached_limit_has_a_retry_after(
    settings: dict[str, object], status: int, code: str, open_api, autojump_clock
) -> None:
    async with open_api(1_000, "Hi", **settings) as api:
        headers = {"Authorization": "Bearer key"} if "keys" in settings else {}
        await api.post(PATH, ASK | {"background": True}, **headers)
        answer = await api.post(PATH, ASK | {"background": True}, **headers)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert "retry-after" in answer.headers
    assert "x-should-retry" not in answer.headers


async def test_what_only_steers_is_ignored_with_a_header_or_refused_by_a_setting(open_api, autojump_clock) -> None:
    async with open_api("Hi") as api:
        answer = await api.post(PATH, ASK | {"temperature": 0.5, "max_output_tokens": 10**9})
        assert (answer.status, answer.header("crucible-ignored")) == (200, "temperature")
        assert answer.json["max_output_tokens"] == 10**9  # as asked
        [run] = api.engine.runs
        assert run.request.max_output_tokens == api.pipeline.settings.max_output_tokens
    async with open_api("Hi", strict_fields=True) as api:
        answer = await api.post(PATH, ASK | {"temperature": 0.5})
        assert (answer.status, answer.error["param"]) == (400, "temperature")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"mode": "deep"}, "mode"),
        ({"reasoning": {"depth": 3}}, "reasoning.depth"),
        ({"text": {"size": 3}}, "text.size"),
        ({"text": {"format": {"type": "text", "x": 1}}}, "text.format.x"),
        ({"input": [USER, USER | {"name": "Eve"}]}, "input[1].name"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a", "x": 1}]}]},
            "input[0].content[0].x",
        ),
        ({"tools": [{"type": "web_search"}, {"type": "function", "name": "f", "x": 1}]}, "tools[1].x"),
        ({"tools": [{"type": "mcp"}, {"type": "fuction", "name": "f"}]}, "tools[1].type"),
        ({"tools": [{"type": "web_search_2026"}]}, "tools[0].type"),
        ({"input": [{"type": "additional_tools", "tools": [{"type": "teleport"}]}, USER]}, "input[0].tools[0].type"),
        (
            {"tools": [], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "teleport"}]}},
            "tool_choice.tools[0].type",
        ),
    ],
)
async def test_a_setting_refuses_unknown_fields_by_name(open_api, fields, param, autojump_clock) -> None:
    async with open_api("Hi", strict_fields=True) as api:
        answer = await api.post(PATH, ASK | fields)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "unknown_parameter", param)
        assert await api.pipeline.list() == []


@pytest.mark.parametrize("kind", ["web_search_2025_08_26", "web_search_preview_2025_03_11", "computer", "local_shell"])
async def test_a_hosted_tool_is_known_in_each_version(kind: str, open_api, autojump_clock) -> None:
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": kind}]}
    for strict in (False, True):
        async with open_api("Hi", strict_fields=strict) as api:
            answer = await api.post(PATH, ASK | {"tools": [{"type": kind}], "tool_choice": choice})
            assert (answer.status, answer.header("crucible-ignored")) == (200, f"tools.{kind}, tool_choice.{kind}")


async def test_a_tool_of_an_unknown_type_is_named(open_api, autojump_clock) -> None:
    async with open_api("Hi") as api:
        answer = await api.post(PATH, ASK | {"tools": [{"type": "fuction", "name": "a"}, {"type": "x, y"}]})
    assert (answer.status, answer.header("crucible-ignored")) == (200, "tools.fuction, tools.x%2C%20y")


async def test_history_and_hosted_tools_are_never_refused_as_unknown(open_api, autojump_clock) -> None:
    history = [
        USER,
        {"role": "assistant", "content": "No.", "x": 1},
        {"type": "reasoning", "summary": [], "x": 1},
        USER,
    ]
    async with open_api("Hi", strict_fields=True) as api:
        answer = await api.post(PATH, ASK | {"input": history, "tools": [{"type": "web_search", "x": 1}], "x": None})
        assert (answer.status, answer.header("crucible-ignored")) == (200, "tools.web_search")


@pytest.mark.parametrize("verbosity", ["", 7])
async def test_an_invalid_verbosity_is_named_by_its_place(open_api, scripted, verbosity, autojump_clock) -> None:
    async with open_api(engine=scripted("Hi", sampling=["verbosity"])) as api:
        answer = await api.post(PATH, ASK | {"text": {"verbosity": verbosity}})
        assert (answer.status, answer.error["code"]) == (400, "invalid_request")
        assert answer.error["param"] == "text.verbosity"


async def _is_refused(
    open_api: object, body: dict[str, object], status: int, code: str, param: str | None
) -> dict[str, object]:
    async with open_api("Hi") as api:
        answer = await api.post(PATH, body)
        assert answer.status == status, answer.body
        error = answer.error
        assert error["code"] == code
        assert param is None or error["param"] == param
        assert answer.headers["x-should-retry"] == "false"
        assert await api.pipeline.list() == []
        assert api.number("requests_refused_total", code=code) == 1
    return error
