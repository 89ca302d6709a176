"""Which paths exist: the allow-list of the HTTP contract, as one pure function.

An engine's admin paths (LoRA loading, sleep, metrics, docs) are not in the list and never pass.
The match is exact and on the raw path: `//`, `%2e%2e`, `;` and a trailing slash are other paths.
"""

from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

MODELS_PATH: Final = b"/v1/models"
_MODEL_PREFIX: Final = b"/v1/models/"
_OPENAI_PREFIX: Final = b"/openai"


@dataclass(frozen=True, slots=True)
class Operation:
    """What one path does; `kind` is `model`, `form`, `models`, `model-card`, `live` or `ready`.

    `model` is routed by a JSON body, `form` by a multipart one. `path` is what the model server is
    asked for, `label` the form for logs and metrics: a value of the list, never a client's text.
    `allow` is the Allow field of a 405; `api` the path's name in `NIMModel.spec.routing.apis`.
    """

    kind: str
    path: bytes
    label: str
    allow: bytes = b"GET, HEAD"
    api: str = ""


_ROUTED: Final = tuple(
    Operation(kind=kind, path=path.encode(), label=path, allow=b"POST", api=api)
    for kind, path, api in (
        ("model", "/v1/completions", "completions"),
        ("model", "/v1/chat/completions", "chat"),
        ("model", "/v1/embeddings", "embeddings"),
        ("model", "/v1/classify", "classify"),
        ("model", "/v1/ranking", "ranking"),
        ("model", "/v1/rerank", "rerank"),
        ("model", "/v1/responses", "responses"),
        ("model", "/v1/messages", "messages"),
        ("model", "/tokenize", "tokenize"),
        ("model", "/detokenize", "tokenize"),
        ("form", "/v1/audio/transcriptions", "audio"),
        ("form", "/v1/audio/translations", "audio"),
    )
)

MODEL_CARD: Final = Operation(kind="model-card", path=_MODEL_PREFIX, label="/v1/models/{id}")
_MODELS: Final = Operation(kind="models", path=MODELS_PATH, label="/v1/models")
_HEALTH: Final = tuple(
    Operation(kind=kind, path=path.encode(), label=path)
    for kind, path in (
        ("live", "/health"),
        ("live", "/v1/health/live"),
        ("ready", "/v1/health/ready"),
    )
)

_OPERATIONS: Final = {
    **{operation.path: operation for operation in (*_ROUTED, _MODELS, *_HEALTH)},
    **{_OPENAI_PREFIX + operation.path: operation for operation in (*_ROUTED, _MODELS)},
}


def find_operation(path: bytes) -> Operation | None:
    """Return the operation behind `path` (no query in it), or None where the list has none."""
    operation = _OPERATIONS.get(path)
    if operation is None and path.startswith((_MODEL_PREFIX, _OPENAI_PREFIX + _MODEL_PREFIX)):
        return MODEL_CARD
    return operation


def read_model_id(path: bytes) -> str | None:
    """Return the id in `/v1/models/{id}`, decoded once, or None where it is no text.

    A `/` in it may be plain (openai 1.x) or `%2F` (openai 3.x).
    """
    raw = path.removeprefix(_OPENAI_PREFIX).removeprefix(_MODEL_PREFIX)
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        return None
