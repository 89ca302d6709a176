"""Deterministic embeddings: texts that share words point in similar directions.

Owns vectors and scores. Each word adds a few signed ones at places given by its hash (feature
hashing), and the sum is brought to length 1.
"""

import base64
import hashlib
import math
import re
import struct
from collections.abc import Sequence

_PLACES_PER_WORD = 8


def embedding(text: str, dimensions: int, *, salt: str = "") -> list[float]:
    """Return a vector of `dimensions` numbers and length 1; `salt` turns it elsewhere."""
    vector = [0.0] * dimensions
    for word in (salt, *re.findall(r"\w+", text.lower())):
        digest = hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()
        for place in range(_PLACES_PER_WORD):
            (number,) = struct.unpack_from(">I", digest, 4 * place)
            vector[(number >> 1) % dimensions] += 1.0 if number & 1 else -1.0
    length = math.sqrt(sum(number * number for number in vector))
    if length == 0.0:
        return [1.0] + [0.0] * (dimensions - 1)
    return [number / length for number in vector]


def similarity(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine of two vectors of length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def packed(vector: Sequence[float]) -> str:
    """Return `vector` as OpenAI's `encoding_format: base64`, little-endian 32-bit floats."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
