"""Requests that a model or the server refuses before their stream starts, and the field that the refusal names."""

import pytest

from crucible_trio.checks import check_request
from crucible_trio.config import Settings
from crucible_trio.engine import Capabilities, EngineInfo
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import (
    AudioPart,
    Deadlines,
    FilePart,
    ImagePart,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    NamedTool,
    Parameters,
    Request,
    Sampling,
    TextFormat,
    TextPart,
    Tool,
    ToolCall,
)

SETTINGS = Settings(max_output_tokens=10, max_grace_seconds=20, max_deadline_seconds=30)
INFO = EngineInfo(name="e", models=("small", "large"), capabilities=Capabilities(sampling=frozenset({"seed"})))
CALL = ToolCall("call_1", "weather", "{}")
TEXT, IMAGE, FILE = TextPart("a"), ImagePart("https://a.example/b"), FilePart("https://a.example/b")
AUDIO = AudioPart("aGk=", "wav")


def model_with(**capabilities: object) -> EngineInfo:
    return EngineInfo(name="e", models=("m",), capabilities=Capabilities(**capabilities))  # type: ignore[arg-type]


def refusal_of(request: Request, info: EngineInfo) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as refusal:
        check_request(request, info, SETTINGS)
    return refusal.value


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "huge"}, "model"),
        ({"sampling": Sampling(temperature=1)}, "sampling.temperature"),
        ({"sampling": Sampling(seed=1, top_p=0.5)}, "sampling.top_p"),
        ({"max_output_tokens": 11}, "max_output_tokens"),
        ({"grace_seconds": 21}, "grace_seconds"),
        ({"deadlines": Deadlines(first_token_seconds=31)}, "deadlines.first_token_seconds"),
        ({"deadlines": Deadlines(idle_seconds=31)}, "deadlines.idle_seconds"),
        ({"deadlines": Deadlines(total_seconds=31)}, "deadlines.total_seconds"),
    ],
)
def test_an_unsupported_field_is_refused_and_named(fields: dict[str, object], param: str) -> None:
    refusal = refusal_of(Request("q", **fields), INFO)  # type: ignore[arg-type]
    assert refusal.param == param
    assert param in str(refusal)


def test_tools_that_must_not_be_called_need_no_capability() -> None:
    check_request(Request("q", parameters=Parameters((Tool("f"),), tool_choice="none")), INFO, SETTINGS)
    for choice in (None, "auto", "required", NamedTool("f")):
        request = Request("q", parameters=Parameters((Tool("f"),), tool_choice=choice))
        assert refusal_of(request, INFO).param == "parameters.tools"


def test_values_at_the_maximum_are_accepted() -> None:
    request = Request(
        "q",
        model="large",
        max_output_tokens=10,
        grace_seconds=20,
        sampling=Sampling(seed=1),
        deadlines=Deadlines(30, 30, 30),
    )
    check_request(request, INFO, SETTINGS)
    check_request(Request("q"), INFO, SETTINGS)


def test_a_refused_model_is_told_which_models_there_are() -> None:
    assert str(refusal_of(Request("q", model="huge"), INFO)) == "there is no model 'huge'. Available: small, large"


def conversation(*messages: Message) -> Request:
    return Request((Message("user", "q"), *messages))


