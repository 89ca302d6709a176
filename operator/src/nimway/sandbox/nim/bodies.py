"""The request bodies a simulated NIM reads, and what it says about the ones it cannot.

Owns the fields, their types and ranges. Unknown fields are ignored, as NIM does. It knows neither
the models nor the engine.
"""

import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from nimway.sandbox.nim import tokens

B = TypeVar("B", bound="Body")
Positive = Annotated[int, Meta(ge=1, le=1_000_000)]
Choices = Annotated[int, Meta(ge=1, le=16)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Stops = str | list[str] | None
Tokens = list[str | int | list[int]]


class BodyError(Exception):
    """A body is not usable: the HTTP status, the text, the field it is about, NIM's error type."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        kind: str = "BadRequestError",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.kind = kind


class Body(msgspec.Struct, kw_only=True):
    """What every body has. Engines' own paths (/tokenize) may leave the model out."""

    model: str


class StreamOptions(msgspec.Struct, kw_only=True):
    """Whether a stream ends with a chunk that carries the usage."""

    include_usage: bool | None = None


class Sampling(Body, kw_only=True):
    """What decides the text of an answer. Temperature and the like are read and change nothing."""

    max_tokens: Positive | None = None
    n: Choices | None = None
    seed: int | None = None
    stop: Stops = None
    ignore_eos: bool | None = None
    temperature: Temperature | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class CompletionBody(Sampling, kw_only=True):
    """POST /v1/completions."""

    prompt: str | Tokens
    echo: bool | None = None


class Message(msgspec.Struct, kw_only=True):
    """One message of a chat; content is text, a list of parts, or nothing."""

    role: str
    content: str | list[dict[str, Any]] | None = None


Messages = Annotated[list[Message], Meta(min_length=1)]


class ChatBody(Sampling, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: Positive | None = None


class EmbeddingBody(Body, kw_only=True):
    """POST /v1/embeddings; `input_type` is NVIDIA's (query or passage)."""

    input: str | Tokens
    input_type: str | None = None
    encoding_format: str | None = None
    dimensions: Positive | None = None


class Text(msgspec.Struct, kw_only=True):
    """A text of a ranking."""

    text: str


class RankingBody(Body, kw_only=True):
    """POST /v1/ranking."""

    query: Text
    passages: Annotated[list[Text], Meta(min_length=1, max_length=512)]


class RerankBody(Body, kw_only=True):
    """POST /v1/rerank."""

    query: str
    documents: Annotated[list[str], Meta(min_length=1, max_length=512)]
    top_n: Positive | None = None


class ClassifyBody(Body, kw_only=True):
    """POST /v1/classify."""

    input: str | list[str]


class TokenizeBody(Body, kw_only=True):
    """POST /tokenize, of a prompt or of a chat."""

    model: str = ""
    prompt: str | None = None
    messages: Messages | None = None


class DetokenizeBody(Body, kw_only=True):
    """POST /detokenize."""

    model: str = ""
    tokens: list[int]


class MessagesBody(Body, kw_only=True):
    """POST /v1/messages (Anthropic's form)."""

    messages: Messages
    max_tokens: Positive
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None


class ResponsesBody(Body, kw_only=True):
    """POST /v1/responses (OpenAI's newer form)."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    stream: bool | None = None


def decode(raw: bytes, kind: type[B]) -> B:
    """Read `raw` as a `kind`.

    Raises:
        BodyError: not JSON, not an object, or a field is missing or wrong; `param` names the field.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        where = re.search(r"at `\$\.(\w+)", text) or re.search(r"field `(\w+)`", text)
        raise BodyError(text, param=where.group(1) if where else None) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BodyError(f"the body is not JSON: {error}") from None


def prompts(prompt: str | Tokens) -> list[list[bytes]]:
    """Return each prompt of a body as tokens: text, texts, token ids or lists of token ids.

    Raises:
        BodyError: an empty list, a mixture, or an id that is no token.
    """
    if isinstance(prompt, str):
        return [tokens.pieces(prompt)]
    if not prompt:
        raise BodyError("an empty list is no prompt")
    ids = [item for item in prompt if isinstance(item, int)]
    if len(ids) == len(prompt):
        return [_pieces(ids)]
    if ids:
        raise BodyError("a list is of texts or of token ids, not of both")
    return [
        tokens.pieces(item) if isinstance(item, str) else _pieces(item)
        for item in prompt
        if not isinstance(item, int)
    ]


def chat_prompt(messages: list[Message]) -> list[bytes]:
    """Return a chat as tokens, each message behind its role, as chat templates do."""
    found: list[bytes] = []
    for message in messages:
        found += tokens.pieces(f"<{message.role}>\n{plain(message.content)}\n")
    return found


def plain(content: str | list[dict[str, Any]] | None) -> str:
    """Return the text of a message's content; parts that are no text count for nothing."""
    if isinstance(content, list):
        return "".join(text for part in content if isinstance(text := part.get("text"), str))
    return content or ""


def _pieces(ids: list[int]) -> list[bytes]:
    try:
        return tokens.pieces(tokens.detokenize(ids))
    except tokens.TokenError as error:
        raise BodyError(str(error)) from None
