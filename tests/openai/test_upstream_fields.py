"""Fields of an upstream that are not interpreted come back on the chat wire, and on no other of OpenAI's."""

from __future__ import annotations

import json
from typing import Any

import openai
from trio.testing import MockClock

from crucible_trio.engine import Finish
from crucible_trio.engines.upstream import open_upstream
from crucible_trio.output import Output
from crucible_trio.records import Usage
from crucible_trio.request import Request

from .upstream_cases import open_scripted_upstream, response

FILTERS = {"hate": {"filtered": False}}


async def engine(request: Request, output: Output) -> Finish:
    await output.upstream_fields("chunk", {"service_tier": "flex", "system_fingerprint": "fp_1"})
    await output.reasoning("a", 0)
    await output.upstream_fields("delta", {"reasoning_details": [{"text": "a"}], "content": "no", "audio": {"n": 1}})
    await output.reasoning("b", 0)
    await output.upstream_fields("choice", {"content_filter_results": FILTERS, "finish_reason": "no", "index": 9})
    await output.delta("Hel")
    await output.upstream_fields("chunk", {"system_fingerprint": "fp_2", "citations": ["u"], "id": "no", "usage": 1})
    await output.delta("lo.")
    await output.upstream_fields("chunk", {"citations": ["u", "v"], "error": {"message": "no"}, "choices": "no"})
    return Finish("stop", Usage(1, 2))


def shown(events: list[Any]) -> list[dict[str, Any]]:
    """The chunks without their fields that are the same in every chunk."""
    chunks = []
    for event in events[:-1]:
        chunk = dict(event)
        assert chunk.pop("id").startswith("chatcmpl-")
        assert (chunk.pop("object"), chunk.pop("model")) == ("chat.completion.chunk", "engine")
        assert isinstance(chunk.pop("created"), int)
        chunks.append(chunk)
    return chunks


def choice(delta: dict[str, Any], finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, **fields}]}


async def test_a_field_is_in_a_chunk_where_the_upstream_had_it(open_api, autojump_clock: MockClock) -> None:
    async with open_api(engine=engine) as api:
        answer = await api.chat(stream=True)
        stream = (await api.pipeline.list())[0]
        again = await api.get(f"/v1/streams/{stream.id}/events")
    first = {"service_tier": "flex", "system_fingerprint": "fp_1"}
    then = {"service_tier": "flex", "system_fingerprint": "fp_2"}
    assert shown(answer.events) == [
        choice({"role": "assistant", "content": ""}),
        choice({"reasoning_content": "a"}) | first,
        choice({"reasoning_details": [{"text": "a"}], "audio": {"n": 1}}) | first,
        choice({"reasoning_content": "b"}) | first,
        choice({}, content_filter_results=FILTERS) | first,
        choice({"content": "Hel"}) | first,
        choice({}) | {"citations": ["u"]} | then,
        choice({"content": "lo."}) | then,
        choice({}) | {"citations": ["u", "v"]} | then,
        choice({}, "stop") | then,
    ]
    kinds = [json.loads(line[6:])["type"] for line in again.body.decode().splitlines() if line.startswith("data: ")]
    assert kinds.count("upstream.fields") == 5
    assert kinds.count("reasoning.done") == 1


async def test_the_chunk_with_usage_has_the_repeated_fields(open_api, autojump_clock: MockClock) -> None:
    async with open_api(engine=engine) as api:
        answer = await api.chat(stream=True, stream_options={"include_usage": True})
    [*chunks, last] = shown(answer.events)
    assert last["choices"] == []
    assert last["system_fingerprint"] == "fp_2"
    assert all(chunk["usage"] is None for chunk in chunks)


async def test_a_whole_completion_has_the_last_value_of_each_field(open_api, autojump_clock: MockClock) -> None:
    async with open_api(engine=engine) as api:
        whole = (await api.chat()).json
        stream = (await api.pipeline.list())[0]
    assert whole == {
        "id": f"chatcmpl-{stream.id[4:]}",
        "object": "chat.completion",
        "created": int(stream.created_at),
        "model": "engine",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Hello.",
                    "refusal": None,
                    "reasoning_content": "ab",
                    "reasoning_details": [{"text": "a"}],
                    "audio": {"n": 1},
                },
                "finish_reason": "stop",
                "logprobs": None,
                "content_filter_results": FILTERS,
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        "service_tier": "flex",
        "system_fingerprint": "fp_2",
        "citations": ["u", "v"],
    }


async def test_responses_have_no_such_fields(open_api, autojump_clock: MockClock) -> None:
    async def plain(request: Request, output: Output) -> Finish:
        await output.reasoning("a", 0)
        await output.reasoning("b", 0)
        await output.delta("Hel")
        await output.delta("lo.")
        return Finish("stop", Usage(1, 2))

    seen = []
    for model in (engine, plain):
        async with open_api(engine=model) as api:
            answer = await api.post("/v1/responses", {"input": "Why?", "stream": True})
            text: dict[str, str] = {}
            for event in answer.events:
                if "delta" in event:
                    text[event["type"]] = text.get(event["type"], "") + event["delta"]
            seen.append((text, list(dict.fromkeys(event["type"] for event in answer.events))))
            assert b"fp_" not in answer.body
    assert seen[0] == seen[1]


UPSTREAM = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"index": 0, "delta": {"content": "Hi"}, "stop_reason": None}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": 7}], "citations": ["u"]},
]


async def test_the_sdk_reads_the_fields_of_an_upstream(serving, with_sync_client) -> None:
    def use(client: openai.OpenAI) -> None:
        asked: Any = {"model": "m", "messages": [{"role": "user", "content": "Why?"}]}
        whole = client.chat.completions.create(**asked)
        assert (whole.system_fingerprint, whole.service_tier) == ("fp_1", "flex")
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("Hi", "stop")
        assert whole.model_extra == {"citations": ["u"]}
        assert whole.choices[0].model_extra == {"stop_reason": 7}
        with client.chat.completions.stream(**asked) as helper:
            list(helper)
            completion = helper.get_final_completion()
        assert completion.system_fingerprint == "fp_1"
        assert completion.choices[0].message.content == "Hi"

    chunks = [{"id": "1", **chunk, "system_fingerprint": "fp_1", "service_tier": "flex"} for chunk in UPSTREAM]
    body = b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"
    async with (
        open_scripted_upstream(response(200, body)) as upstream,
        open_upstream(upstream.url, model="m") as engine,
        serving(engine) as served,
    ):
        await with_sync_client(served, use)
