"""What a user of nemo-microservices does, against the base URL given as the first argument.

Runs in an environment of its own, with that SDK in it. Prints one JSON object: the result of each
step by its name, or the error it raised.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import nemo_microservices
from nemo_microservices import NeMoMicroservices

BASE_URL, LLAMA, EMBEDDER = sys.argv[1:4]
MESSAGES = [{"role": "user", "content": "Tell me a story."}]


def client(**options: Any) -> NeMoMicroservices:
    """Return a client that refuses answers of another shape than the SDK's types."""
    return NeMoMicroservices(
        base_url="http://nemo.invalid",
        inference_base_url=BASE_URL,
        _strict_response_validation=True,
        **options,
    )


def models() -> list[str]:
    return [model.id for model in client().inference.models.list().data]


def completion() -> dict[str, Any]:
    """Make the call of NVIDIA's documentation, word for word."""
    response = client().completions.create(
        model=LLAMA,
        prompt="Once upon a time",
        temperature=0.7,
        max_tokens=100,
        stream=False,
    )
    return {
        "id": response.id,
        "object": response.object,
        "model": response.model,
        "text": response.choices[0].text,
        "finish_reason": response.choices[0].finish_reason,
        "completion_tokens": response.usage.completion_tokens,
    }


def completion_stream() -> dict[str, Any]:
    stream = client().completions.create(
        model=LLAMA, prompt="Once upon a time", temperature=0.7, max_tokens=100, stream=True
    )
    chunks = list(stream)
    return {
        "chunks": len(chunks),
        "text": "".join(chunk.choices[0].text for chunk in chunks),
        "finish_reason": chunks[-1].choices[0].finish_reason,
    }


def chat() -> Any:
    response = client().chat.completions.create(model=LLAMA, messages=MESSAGES, max_tokens=20)
    return response.choices[0].message.content


def chat_stream() -> str:
    stream = client().chat.completions.create(
        model=LLAMA, messages=MESSAGES, max_tokens=20, stream=True
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def embeddings() -> list[int]:
    response = client().embeddings.create(
        model=EMBEDDER, input=["one", "two"], input_type="passage"
    )
    return [len(item.embedding) for item in response.data]


def classify() -> str:
    response = client().classify.create(model=LLAMA, input="a walk")
    return str(response["object"])


def unknown_model() -> Any:
    return client(max_retries=0).completions.create(model="no/such-model", prompt="x")


def wrong_model() -> Any:
    return client(max_retries=0).completions.create(model=7, prompt="x")


def wrong_limit() -> Any:
    return client(max_retries=0).completions.create(model=LLAMA, prompt="x", max_tokens=0)


def not_ready() -> Any:
    return client(max_retries=0).completions.create(model="meta/not-ready", prompt="x")


def held_stream() -> int:
    stream = client(max_retries=0).completions.create(
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
    return len(list(client().completions.create(model=LLAMA, prompt="x", stream=True)))


STEPS: list[Callable[[], Any]] = [
    models,
    completion,
    completion_stream,
    chat,
    chat_stream,
    embeddings,
    classify,
    unknown_model,
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
    except nemo_microservices.APIError as error:
        return {
            "raised": type(error).__name__,
            "status": getattr(error, "status_code", None),
            "body": error.body,
            "headers": dict(response.headers) if (response := _response(error)) else {},
        }


if __name__ == "__main__":
    wanted = set(sys.argv[4:])
    steps = [step for step in STEPS_OF_THE_PROXY if step.__name__ in wanted] if wanted else STEPS
    json.dump({step.__name__: attempt(step) for step in steps}, sys.stdout)
