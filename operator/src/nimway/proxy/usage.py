"""How many tokens an answer says it took: read from its last bytes, which stay as they are (pure).

Servers write `usage` near the end of a JSON answer, and in one of the last events of a stream. What
a model says cannot be taken for it: quotes inside a JSON string are escaped.
"""

import re

TAIL_BYTES = 1024
"""So many of the last bytes are looked at; what servers write behind `usage` is shorter."""

TOKENS_MARK = b'_tokens":'
"""Stands in every event that may say how many tokens there were."""

_KEY = b'"usage":'
_USAGE = re.compile(
    rb'"usage":\s?\{\s*"(?:prompt|input)_tokens":\s?([0-9]{1,9})(?![0-9])'
    rb'(?:.{0,400}?"(?:completion|output)_tokens":\s?([0-9]{1,9})(?![0-9]))?',
    re.DOTALL,
)


def read_usage(tail: bytes) -> tuple[int, int]:
    """Return input and output tokens; 0 where `tail` does not say."""
    at = tail.rfind(_KEY, -TAIL_BYTES)
    match = _USAGE.match(tail, at) if at >= 0 else None
    if match is None:
        return 0, 0
    taken, given = match.groups()
    return int(taken), int(given) if given else 0
