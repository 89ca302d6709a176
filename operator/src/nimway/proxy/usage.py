"""How many tokens an answer says it took: read from its last bytes, which stay as they are (pure).

Servers write `usage` near the end of a JSON answer, and in one of the last events of a stream. What
a model says cannot be taken for it: quotes inside a JSON string are escaped.
"""

import re
from typing import Annotated

import msgspec

TAIL_BYTES = 1024
"""So many of the last bytes are looked at; what servers write behind `usage` is shorter."""

TOKENS_MARK = b'_tokens":'
"""Stands in every event that may say how many tokens there were."""

_KEY = b'"usage":'
_NESTED = re.compile(
    rb'"usage":\s?\{\s*"(?:prompt|input)_tokens":\s?([0-9]{1,9})(?![0-9])'
    rb'(?:.{0,400}?"(?:completion|output)_tokens":\s?([0-9]{1,9})(?![0-9]))?',
    re.DOTALL,
)
_Count = Annotated[int, msgspec.Meta(ge=0, lt=10**9)]


class _Usage(msgspec.Struct):
    prompt_tokens: _Count = 0
    completion_tokens: _Count = 0
    input_tokens: _Count = 0
    output_tokens: _Count = 0


class _End(msgspec.Struct):
    usage: _Usage | None = None


_end = msgspec.json.Decoder(_End)
_NONE = (0, 0)


def read_usage(tail: bytes) -> tuple[int, int]:
    """Return input and output tokens; 0 where `tail` does not say.

    From a key of the top level on, the rest of an object is an object again. Where `usage` stands
    deeper (an event of `/v1/responses`), a pattern finds it.
    """
    at = tail.rfind(_KEY, -TAIL_BYTES)
    if at < 0:
        return _NONE
    try:
        usage = _end.decode(b"{" + tail[at:]).usage
    except msgspec.DecodeError:
        match = _NESTED.match(tail, at)
        return _NONE if match is None else (int(match[1]), int(match[2] or 0))
    if usage is None:
        return _NONE
    return usage.prompt_tokens or usage.input_tokens, usage.completion_tokens or usage.output_tokens
