"""How many tokens an answer says it took: read from its last bytes, which stay as they are (pure).

Servers write `usage` near the end of a JSON answer, and in one of the last events of a stream. What
a model says cannot be taken for it: quotes inside a JSON string are escaped.
"""

import re
from typing import Final

import msgspec

from nimway.proxy.structs import End

TAIL_BYTES: Final = 1024
"""So many of the last bytes are looked at; what servers write behind `usage` is shorter."""

TOKENS_MARK: Final = b'_tokens":'
"""Stands in every event that may say how many tokens there were."""

_KEY: Final = b'"usage":'
_NESTED: Final = re.compile(
    rb'"usage":\s?\{\s*"(?:prompt|input)_tokens":\s?([0-9]{1,9})(?![0-9])'
    rb'(?:.{0,400}?"(?:completion|output)_tokens":\s?([0-9]{1,9})(?![0-9]))?',
    re.DOTALL,
)

_end: Final = msgspec.json.Decoder(End)


def read_usage(tail: bytes) -> tuple[int, int]:
    """Return the input and the output tokens of an answer with this end; 0 where it does not say.

    From a key of the top level on, the rest of an object is an object again. Where the key is
    deeper (an event of `/v1/responses`), a pattern reads the numbers.
    """
    at = tail.rfind(_KEY, max(0, len(tail) - TAIL_BYTES))
    if at < 0:
        return 0, 0
    try:
        usage = _end.decode(b"{" + tail[at:]).usage
    except (msgspec.DecodeError, RecursionError):
        match = _NESTED.match(tail, at)
        return (0, 0) if match is None else (int(match[1]), int(match[2] or 0))
    if usage is None:
        return 0, 0
    return (
        usage.prompt_tokens or usage.input_tokens,
        usage.completion_tokens or usage.output_tokens,
    )
