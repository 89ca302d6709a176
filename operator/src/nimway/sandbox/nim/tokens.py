"""The simulated tokenizer: reversible, deterministic, and no model's.

Owns pieces, ids and counts. The generator's words are one token each; other text is cut into runs
of at most four bytes, about what real tokenizers make of English. `detokenize(tokenize(x)) == x`.
"""

import functools
import re
from collections.abc import Iterable, Sequence

from nimway.sandbox.nim.text import vocabulary

PIECE_BYTES_MAX = 4
_PIECES = re.compile(r"\s?[A-Za-z']+[,.:]?|\s?\d+|\s|[^\sA-Za-z\d']+")


class TokenError(ValueError):
    """A token id is not one that this tokenizer gives out."""


@functools.cache
def _ids() -> dict[str, int]:
    return {word: index for index, word in enumerate(vocabulary())}


def pieces(text: str) -> list[bytes]:
    """Return the tokens of `text` as bytes; joined they are its UTF-8."""
    known = _ids()
    found: list[bytes] = []
    for match in _PIECES.finditer(text):
        raw = match.group().encode("utf-8", "surrogatepass")
        if match.group() in known or len(raw) <= PIECE_BYTES_MAX:
            found.append(raw)
        else:
            found.extend(
                raw[start : start + PIECE_BYTES_MAX]
                for start in range(0, len(raw), PIECE_BYTES_MAX)
            )
    return found


def token_ids(tokens: Iterable[bytes]) -> list[int]:
    """Return one id per piece: its place in the vocabulary, or its bytes packed into a number."""
    known, offset = _ids(), len(_ids())
    ids: list[int] = []
    for token in tokens:
        index = known.get(token.decode("utf-8", "replace"))
        if index is None:
            index = offset + sum((byte + 1) * 256**place for place, byte in enumerate(token))
        ids.append(index)
    return ids


def detokenize(ids: Sequence[int]) -> str:
    """Return the text that has these token ids.

    Raises:
        TokenError: an id is negative or too large.
    """
    words, raw = vocabulary(), bytearray()
    for index in ids:
        if 0 <= index < len(words):
            raw += words[index].encode()
        else:
            raw += _unpacked(index - len(words))
    return raw.decode("utf-8", "replace")


def _unpacked(number: int) -> bytes:
    """Undo the packing: bijective base 256, least significant byte first."""
    if number <= 0:
        raise TokenError(f"there is no token with the id {number + len(vocabulary())}")
    raw = bytearray()
    while number > 0:
        number, byte = divmod(number - 1, 256)
        raw.append(byte)
        if len(raw) > PIECE_BYTES_MAX:
            raise TokenError("there is no token with so large an id")
    return bytes(raw)
