"""The fields of a request, in a program and in JSON."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

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

CALL = ToolCall("call_1", "weather", '{"city":"Oslo"}')


def test_a_request_has_the_documented_defaults() -> None:
    request = Request("q")
    assert request.messages == (Message("user", "q"),)
    assert (request.mode, request.model, request.trace) == ("standard", None, "segments")
    assert (request.max_output_tokens, request.on_disconnect, request.grace_seconds) == (None, None, None)
    assert request.sampling == Sampling()
    assert request.deadlines == Deadlines()
    assert request.parameters == Parameters()
    assert request.extra == {}
    conversation = (Message("system", "s"), Message("user", "u"))
    assert Request(conversation).messages == conversation


@pytest.mark.parametrize("url", ["", "AAAA", "file:///x", "ftp://x/a", "https:", "data:text/plain", "x data:,"])
@pytest.mark.parametrize("kind", [ImagePart, FilePart])
def test_a_part_has_an_http_https_or_data_url(kind: type[ImagePart] | type[FilePart], url: str) -> None:
    with pytest.raises(ValueError, match="Expected an http"):
        kind(url)


def test_the_scheme_of_a_url_has_any_case_and_only_a_file_is_text() -> None:
    for url in ("HTTPS://x", "http://[::1]/a", "data:,", "DATA:image/png;base64,AA"):
        assert (ImagePart(url).url, FilePart(url).url) == (url, url)
    assert FilePart("data:text/plain,x").url == "data:text/plain,x"
    with pytest.raises(ValueError, match="data URL of an image"):
        ImagePart("Data:TEXT/plain,x")


WRONG_FIELDS: list[dict[str, object]] = [
    {"input": ""},
    {"input": ()},
    {"input": (Message("user", ""),)},
    {"input": (Message("robot", "x"),)},  # type: ignore[arg-type]
    {"input": (Message("user", ()),)},
    {"input": (Message("user", (TextPart(""),)),)},
    {"input": (Message("user", (AudioPart("", "wav"),)),)},
    {"input": (Message("user", (AudioPart("aGk=", ""),)),)},
    {"input": (Message("user", ("text",)),)},  # type: ignore[arg-type]
    {"input": (Message("assistant", tool_calls=(ToolCall("", "weather", "{}"),)),)},
    {"input": (Message("assistant", tool_calls=(ToolCall("call_1", "", "{}"),)),)},
    {"input": (Message("assistant", tool_calls=(ToolCall("call_1", "n" * 257, "{}"),)),)},
    {"input": (Message("tool", "sunny", tool_call_id=""),)},
    {"input": (Message("assistant", "x", reasoning=5),)},  # type: ignore[arg-type]
    {"input": 5},
    {"mode": "quick"},
    {"max_output_tokens": 0},
    {"trace": "some"},
    {"on_disconnect": "explode"},
    {"grace_seconds": -1},
    {"deadlines": Deadlines(idle_seconds=-1)},
    {"sampling": Sampling(temperature=2.1)},
    {"sampling": Sampling(top_p=0)},
    {"sampling": Sampling(seed=-1)},
    {"sampling": Sampling(seed=2**32)},
    {"sampling": Sampling(stop=("",))},
    {"sampling": Sampling(stop=("x",) * 17)},
    {"sampling": Sampling(top_k=-2)},
    {"sampling": Sampling(min_p=1.1)},
    {"sampling": Sampling(frequency_penalty=2.1)},
    {"sampling": Sampling(presence_penalty=-2.1)},
    {"sampling": Sampling(logit_bias={"5": "much"})},  # type: ignore[dict-item]
    {"parameters": Parameters(tools=(Tool(""),))},
    {"parameters": Parameters(tools=(Tool("n" * 257),))},
    {"parameters": Parameters(tool_choice="perhaps")},  # type: ignore[arg-type]
    {"parameters": Parameters(tool_choice=NamedTool(""))},
    {"parameters": Parameters(response_format=JsonSchemaFormat("", {}))},
    {"parameters": Parameters(top_logprobs=21)},
    {"parameters": Parameters(top_logprobs=-1)},
    {"parameters": Parameters(verbosity="")},
    {"extra": ()},
]


@pytest.mark.parametrize("fields", WRONG_FIELDS, ids=repr)
def test_a_value_out_of_its_range_is_refused_at_construction(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"at `\$"):
        Request(**{"input": "q", **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", WRONG_FIELDS, ids=repr)
def test_the_same_rules_apply_to_a_json_request(fields: dict[str, object]) -> None:
    body = msgspec.json.encode({"input": "q", **fields})
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(body, type=Request)


@pytest.mark.parametrize(
    "body",
    [
        b'{"input":"q","inputs":1}',
        b'{"input":"q","sampling":{"inputs":1}}',
        b'{"input":"q","parameters":{"inputs":1}}',
        b'{"input":"q","deadlines":{"inputs":1}}',
        b'{"input":[{"role":"user","content":"q","inputs":1}]}',
        b'{"input":[{"role":"user","content":[{"type":"text","text":"q","inputs":1}]}]}',
        b'{"input":"q","parameters":{"tools":[{"name":"weather","inputs":1}]}}',
        b'{"input":"q","parameters":{"response_format":{"type":"text","inputs":1}}}',
    ],
)
def test_an_unknown_field_is_refused_and_named(body: bytes) -> None:
    with pytest.raises(msgspec.ValidationError, match="`inputs`"):
        msgspec.json.decode(body, type=Request)


def test_sampling_lists_the_fields_that_were_given() -> None:
    assert Sampling().given == frozenset()
    assert Sampling(temperature=0, seed=0, stop=()).given == {"temperature", "seed", "stop"}
    assert Sampling(top_k=0, min_p=0, frequency_penalty=0, presence_penalty=0, logit_bias={}).given == {
        *("top_k", "min_p", "frequency_penalty", "presence_penalty", "logit_bias")
    }


# Messages


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"role": "user", "content": "x", "tool_calls": (CALL,)}, "unknown field `tool_calls`"),
        ({"role": "tool", "tool_call_id": "call_1", "tool_calls": (CALL,)}, "unknown field `tool_calls`"),
        ({"role": "user", "content": "x", "reasoning": "Hm"}, "unknown field `reasoning`"),
        ({"role": "system", "content": "x", "reasoning": "Hm"}, "unknown field `reasoning`"),
        ({"role": "user", "content": "x", "tool_call_id": "call_1"}, "unknown field `tool_call_id`"),
        ({"role": "assistant", "content": "x", "tool_call_id": "call_1"}, "unknown field `tool_call_id`"),
        ({"role": "tool", "content": "x"}, "missing required field `tool_call_id`"),
        ({"role": "user"}, "missing required field `content`"),
        ({"role": "system"}, "missing required field `content`"),
        ({"role": "assistant"}, "missing required field `content`"),
        ({"role": "assistant", "reasoning": "Hm"}, "missing required field `content`"),
    ],
    ids=repr,
)
def test_a_field_that_does_not_belong_to_a_messages_role_is_refused_at_construction(
    fields: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Message(**fields)  # type: ignore[arg-type]
    with pytest.raises(msgspec.ValidationError, match=complaint) as refusal:
        msgspec.json.decode(msgspec.json.encode({"input": [fields]}), type=Request)
    assert "$.input[0]" in str(refusal.value)


@pytest.mark.parametrize(
    "message",
    [
        Message("system", "s"),
        Message("user", "u"),
        Message("assistant", "a"),
        Message("assistant", "a", reasoning="Hm"),
        Message("assistant", tool_calls=(CALL,)),
        Message("assistant", "a", tool_calls=(CALL, CALL), reasoning="Hm"),
        Message("tool", "sunny", tool_call_id="call_1"),
        Message("tool", tool_call_id="call_1"),
        Message("tool", (TextPart("sunny"),), tool_call_id="call_1"),
        Message("user", (TextPart("a"), ImagePart("https://example.com/a.png", "low"))),
        Message("user", (FilePart("data:application/pdf;base64,aGk=", "a.pdf"), AudioPart("aGk=", "wav"))),
    ],
    ids=repr,
)
def test_a_message_survives_json(message: Message) -> None:
    request = Request((message,))
    assert request.messages == (message,)
    assert msgspec.json.decode(msgspec.json.encode(request), type=Request) == request


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (b'{"type":"text","text":"a"}', TextPart("a")),
        (b'{"type":"image","url":"data:image/png;base64,aGk="}', ImagePart("data:image/png;base64,aGk=")),
        (b'{"type":"image","url":"https://a.example/b","detail":"high"}', ImagePart("https://a.example/b", "high")),
        (b'{"type":"file","url":"https://a.example/b","name":"b"}', FilePart("https://a.example/b", "b")),
        (b'{"type":"audio","data":"aGk=","format":"wav"}', AudioPart("aGk=", "wav")),
    ],
)
def test_each_part_in_json_is_as_documented(part: bytes, expected: object) -> None:
    [message] = msgspec.json.decode(b'{"input":[{"role":"user","content":[%b]}]}' % part, type=Request).messages
    assert message.content == (expected,)


def test_the_text_of_a_message_is_its_text_parts_joined_by_line_ends() -> None:
    assert Message("user", "a").text == "a"
    assert Message("user", (TextPart("a"), ImagePart("https://a.example/b"), TextPart("c"))).text == "a\nc"
    assert Message("user", (AudioPart("aGk=", "wav"),)).text == ""
    assert Message("assistant", tool_calls=(CALL,)).text == ""


# Parameters


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (b"{}", Parameters()),
        (
            b'{"tools":[{"name":"weather","description":"Now.","parameters":{"type":"object"},"strict":true}]}',
            Parameters(tools=(Tool("weather", "Now.", {"type": "object"}, True),)),
        ),
        (b'{"tool_choice":"required"}', Parameters(tool_choice="required")),
        (b'{"tool_choice":{"name":"weather"}}', Parameters(tool_choice=NamedTool("weather"))),
        (b'{"parallel_tool_calls":false}', Parameters(parallel_tool_calls=False)),
        (b'{"response_format":{"type":"text"}}', Parameters(response_format=TextFormat())),
        (b'{"response_format":{"type":"json_object"}}', Parameters(response_format=JsonObjectFormat())),
        (
            b'{"response_format":{"type":"json_schema","name":"n","schema":{"type":"object"},"strict":true}}',
            Parameters(response_format=JsonSchemaFormat("n", {"type": "object"}, True)),
        ),
        (b'{"logprobs":true,"top_logprobs":20}', Parameters(logprobs=True, top_logprobs=20)),
        (b'{"verbosity":"low"}', Parameters(verbosity="low")),
    ],
)
def test_each_parameter_in_json_is_as_documented(parameters: bytes, expected: Parameters) -> None:
    assert msgspec.json.decode(b'{"input":"q","parameters":%b}' % parameters, type=Request).parameters == expected
    request = Request("q", parameters=expected)
    assert msgspec.json.decode(msgspec.json.encode(request), type=Request) == request


@given(
    st.text(min_size=1),
    st.sampled_from(["standard", "deep"]),
    st.none() | st.integers(1, 100),
    st.dictionaries(st.text(), st.none() | st.integers(0, 9) | st.lists(st.text(), max_size=2), max_size=3),
)
def test_a_request_survives_json(text: str, mode: str, limit: int | None, extra: dict[str, object]) -> None:
    sampling = Sampling(stop=("a", "b"), logit_bias={"5": -100})
    request = Request(text, mode=mode, max_output_tokens=limit, sampling=sampling, extra=extra)  # type: ignore[arg-type]
    assert msgspec.json.decode(msgspec.json.encode(request), type=Request) == request


def test_two_requests_share_no_extra_fields() -> None:
    first, second = Request("q"), Request("q")
    first.extra["a"] = 1
    assert second.extra == {}


def test_a_request_is_immutable() -> None:
    with pytest.raises(AttributeError):
        Request("q").model = "m"  # type: ignore[misc]
