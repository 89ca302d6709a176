"""The paths of the simulated NIM: from a request that has been read to its answer.

Owns which path does what. A handler checks the body, asks the engine for time and the builders for
JSON. It never touches the connection: faults, streaming and the ledger are the dispatcher's.
"""

import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import nimway
from nimway.sandbox.nim import answers, bodies, generation, metrics, tokens
from nimway.sandbox.nim.answers import Answer, json_answer
from nimway.sandbox.nim.bodies import BodyError
from nimway.sandbox.nim.engine import Engine
from nimway.sandbox.nim.ledger import Entry
from nimway.sandbox.nim.models import Models
from nimway.sandbox.nim.settings import Settings

B = TypeVar("B", bound=bodies.Body)
COMPLETION_TOKENS_DEFAULT = 16
_BYTES_PER_TOKEN_MAX = 64


@dataclass(slots=True)
class Nim:
    """One simulated NIM, apart from its sockets. `created` is its start in Unix seconds."""

    settings: Settings
    engine: Engine
    models: Models
    created: int


@dataclass(slots=True)
class Call:
    """One request: whose, its whole body, the rest of its path, and its line in the ledger."""

    nim: Nim
    raw: bytes
    entry: Entry
    rest: str = ""

    def body(self, kind: type[B]) -> B:
        """Read the body and check that the model is served here.

        Raises:
            BodyError: 400 for a bad body, 404 for a model that is not served.
        """
        if len(self.raw) > _BYTES_PER_TOKEN_MAX * self.nim.engine.behaviour.context_tokens_max:
            raise BodyError("the body is larger than any context", status=413)
        body = bodies.decode(self.raw, kind)
        self.entry.model = body.model
        if body.model or kind not in (bodies.TokenizeBody, bodies.DetokenizeBody):
            check_model(self.nim, body.model)
        return body

    def head(self, prefix: str, model: str) -> dict[str, Any]:
        """Return what every chunk of an answer repeats."""
        now_s = int(time.time())  # noqa: TID251 - the API reports calendar time
        return {"id": f"{prefix}-{uuid.uuid4().hex}", "created": now_s, "model": model}


Handler = Callable[[Call], Awaitable[Answer]]


def check_model(nim: Nim, model_id: str) -> None:
    """Raise a 404 in NIM's words if `model_id` is not served here."""
    if not nim.models.serves(model_id):
        raise BodyError(
            f"The model `{model_id}` does not exist.",
            status=404,
            param="model",
            kind="NotFoundError",
        )


async def list_models(call: Call) -> Answer:
    """GET /v1/models."""
    data = [_model(call.nim, one.id) for one in call.nim.models]
    return json_answer({"object": "list", "data": data})


async def get_model(call: Call) -> Answer:
    """GET /v1/models/{id}."""
    check_model(call.nim, call.rest)
    return json_answer(_model(call.nim, call.rest))


def _model(nim: Nim, model_id: str) -> dict[str, Any]:
    one = next(one for one in nim.models if one.id == model_id)
    return answers.model(one, nim.created, nim.engine.behaviour.context_tokens_max)


def _wish(body: bodies.Sampling, tokens_max: int | None) -> generation.Wish:
    return generation.Wish(
        tokens_max=tokens_max,
        choices=body.n or 1,
        seed=body.seed or 0,
        stops=generation.stop_list(body.stop),
        ignore_eos=bool(body.ignore_eos),
    )


async def completions(call: Call) -> Answer:
    """POST /v1/completions."""
    body, engine = call.body(bodies.CompletionBody), call.nim.engine
    prompts = bodies.prompts(body.prompt)
    wish = _wish(body, body.max_tokens or COMPLETION_TOKENS_DEFAULT)
    job = generation.plan(prompts, wish, engine.behaviour.context_tokens_max)
    head = call.head("cmpl", body.model)
    generation.admit(engine)
    if body.stream:
        return answers.sse_answer(_completion_stream(call, body, job, head))
    await generation.whole(engine, job, call.entry)
    return answers.completion(head, job, echo=bool(body.echo))


