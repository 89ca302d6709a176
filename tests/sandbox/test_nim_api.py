"""The simulated NIM's paths, over loopback sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nimway.sandbox.nim.settings import Settings
from tests.support.nim import RunningNim, running_nim

LLAMA = "meta/llama-3.1-8b-instruct"
PROMPT = {"model": LLAMA, "prompt": "Once upon a time"}
CHAT = {"model": LLAMA, "messages": [{"role": "user", "content": "Tell me a story."}]}


@pytest.fixture
async def nim() -> AsyncIterator[RunningNim]:
    async with running_nim(LLAMA, "llama") as running:
        yield running


@pytest.fixture
async def http(nim: RunningNim) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=nim.url) as client:
        yield client


def events(text: str) -> list[Any]:
    """Return the data of each event; `[DONE]` stays text."""
    found = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [event if event == "[DONE]" else json.loads(event) for event in found]


async def test_models_lists_every_served_name_as_a_base_model(http: httpx.AsyncClient) -> None:
    answer = (await http.get("/v1/models")).json()
    assert answer["object"] == "list"
    assert [(m["id"], m["root"], m["parent"]) for m in answer["data"]] == [
        (LLAMA, LLAMA, None),
        ("llama", "llama", None),
    ]
    assert {m["owned_by"] for m in answer["data"]} == {"nimway-simulated-nim"}


@pytest.mark.parametrize("path", [f"/v1/models/{LLAMA}", f"/v1/models/{LLAMA.replace('/', '%2F')}"])
async def test_one_model_is_found_with_a_plain_and_an_escaped_slash(
    http: httpx.AsyncClient, path: str
) -> None:
    answer = await http.get(path)
    assert (answer.status_code, answer.json()["id"]) == (200, LLAMA)


async def test_the_users_completion_has_the_documented_shape(http: httpx.AsyncClient) -> None:
    answer = (await http.post("/v1/completions", json={**PROMPT, "max_tokens": 64})).json()
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["model"] == LLAMA
    assert answer["system_fingerprint"] == "simulated-nim"
    assert isinstance(answer["created"], int)
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["finish_reason"] in ("stop", "length")
    usage = answer["usage"]
    assert 0 < usage["completion_tokens"] <= 64
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    counted = await http.post("/tokenize", json={"prompt": choice["text"]})
    assert counted.json()["count"] == usage["completion_tokens"]


async def test_the_same_prompt_and_seed_give_the_same_text_and_another_seed_another(
    http: httpx.AsyncClient,
) -> None:
    async def text(**wishes: Any) -> str:
        answer = await http.post("/v1/completions", json={**PROMPT, **wishes})
        return str(answer.json()["choices"][0]["text"])

    first = await text(seed=1)
    assert first == await text(seed=1, temperature=0.7)
    assert first != await text(seed=2)


async def test_a_stream_carries_the_same_text_as_the_whole_answer(http: httpx.AsyncClient) -> None:
    body = {**PROMPT, "max_tokens": 20}
    whole = (await http.post("/v1/completions", json=body)).json()
    answer = await http.post(
        "/v1/completions",
        json={**body, "stream": True, "stream_options": {"include_usage": True}},
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events(answer.text)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 20
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert {c["id"] for c in chunks} == {usage["id"]}


async def test_a_chat_stream_begins_with_the_role_and_ends_with_a_reason(
    http: httpx.AsyncClient,
) -> None:
    whole = (await http.post("/v1/chat/completions", json=CHAT)).json()
    answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    *chunks, done = events(answer.text)
    deltas = [chunk["choices"][0] for chunk in chunks]
    assert done == "[DONE]"
    assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
    assert [d["finish_reason"] for d in deltas if d["finish_reason"]] == ["stop"]
    text = "".join(d["delta"]["content"] for d in deltas)
    assert text == whole["choices"][0]["message"]["content"]


async def test_several_choices_and_prompts_each_get_their_own_index(
    http: httpx.AsyncClient,
) -> None:
    body = {**PROMPT, "prompt": ["one", "two"], "n": 2, "max_tokens": 5}
    whole = (await http.post("/v1/completions", json=body)).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    streamed = events((await http.post("/v1/completions", json={**body, "stream": True})).text)
    for choice in whole["choices"]:
        parts = [
            c["choices"][0]["text"]
            for c in streamed[:-1]
            if c["choices"][0]["index"] == choice["index"]
        ]
        assert "".join(parts) == choice["text"]


async def test_ignore_eos_gives_exactly_the_wanted_number_of_tokens(
    http: httpx.AsyncClient,
) -> None:
    body = {**CHAT, "max_tokens": 500, "ignore_eos": True}
    answer = (await http.post("/v1/chat/completions", json=body)).json()
    assert answer["usage"]["completion_tokens"] == 500
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_a_stop_sequence_ends_the_text_before_it(http: httpx.AsyncClient) -> None:
    body = {**PROMPT, "max_tokens": 30, "ignore_eos": True}
    text = (await http.post("/v1/completions", json=body)).json()["choices"][0]["text"]
    stop = text.split()[5]
    answer = (await http.post("/v1/completions", json={**body, "stop": [stop]})).json()
    (choice,) = answer["choices"]
    assert choice["text"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"


async def test_echo_puts_the_prompt_before_the_text(http: httpx.AsyncClient) -> None:
    for stream in (False, True):
        body = {**PROMPT, "echo": True, "stream": stream}
        answer = await http.post("/v1/completions", json=body)
        parts = events(answer.text)[:-1] if stream else [answer.json()]
        text = "".join(part["choices"][0]["text"] for part in parts)
        assert text.startswith("Once upon a time")
        assert text.count("Once upon a time") == 1


async def test_embeddings_are_deterministic_and_similar_for_similar_texts(
    http: httpx.AsyncClient,
) -> None:
    texts = ["a cat sat on the mat", "a cat sat on a mat", "quarterly revenue forecast"]
    body = {"model": LLAMA, "input": texts, "input_type": "passage"}
    first = (await http.post("/v1/embeddings", json=body)).json()
    assert first["data"] == (await http.post("/v1/embeddings", json=body)).json()["data"]
    one, two, other = (item["embedding"] for item in first["data"])
    assert len(one) == 1024
    assert sum(x * x for x in one) == pytest.approx(1)
    near = sum(a * b for a, b in zip(one, two, strict=True))
    far = sum(a * b for a, b in zip(one, other, strict=True))
    assert near > 0.6 > far
    packed = await http.post("/v1/embeddings", json={**body, "encoding_format": "base64"})
    assert isinstance(packed.json()["data"][0]["embedding"], str)


async def test_ranking_puts_the_passage_that_shares_words_first(http: httpx.AsyncClient) -> None:
    documents = ["bread and butter", "the tower is tall"]
    query = "how tall is the tower"
    body: dict[str, Any] = {
        "model": LLAMA,
        "query": {"text": query},
        "passages": [{"text": document} for document in documents],
    }
    answer = (await http.post("/v1/ranking", json=body)).json()
    assert [item["index"] for item in answer["rankings"]] == [1, 0]
    body = {"model": LLAMA, "query": query, "documents": documents, "top_n": 1}
    answer = (await http.post("/v1/rerank", json=body)).json()
    assert [item["index"] for item in answer["results"]] == [1]


async def test_classify_gives_probabilities(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/classify", json={"model": LLAMA, "input": ["a walk", "b"]})
    for item in answer.json()["data"]:
        assert sum(item["probs"]) == pytest.approx(1)


@pytest.mark.parametrize(
    "text", ["Once upon a time", "naïve Grüße 🎉 漢字", " the queue is 1234567"]
)
async def test_detokenize_undoes_tokenize(http: httpx.AsyncClient, text: str) -> None:
    ids = (await http.post("/tokenize", json={"model": LLAMA, "prompt": text})).json()["tokens"]
    answer = await http.post("/detokenize", json={"model": LLAMA, "tokens": ids})
    assert answer.json() == {"prompt": text}


async def test_a_prompt_of_token_ids_is_the_prompt_it_stands_for(http: httpx.AsyncClient) -> None:
    ids = (await http.post("/tokenize", json={"prompt": PROMPT["prompt"]})).json()["tokens"]
    plain = (await http.post("/v1/completions", json=PROMPT)).json()
    by_ids = (await http.post("/v1/completions", json={**PROMPT, "prompt": ids})).json()
    assert by_ids["choices"] == plain["choices"]
    assert by_ids["usage"] == plain["usage"]


async def test_messages_streams_named_events(http: httpx.AsyncClient) -> None:
    body = {**CHAT, "max_tokens": 8, "system": "Be brief."}
    whole = (await http.post("/v1/messages", json=body)).json()
    assert (whole["type"], whole["stop_reason"]) == ("message", "max_tokens")
    answer = await http.post("/v1/messages", json={**body, "stream": True})
    names = [line[7:] for line in answer.text.splitlines() if line.startswith("event: ")]
    assert (names[0], names[-1]) == ("message_start", "message_stop")
    assert names.count("content_block_delta") == 8
    assert [event["type"] for event in events(answer.text)] == names


async def test_responses_answer_and_stream_end_completed(http: httpx.AsyncClient) -> None:
    body = {"model": LLAMA, "input": "Tell me", "max_output_tokens": 6}
    whole = (await http.post("/v1/responses", json=body)).json()
    assert whole["status"] == "completed"
    assert whole["usage"]["output_tokens"] == 6
    last = events((await http.post("/v1/responses", json={**body, "stream": True})).text)[-1]
    assert last["type"] == "response.completed"
    assert last["response"]["output"][0]["content"] == whole["output"][0]["content"]


@pytest.mark.parametrize("path", ["metadata", "version", "license", "manifest"])
async def test_what_describes_the_nim_says_that_it_is_simulated(
    http: httpx.AsyncClient, path: str
) -> None:
    answer = await http.get(f"/v1/{path}")
    assert answer.status_code == 200
    assert "simulated" in answer.text


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/completions", {"model": "nope", "prompt": "x"}, 404, "model"),
        ("/v1/chat/completions", {**CHAT, "model": "nope"}, 404, "model"),
        ("/v1/completions", {"prompt": "x"}, 400, "model"),
        ("/v1/completions", {"model": LLAMA}, 400, "prompt"),
        ("/v1/completions", {**PROMPT, "max_tokens": 0}, 400, "max_tokens"),
        ("/v1/completions", {**PROMPT, "max_tokens": 131_072}, 400, "max_tokens"),
        ("/v1/completions", {**PROMPT, "temperature": "hot"}, 400, "temperature"),
        ("/v1/completions", {**PROMPT, "prompt": []}, 400, None),
        ("/v1/completions", {**PROMPT, "prompt": ["a", 1]}, 400, None),
        ("/v1/completions", {**PROMPT, "prompt": ["a"] * 129}, 400, "n"),
        ("/v1/completions", {**PROMPT, "prompt": "word " * 131_073}, 400, "prompt"),
        ("/v1/chat/completions", {**CHAT, "messages": []}, 400, "messages"),
        ("/v1/embeddings", {"model": LLAMA, "input": 3}, 400, "input"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": [10**12]}, 400, "tokens"),
        ("/tokenize", {}, 400, "prompt"),
    ],
)
async def test_a_bad_body_is_refused_in_nims_shape(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    answer = await http.post(path, json=body)
    assert answer.status_code == status
    error = answer.json()
    assert error["object"] == "error"
    assert error["code"] == status
    assert error["param"] == param
    assert error["message"]


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"a":' * 20_000])
async def test_what_is_no_json_object_is_a_400(http: httpx.AsyncClient, raw: bytes) -> None:
    assert (await http.post("/v1/completions", content=raw)).status_code == 400


async def test_the_second_generation_nests_its_errors_and_prefixes_its_metrics() -> None:
    async with (
        running_nim(LLAMA, generation=2) as nim,
        httpx.AsyncClient(base_url=nim.url) as http,
    ):
        answer = await http.post("/v1/completions", json={"model": "nope", "prompt": "x"})
        assert answer.json()["error"]["type"] == "NotFoundError"
        assert "\nvllm:num_requests_running{" in (await http.get("/v1/metrics")).text


async def test_an_unknown_path_and_a_wrong_method_answer_as_nims_framework_does(
    http: httpx.AsyncClient,
) -> None:
    missing = await http.get("/v1/nothing")
    assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})
    wrong = await http.get("/v1/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


async def test_metrics_count_what_was_served(http: httpx.AsyncClient) -> None:
    answer = (await http.post("/v1/completions", json={**PROMPT, "max_tokens": 7})).json()
    lines = (await http.get("/v1/metrics")).text.splitlines()
    label = f'{{model_name="{LLAMA}"}}'
    assert f"num_requests_running{label} 0.0" in lines
    assert f"num_requests_waiting{label} 0.0" in lines
    assert f"gpu_cache_usage_perc{label} 0.0" in lines
    assert f"generation_tokens_total{label} 7.0" in lines
    assert f"prompt_tokens_total{label} {float(answer['usage']['prompt_tokens'])}" in lines
    assert f"time_to_first_token_seconds_count{label} 1.0" in lines


async def test_adapters_in_the_folder_are_served_under_their_base(
    tmp_path: Path,
) -> None:
    (tmp_path / "math-lora").mkdir()
    (tmp_path / "notes.txt").touch()
    settings = Settings(peft_source=str(tmp_path), peft_refresh_s=0)
    async with (
        running_nim(LLAMA, settings=settings) as nim,
        httpx.AsyncClient(base_url=nim.url) as http,
    ):
        listed = (await http.get("/v1/models")).json()["data"]
        assert [(m["id"], m["root"], m["parent"]) for m in listed] == [
            (LLAMA, LLAMA, None),
            ("math-lora", LLAMA, LLAMA),
        ]
        (tmp_path / "poetry-lora").mkdir()
        answer = await http.post("/v1/completions", json={**PROMPT, "model": "poetry-lora"})
        assert answer.status_code == 200


async def test_http_1_0_gets_a_stream_that_ends_with_the_connection(nim: RunningNim) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", nim.server.port)
    body = json.dumps({**PROMPT, "stream": True}).encode()
    writer.write(b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    raw = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, text = raw.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert text.endswith(b"data: [DONE]\n\n")
