"""How many tokens an answer says it took: read from its last bytes, which stay as they are (pure).

Servers write `usage` near the end of a JSON answer, and in one of the last events of a stream. What
a model says cannot be taken for it: quotes inside a JSON string are escaped.
"""

import re
from collections.abc import Sequence
from itertools import repeat
from typing import Annotated

import msgspec

TAIL_BYTES = 1024
"""So many of the last bytes are looked at; what servers write behind `usage` is shorter."""

TOKENS_MARK = b'_tokens":'
"""Stands in every event that may say how many tokens there were."""

_KEY = b'"usage":'
_NESTED = re.compile(
    rb'\s?\{\s*"(?:prompt|input)_tokens":\s?([0-9]{1,9})(?![0-9])'
    rb'(?:.{0,400}?"(?:completion|output)_tokens":\s?([0-9]{1,9})(?![0-9]))?',
    re.DOTALL,
)
_Count = Annotated[int, msgspec.Meta(ge=0, lt=10**9)]


class _Usage(msgspec.Struct, gc=False):
    """Tokens, by the two pairs of names that servers use; 0 where one is not given."""

    prompt_tokens: _Count = 0
    completion_tokens: _Count = 0
    input_tokens: _Count = 0
    output_tokens: _Count = 0


class _End(msgspec.Struct, gc=False):
    usage: _Usage | None = None


_end = msgspec.json.Decoder(_End)
_ends = msgspec.json.Decoder(list[_End])
_BEGIN = b'{"usage":'
_NEXT = b"," + _BEGIN
_NOTHING = b"null}"
_NONE = _Usage()


def read_usages(tails: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """Return the input and the output tokens of `tails`, each 0 where its tail does not say.

    Tails are of `TAIL_BYTES` at most. From a key of the top level on, the rest of an object is an
    object again: all of them are read as one array. Where one is not, each is read by itself. None
    can pass for two or swallow its neighbour: their number must be right, and only inside an array
    could a comma be followed by `{`.
    """
    parts = map(bytes.rpartition, tails, repeat(_KEY))
    rests = [rest if found else _NOTHING for _, found, rest in parts]
    text = _NEXT.join(rests)
    ends: list[_End] = []
    if b"[" not in text:
        try:
            ends = _ends.decode(b"[%b%b]" % (_BEGIN, text))
        except msgspec.DecodeError:
            pass  # read below, each by itself
    if len(ends) != len(rests):
        ends = [_read_rest(rest) for rest in rests]
    usages = [end.usage or _NONE for end in ends]
    return (
        [usage.prompt_tokens or usage.input_tokens for usage in usages],
        [usage.completion_tokens or usage.output_tokens for usage in usages],
    )


def _read_rest(rest: bytes) -> _End:
    """Read what stands behind the key; deeper (an event of `/v1/responses`), by a pattern."""
    try:
        return _end.decode(_BEGIN + rest)
    except msgspec.DecodeError:
        match = _NESTED.match(rest)
        return _End(None if match is None else _Usage(int(match[1]), int(match[2] or 0)))