# A request, the capability that it needs, the field that a refusal names, and the missing feature.
NEEDS = [
    (Request("q", parameters=Parameters(tools=(Tool("weather"),))), {"tools": True}, "parameters.tools", "tools"),
    (
        conversation(Message("assistant", tool_calls=(CALL,))),
        {"tools": True},
        "input[1].tool_calls",
        "tools",
    ),
    (conversation(Message("tool", "sunny", tool_call_id="call_1")), {"tools": True}, "input[1].role", "tools"),
    (conversation(Message("user", (TEXT, IMAGE))), {"images": True}, "input[1].content[1]", "images"),
    (conversation(Message("user", (FILE,))), {"files": True}, "input[1].content[0]", "files"),
    (conversation(Message("user", (TEXT, TEXT, AUDIO))), {"audio": True}, "input[1].content[2]", "audio"),
    (
        Request("q", parameters=Parameters(response_format=JsonObjectFormat())),
        {"structured_output": True},
        "parameters.response_format",
        "structured output",
    ),
    (
        Request("q", parameters=Parameters(response_format=JsonSchemaFormat("n", {}))),
        {"structured_output": True},
        "parameters.response_format",
        "structured output",
    ),
    (Request("q", parameters=Parameters(logprobs=True)), {"logprobs": True}, "parameters.logprobs", "logprobs"),
    (Request("q", parameters=Parameters(top_logprobs=3)), {"logprobs": True}, "parameters.logprobs", "logprobs"),
    (
        conversation(Message("assistant", "a", reasoning="Hm")),
        {"reasoning_input": True},
        "input[1].reasoning",
        "the reasoning of earlier turns",
    ),
    (
        Request("q", parameters=Parameters(verbosity="low")),
        {"sampling": frozenset({"verbosity"})},
        "parameters.verbosity",
        "verbosity",
    ),
    (Request("q", extra={"cache": True}), {"unknown_fields": True}, "extra.cache", "the extra field 'cache'"),
    *(
        (
            Request("q", sampling=Sampling(**{name: value})),
            {"sampling": frozenset({name})},
            f"sampling.{name}",
            f"sampling.{name}",
        )
        for name, value in {
            "temperature": 0.0,
            "top_p": 0.5,
            "seed": 0,
            "stop": ("x",),
            "top_k": 5,
            "min_p": 0.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "logit_bias": {},
        }.items()
    ),
]


@pytest.mark.parametrize(("request_", "capabilities", "param", "feature"), NEEDS, ids=lambda value: str(value)[:60])
def test_a_model_without_the_capability_refuses_the_request_and_names_the_field(
    request_: Request, capabilities: dict[str, object], param: str, feature: str
) -> None:
    refusal = refusal_of(request_, model_with())
    assert refusal.param == param
    assert str(refusal) == f"the model 'm' does not support {feature}"
    check_request(request_, model_with(**capabilities), SETTINGS)


@pytest.mark.parametrize(("request_", "capabilities", "param", "feature"), NEEDS, ids=lambda value: str(value)[:60])
def test_no_other_capability_helps(
    request_: Request, capabilities: dict[str, object], param: str, feature: str
) -> None:
    all_but_one = {
        "tools": True,
        "images": True,
        "files": True,
        "audio": True,
        "structured_output": True,
        "logprobs": True,
        "reasoning_input": True,
        "sampling": frozenset(Sampling.__struct_fields__) | {"verbosity"},
        "unknown_fields": True,
    }
    for name, value in capabilities.items():
        all_but_one[name] = all_but_one[name] - value if isinstance(value, frozenset) else False  # type: ignore[operator]
    assert refusal_of(request_, model_with(**all_but_one)).param == param


@pytest.mark.parametrize(
    "request_",
    [
        Request("q"),
        conversation(Message("system", "s"), Message("assistant", "a"), Message("user", (TEXT, TEXT))),
        Request("q", parameters=Parameters(tool_choice="auto")),
        Request("q", parameters=Parameters(tool_choice="none")),
        Request("q", parameters=Parameters(parallel_tool_calls=False)),
        Request("q", parameters=Parameters(response_format=TextFormat())),
        Request("q", parameters=Parameters(top_logprobs=0)),
        Request("q", mode="deep"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_model_without_any_capability_accepts_what_needs_none(request_: Request) -> None:
    check_request(request_, model_with(), SETTINGS)


@pytest.mark.parametrize("choice", ["required", NamedTool("weather")])
def test_a_tool_choice_that_needs_a_tool_is_refused_without_tools(choice: object) -> None:
    parameters = Parameters(tool_choice=choice)  # type: ignore[arg-type]
    assert refusal_of(Request("q", parameters=parameters), model_with(tools=True)).param == "parameters.tool_choice"
    parameters = Parameters(tools=(Tool("weather"),), tool_choice=choice)  # type: ignore[arg-type]
    check_request(Request("q", parameters=parameters), model_with(tools=True), SETTINGS)


def test_each_model_has_its_own_capabilities() -> None:
    info = EngineInfo(name="e", models=("blind", "seeing"), by_model={"seeing": Capabilities(images=True)})
    messages = (Message("user", (IMAGE,)),)
    check_request(Request(messages, model="seeing"), info, SETTINGS)
    refusal = refusal_of(Request(messages), info)  # the first model is the default
    assert str(refusal) == "the model 'blind' does not support images"
    assert refusal.param == "input[0].content[0]"
