"""How many tokens an answer says it took: read from its last bytes, which stay as they are (pure).

Servers write `usage` near the end of a JSON answer, and in one of the last events of a stream. What
a model says cannot be taken for it: quotes inside a JSON string are escaped. Compiled, a walk back
to `usage` takes half of what a search and a parser do, and it may be deeper (`/v1/responses`).
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mypy_extensions import i64  # compiled, an int of the machine's; else a name in a hint

TAIL_BYTES: Final = 1024
"""So many of the last bytes are looked at; what servers write behind `usage` is shorter."""

TOKENS_MARK: Final = b'_tokens":'
"""Stands in every event that may say how many tokens there were."""

_PROMPT: Final = b'"prompt_tokens"'
_INPUT: Final = b'"input_tokens"'
_COMPLETION: Final = b'"completion_tokens"'
_OUTPUT: Final = b'"output_tokens"'
_KEY_BYTES_MAX: Final = 19  # of the longest of them
_COLON: Final = 58
_QUOTE: Final = 34
_SPACE: Final = 32  # the largest of what JSON takes for white space (RFC 8259 section 2)
_ZERO: Final = 48
_NINE: Final = 57
_COUNT_MAX: Final = 10**9


def read_usage(tail: bytes) -> tuple[int, int]:
    """Return the input and the output tokens of an answer with this end; 0 where it does not say.

    Their names are those of completions or those of `/v1/responses` and `/v1/messages`; where a
    server gives both, a 0 says nothing.
    """
    taken = given = 0
    at: i64 = len(tail) - 1
    first: i64 = max(1, at - TAIL_BYTES)
    while at >= first:
        if tail[at] == _COLON and tail[at - 1] == _QUOTE:
            end = int(at)  # a slice by machine's ints is one by objects
            key = tail[end - _KEY_BYTES_MAX if end > _KEY_BYTES_MAX else 0 : end]
            if key.endswith(b'_tokens"'):
                if key.endswith(_PROMPT) or key.endswith(_INPUT):  # noqa: PIE810 # a tuple is slow
                    taken = _read_count(tail, at + 1) or taken
                elif key.endswith(_COMPLETION) or key.endswith(_OUTPUT):  # noqa: PIE810 # as above
                    given = _read_count(tail, at + 1) or given
            elif key.endswith(b'"usage"'):
                return taken, given
        at -= 1
    return 0, 0


def _read_count(text: bytes, at: "i64") -> int:
    """Return the number that `text` has from `at` on; 0 where none below 10^9 is."""
    size: i64 = len(text)
    count: i64 = 0
    while at < size and text[at] <= _SPACE:
        at += 1
    while at < size and _ZERO <= text[at] <= _NINE:
        count = 10 * count + text[at] - _ZERO
        if count >= _COUNT_MAX:
            return 0
        at += 1
    return count
