"""The two younger text APIs over the same generator: OpenAI's responses, Anthropic's messages.

Owns their shapes and the names of their events. Only text goes in and out.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from nimway.sandbox.nim import answers, bodies, generation, tokens
from nimway.sandbox.nim.answers import Answer, event, json_answer
from nimway.sandbox.nim.api import Call
from nimway.sandbox.nim.generation import Job, Wish


async def messages(call: Call) -> Answer:
    """POST /v1/messages."""
    body, engine = call.body(bodies.MessagesBody), call.nim.engine
    prompt = tokens.pieces(bodies.plain(body.system)) + bodies.chat_prompt(body.messages)
    wish = Wish(tokens_max=body.max_tokens, stops=generation.stop_list(body.stop_sequences))
    job = generation.plan([prompt], wish, engine.behaviour.context_tokens_max)
    shell = _message_shell(call.head("msg", body.model)["id"], body.model, job)
    generation.admit(engine)
    if body.stream:
        return answers.sse_answer(_message_stream(call, shell, job))
    await generation.whole(engine, job, call.entry)
    text = "".join(job.choices[0].words).lstrip()
    shell["content"] = [{"type": "text", "text": text}]
    return json_answer(shell | _message_end(job))


def _message_shell(message_id: str, model: str, job: Job) -> dict[str, Any]:
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": len(job.prompt), "output_tokens": 0},
    }


def _message_end(job: Job) -> dict[str, Any]:
    ended = job.choices[0].finish_reason == "stop"
    counts = {"input_tokens": len(job.prompt), "output_tokens": job.completion_tokens}
    return {"stop_reason": "end_turn" if ended else "max_tokens", "usage": counts}


async def _message_stream(
    call: Call, shell: dict[str, Any], job: Job
) -> AsyncGenerator[bytes, None]:
    def named(kind: str, **fields: Any) -> bytes:
        return event({"type": kind, **fields}, kind)

    yield named("message_start", message=shell)
    yield named("content_block_start", index=0, content_block={"type": "text", "text": ""})
    async with aclosing(generation.stepwise(call.nim.engine, job, call.entry)) as steps:
        async for _choice, word, _reason in steps:
            yield named("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
    yield named("content_block_stop", index=0)
    end = _message_end(job)
    delta = {"stop_reason": end["stop_reason"], "stop_sequence": None}
    yield named("message_delta", delta=delta, usage=end["usage"])
    yield named("message_stop")


async def responses(call: Call) -> Answer:
    """POST /v1/responses."""
    body, engine = call.body(bodies.ResponsesBody), call.nim.engine
    prompt = tokens.pieces(body.instructions or "") + tokens.pieces(_input_text(body.input))
    wish = Wish(tokens_max=body.max_output_tokens)
    job = generation.plan([prompt], wish, engine.behaviour.context_tokens_max)
    head = call.head("resp", body.model)
    generation.admit(engine)
    if body.stream:
        return answers.sse_answer(_response_stream(call, head, job))
    await generation.whole(engine, job, call.entry)
    return json_answer(_response(head, job, "completed"))


def _input_text(given: str | list[dict[str, Any]]) -> str:
    if isinstance(given, str):
        return given
    return "\n".join(bodies.plain(item.get("content")) for item in given)


def _response(head: dict[str, Any], job: Job, status: str) -> dict[str, Any]:
    text = "".join(job.choices[0].words).lstrip() if status == "completed" else ""
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {
        "id": f"msg-{head['id']}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [part],
    }
    counts = {
        "input_tokens": len(job.prompt),
        "input_tokens_details": {"cached_tokens": job.cached_tokens},
        "output_tokens": job.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": len(job.prompt) + job.completion_tokens,
    }
    return {
        "id": head["id"],
        "object": "response",
        "created_at": head["created"],
        "model": head["model"],
        "status": status,
        "output": [item] if status == "completed" else [],
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "tools": [],
        "usage": counts if status == "completed" else None,
        "metadata": {"system_fingerprint": answers.FINGERPRINT},
    }


async def _response_stream(
    call: Call, head: dict[str, Any], job: Job
) -> AsyncGenerator[bytes, None]:
    number = 0

    def named(kind: str, **fields: Any) -> bytes:
        nonlocal number
        number += 1
        return event({"type": kind, "sequence_number": number - 1, **fields}, kind)

    place = {"item_id": f"msg-{head['id']}", "output_index": 0, "content_index": 0}
    yield named("response.created", response=_response(head, job, "in_progress"))
    async with aclosing(generation.stepwise(call.nim.engine, job, call.entry)) as steps:
        async for _choice, word, _reason in steps:
            yield named("response.output_text.delta", **place, delta=word, logprobs=[])
    text = "".join(job.choices[0].words)
    yield named("response.output_text.done", **place, text=text, logprobs=[])
    yield named("response.completed", response=_response(head, job, "completed"))
