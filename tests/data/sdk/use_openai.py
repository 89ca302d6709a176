"""What a user of the openai SDK, 1.x or 3.x, does against the base URL given first.

Runs in an environment of its own, with that SDK in it. Prints one JSON object: the result of each
step by its name, or the error it raised.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI

BASE_URL, LLAMA, EMBEDDER = sys.argv[1:4]
MESSAGES = [{"role": "user", "content": "Tell me a story."}]
OPTIONS = {
    "base_url": f"{BASE_URL}/v1",
    "api_key": "not-needed",
}


def client(*, strict: bool = True, **options: Any) -> OpenAI:
    """Return a client that refuses answers of another shape than the SDK's types.

    Not strict where the types are narrower than what OpenAI itself sends: the null finish reason
    of a streamed completion, and embeddings in base64.
    """
    return OpenAI(**OPTIONS, _strict_response_validation=strict, **options)


def models() -> list[dict[str, Any]]:
    return [
        {"id": model.id, "object": model.object, "created": model.created, "by": model.owned_by}
        for model in client().models.list()
    ]


def model() -> Any:
    return client().models.retrieve(LLAMA).id


def completion() -> dict[str, Any]:
    response = client().completions.create(model=LLAMA, prompt="Once upon a time", max_tokens=64)
    return {
        "object": response.object,
        "text": response.choices[0].text,
        "tokens": response.usage.completion_tokens if response.usage else None,
    }


def completion_stream() -> str:
    stream = client(strict=False).completions.create(
        model=LLAMA, prompt="Once upon a time", max_tokens=64, stream=True
    )
    return "".join(chunk.choices[0].text for chunk in stream)


def chat() -> Any:
    response = client().chat.completions.create(model=LLAMA, messages=MESSAGES)
    return response.choices[0].message.content


def chat_stream() -> dict[str, Any]:
    stream = client().chat.completions.create(
        model=LLAMA, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    words = [chunk.choices[0] for chunk in chunks if chunk.choices]
    usage = chunks[-1].usage
    return {
        "text": "".join(choice.delta.content or "" for choice in words),
        "finish_reason": words[-1].finish_reason,
        "words": len(words) - 1,
        "tokens": usage.completion_tokens if usage else None,
    }


def async_chat_stream() -> str:
    async def text() -> str:
        async with AsyncOpenAI(**OPTIONS) as ai:
            stream = await ai.chat.completions.create(model=LLAMA, messages=MESSAGES, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    return asyncio.run(text())


def embeddings() -> dict[str, Any]:
    """Ask for base64 (the SDK's default) and for plain numbers."""
    packed = client(strict=False).embeddings.create(model=EMBEDDER, input=["one", "two"])
    plain = client().embeddings.create(
        model=EMBEDDER, input=["one", "two"], encoding_format="float"
    )
    pairs = zip(packed.data[0].embedding, plain.data[0].embedding, strict=True)
    return {
        "lengths": [len(item.embedding) for item in packed.data],
        "difference": max(abs(one - other) for one, other in pairs),
    }


def unknown_model() -> Any:
    return client(max_retries=0).completions.create(model="no/such-model", prompt="x")


def unknown_model_retrieved() -> Any:
    return client(max_retries=0).models.retrieve("no/such-model")


def wrong_model() -> Any:
    return client(max_retries=0).completions.create(model=7, prompt="x")


def wrong_limit() -> Any:
    return client(max_retries=0).completions.create(model=LLAMA, prompt="x", max_tokens=0)


def not_ready() -> Any:
    return client(max_retries=0).completions.create(model="meta/not-ready", prompt="x")


def held_stream() -> int:
    stream = client(strict=False, max_retries=0).completions.create(
        model="meta/not-ready",
        prompt="x",
        stream=True,
        extra_headers={"x-nimway-heartbeat": "1"},
    )
    return len(list(stream))


def broken_answer() -> Any:
    """Ask with the SDK's own retries, for a request that its model runs and never answers."""
    return client().completions.create(model=LLAMA, prompt="x")


def broken_stream() -> int:
    stream = client(strict=False).completions.create(model=LLAMA, prompt="x", stream=True)
    return len(list(stream))


STEPS: list[Callable[[], Any]] = [
    models,
    model,
    completion,
    completion_stream,
    chat,
    chat_stream,
    async_chat_stream,
    embeddings,
    unknown_model,
    unknown_model_retrieved,
    wrong_model,
    wrong_limit,
]
"""What works against a single NIM and through the proxy."""

STEPS_OF_THE_PROXY: list[Callable[[], Any]] = [
    not_ready,
    held_stream,
    broken_answer,
    broken_stream,
]
"""What only a proxy promises; asked for by name."""


def _response(error: Exception) -> Any:
    """Return the HTTP response an error came from, None if it came from the middle of a stream."""
    return getattr(error, "response", None)


def attempt(step: Callable[[], Any]) -> Any:
    """Return what `step` returns, or what it raised."""
    try:
        return step()
    except openai.APIError as error:
        return {
            "raised": type(error).__name__,
            "status": getattr(error, "status_code", None),
            "code": error.code,
            "param": error.param,
            "type": error.type,
            "request_id": getattr(error, "request_id", None),
            "message": error.message,
            "headers": dict(response.headers) if (response := _response(error)) else {},
        }


if __name__ == "__main__":
    wanted = set(sys.argv[4:])
    steps = [step for step in STEPS_OF_THE_PROXY if step.__name__ in wanted] if wanted else STEPS
    json.dump({step.__name__: attempt(step) for step in steps}, sys.stdout)
