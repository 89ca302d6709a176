"""The JSON of every answer, as NIM and the OpenAI and Anthropic APIs shape it.

Pure builders: values in, bytes out. What is simulated says so (`owned_by`, `system_fingerprint`).
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

import nimway
from nimway.sandbox.nim import tokens, vectors
from nimway.sandbox.nim.bodies import BodyError
from nimway.sandbox.nim.generation import Choice, Job
from nimway.sandbox.nim.models import Model
from nimway.sandbox.nim.settings import Settings

OWNER = "nimway-simulated-nim"
FINGERPRINT = "simulated-nim"
DONE = b"data: [DONE]\n\n"
JSON_TYPE = "application/json"
SSE_TYPE = "text/event-stream; charset=utf-8"


@dataclass(slots=True)
class Answer:
    """What is sent back: a body, or a stream of chunks in its place."""

    body: bytes = b""
    status: int = 200
    content_type: str = JSON_TYPE
    stream: AsyncGenerator[bytes, None] | None = None
    headers: dict[str, str] = field(default_factory=dict)


def json_answer(value: Any, status: int = 200) -> Answer:
    """Return `value` as a JSON answer."""
    return Answer(msgspec.json.encode(value), status)


def sse_answer(stream: AsyncGenerator[bytes, None]) -> Answer:
    """Return a stream of server-sent events."""
    return Answer(content_type=SSE_TYPE, stream=stream, headers={"Cache-Control": "no-cache"})


def error(problem: BodyError, generation: int) -> Answer:
    """Return an error in the shape of NIM 1.x (flat) or 2.x (under `error`)."""
    about = {
        "message": str(problem),
        "type": problem.kind,
        "param": problem.param,
        "code": problem.status,
    }
    flat = {"object": "error", **about}
    return json_answer(flat if generation == 1 else {"error": about}, problem.status)


def event(value: Any, name: str = "") -> bytes:
    """Return one server-sent event; most engines send no name."""
    head = b"event: " + name.encode() + b"\n" if name else b""
    return head + b"data: " + msgspec.json.encode(value) + b"\n\n"


def model(one: Model, created: int, context_tokens_max: int) -> dict[str, Any]:
    """Return one item of /v1/models. `created` in Unix seconds."""
    return {
        "id": one.id,
        "object": "model",
        "created": created,
        "owned_by": OWNER,
        "root": one.root,
        "parent": one.parent,
        "max_model_len": context_tokens_max,
    }


def usage(job: Job) -> dict[str, Any]:
    """Return the token counts of a job."""
    counts: dict[str, Any] = {
        "prompt_tokens": len(job.prompt),
        "total_tokens": len(job.prompt) + job.completion_tokens,
        "completion_tokens": job.completion_tokens,
    }
    if job.cached_tokens:
        counts["prompt_tokens_details"] = {"cached_tokens": job.cached_tokens}
    return counts


def completion(head: dict[str, Any], job: Job, *, echo: bool) -> Answer:
    """Return a whole completion; `head` is id, created and model."""
    choices = [
        {
            "index": choice.index,
            "text": (choice.prompt if echo else "") + "".join(choice.words),
            "logprobs": None,
            "finish_reason": choice.finish_reason,
            "stop_reason": None,
        }
        for choice in job.choices
    ]
    return json_answer(
        {**head, "object": "text_completion", "choices": choices, "usage": usage(job)}
        | {"system_fingerprint": FINGERPRINT}
    )


def chat(head: dict[str, Any], job: Job) -> Answer:
    """Return a whole chat answer."""
    choices = [
        {
            "index": choice.index,
            "message": {
                "role": "assistant",
                "content": "".join(choice.words).lstrip(),
                "tool_calls": [],
            },
            "logprobs": None,
            "finish_reason": choice.finish_reason,
            "stop_reason": None,
        }
        for choice in job.choices
    ]
    return json_answer(
        {**head, "object": "chat.completion", "choices": choices, "usage": usage(job)}
        | {"system_fingerprint": FINGERPRINT}
    )


def completion_chunk(
    head: dict[str, Any], choice: Choice, word: str, finish_reason: str | None
) -> bytes:
    """Return one event of a streamed completion."""
    return event(
        {
            **head,
            "object": "text_completion",
            "system_fingerprint": FINGERPRINT,
            "choices": [
                {
                    "index": choice.index,
                    "text": word,
                    "logprobs": None,
                    "finish_reason": finish_reason,
                    "stop_reason": None,
                }
            ],
        }
    )


def chat_chunk(
    head: dict[str, Any], choice: Choice, delta: dict[str, str], finish_reason: str | None = None
) -> bytes:
    """Return one event of a streamed chat answer."""
    return event(
        {
            **head,
            "object": "chat.completion.chunk",
            "system_fingerprint": FINGERPRINT,
            "choices": [
                {
                    "index": choice.index,
                    "delta": delta,
                    "logprobs": None,
                    "finish_reason": finish_reason,
                }
            ],
        }
    )


def usage_chunk(head: dict[str, Any], kind: str, job: Job) -> bytes:
    """Return the event that carries the usage, after the last choice."""
    return event({**head, "object": kind, "choices": [], "usage": usage(job)})


def embeddings(
    model_id: str, texts: Sequence[list[bytes]], *, dimensions: int, salt: str, packed: bool
) -> Answer:
    """Return one vector per text, as numbers or packed in base64."""
    data: list[dict[str, Any]] = []
    for index, text in enumerate(texts):
        plain = b"".join(text).decode("utf-8", "replace")
        vector = vectors.embedding(plain, dimensions, salt=salt)
        data.append(
            {
                "object": "embedding",
                "index": index,
                "embedding": vectors.packed(vector) if packed else vector,
            }
        )
    counted = sum(map(len, texts))
    return json_answer(
        {
            "object": "list",
            "data": data,
            "model": model_id,
            "usage": {"prompt_tokens": counted, "total_tokens": counted},
        }
    )


def ranked(query: str, texts: Sequence[str], dimensions: int) -> list[tuple[int, float]]:
    """Return index and score of each text, best first."""
    wanted = vectors.embedding(query, dimensions)
    scores = [vectors.similarity(wanted, vectors.embedding(text, dimensions)) for text in texts]
    return sorted(enumerate(scores), key=lambda pair: (-pair[1], pair[0]))


def token_count(texts: Iterable[str]) -> int:
    """Return the tokens of all texts together."""
    return sum(len(tokens.pieces(text)) for text in texts)


def metadata(settings: Settings) -> dict[str, Any]:
    """Return /v1/metadata: what runs here, and that it is a simulation."""
    return {
        "id": f"nimway-simulated-nim-{nimway.__version__}",
        "version": nimway.__version__,
        "simulated": True,
        "modelInfo": [
            {"shortName": name, "modelUrl": f"simulated://{name}"}
            for name in settings.served_model_names
        ],
        "profile": settings.model_profile or None,
        "licenseInfo": {"name": "Apache-2.0", "path": "LICENSE"},
        "assetInfo": [],
    }