async def _completion_stream(
    call: Call, body: bodies.CompletionBody, job: generation.Job, head: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    echoed: set[int] = set()
    async with aclosing(generation.stepwise(call.nim.engine, job, call.entry)) as steps:
        async for choice, word, reason in steps:
            prompt = choice.prompt if body.echo and choice.index not in echoed else ""
            echoed.add(choice.index)
            yield answers.completion_chunk(head, choice, prompt + word, reason)
    if body.stream_options and body.stream_options.include_usage:
        yield answers.usage_chunk(head, "text_completion", job)
    yield answers.DONE


async def chat_completions(call: Call) -> Answer:
    """POST /v1/chat/completions."""
    body, engine = call.body(bodies.ChatBody), call.nim.engine
    wish = _wish(body, body.max_completion_tokens or body.max_tokens)
    prompt = bodies.chat_prompt(body.messages)
    job = generation.plan([prompt], wish, engine.behaviour.context_tokens_max)
    head = call.head("chatcmpl", body.model)
    generation.admit(engine)
    if body.stream:
        return answers.sse_answer(_chat_stream(call, body, job, head))
    await generation.whole(engine, job, call.entry)
    return answers.chat(head, job)


async def _chat_stream(
    call: Call, body: bodies.ChatBody, job: generation.Job, head: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    begun: set[int] = set()
    async with aclosing(generation.stepwise(call.nim.engine, job, call.entry)) as steps:
        async for choice, word, reason in steps:
            text = word
            if choice.index not in begun:
                begun.add(choice.index)
                yield answers.chat_chunk(head, choice, {"role": "assistant", "content": ""})
                text = word.lstrip()
            yield answers.chat_chunk(head, choice, {"content": text}, reason)
    if body.stream_options and body.stream_options.include_usage:
        yield answers.usage_chunk(head, "chat.completion.chunk", job)
    yield answers.DONE


async def embeddings(call: Call) -> Answer:
    """POST /v1/embeddings."""
    body, engine = call.body(bodies.EmbeddingBody), call.nim.engine
    texts = bodies.prompts(body.input)
    limit = engine.behaviour.context_tokens_max
    if max(map(len, texts)) > limit:
        raise BodyError(f"an input is longer than {limit} tokens", param="input")
    await _run(call, [token for text in texts for token in text])
    return answers.embeddings(
        body.model,
        texts,
        dimensions=body.dimensions or engine.behaviour.dimensions,
        salt=body.input_type or "",
        packed=body.encoding_format == "base64",
    )


async def _run(call: Call, prompt: list[bytes]) -> None:
    """Spend the time of one step."""
    generation.admit(call.nim.engine)
    async with call.nim.engine.run(prompt) as run:
        call.entry.executed = True
        await run.token(0)


async def ranking(call: Call) -> Answer:
    """POST /v1/ranking, NVIDIA's form."""
    body, behaviour = call.body(bodies.RankingBody), call.nim.engine.behaviour
    texts = [passage.text for passage in body.passages]
    await _run(call, tokens.pieces(" ".join([body.query.text, *texts])))
    order = answers.ranked(body.query.text, texts, behaviour.dimensions)
    counted = answers.token_count([body.query.text, *texts])
    return json_answer(
        {
            "rankings": [{"index": index, "logit": score} for index, score in order],
            "usage": {"prompt_tokens": counted, "total_tokens": counted},
        }
    )


async def rerank(call: Call) -> Answer:
    """POST /v1/rerank."""
    body, behaviour = call.body(bodies.RerankBody), call.nim.engine.behaviour
    await _run(call, tokens.pieces(" ".join([body.query, *body.documents])))
    order = answers.ranked(body.query, body.documents, behaviour.dimensions)
    results = [
        {"index": index, "document": {"text": body.documents[index]}, "relevance_score": score}
        for index, score in order[: body.top_n]
    ]
    return json_answer({"model": body.model, "results": results})


async def classify(call: Call) -> Answer:
    """POST /v1/classify: two made-up labels, the same for the same text."""
    body = call.body(bodies.ClassifyBody)
    texts = [body.input] if isinstance(body.input, str) else body.input
    await _run(call, tokens.pieces(" ".join(texts)))
    data: list[dict[str, Any]] = []
    for index, text in enumerate(texts):
        share = (1 + answers.ranked("walk", [text], call.nim.engine.behaviour.dimensions)[0][1]) / 2
        label = "SIMULATED_YES" if share > 0.5 else "SIMULATED_NO"  # noqa: PLR2004 - one half
        data.append({"index": index, "label": label, "probs": [1 - share, share], "num_classes": 2})
    return json_answer({"object": "list", "model": body.model, "data": data})


async def tokenize(call: Call) -> Answer:
    """POST /tokenize."""
    body = call.body(bodies.TokenizeBody)
    if (body.prompt is None) == (body.messages is None):
        raise BodyError("give either a prompt or messages", param="prompt")
    found = tokens.pieces(body.prompt) if body.prompt else bodies.chat_prompt(body.messages or [])
    return json_answer(
        {
            "count": len(found),
            "max_model_len": call.nim.engine.behaviour.context_tokens_max,
            "tokens": tokens.token_ids(found),
        }
    )


async def detokenize(call: Call) -> Answer:
    """POST /detokenize."""
    body = call.body(bodies.DetokenizeBody)
    try:
        return json_answer({"prompt": tokens.detokenize(body.tokens)})
    except tokens.TokenError as problem:
        raise BodyError(str(problem), param="tokens") from None


async def live(call: Call) -> Answer:
    """GET /v1/health/live: as soon as the port is open."""
    del call
    return json_answer(_health("Service is live.", "live"))


async def ready(call: Call) -> Answer:
    """GET /v1/health/ready: once the load time has passed."""
    if call.nim.engine.loaded.is_set():
        return json_answer(_health("Service is ready.", "ready"))
    return json_answer(_health("Service is not ready.", "not-ready"), 503)


def _health(message: str, status: str) -> dict[str, str]:
    return {"object": "health.response", "message": message, "status": status}


async def show_metrics(call: Call) -> Answer:
    """GET /v1/metrics."""
    text = metrics.exposition(call.nim.engine, call.nim.settings.served_model_names[0])
    return Answer(text, content_type=metrics.CONTENT_TYPE)


async def show_metadata(call: Call) -> Answer:
    """GET /v1/metadata."""
    return json_answer(answers.metadata(call.nim.settings))


async def show_version(call: Call) -> Answer:
    """GET /v1/version."""
    del call
    return json_answer({"release": f"{nimway.__version__}+simulated", "api": nimway.__version__})


async def show_license(call: Call) -> Answer:
    """GET /v1/license."""
    del call
    return json_answer({"name": "Apache-2.0", "simulated": True})


async def show_manifest(call: Call) -> Answer:
    """GET /v1/manifest: a simulation downloads nothing."""
    del call
    return json_answer({"manifest": [], "simulated": True})
