"""Vectors of requests: what a proxy must refuse and must accept, each under its source.

A source is a section of RFC 9110 or RFC 9112, or a published class of request smuggling: CL.TE,
TE.CL, TE.TE, CL.0 (James Kettle, PortSwigger 2019-2022), TERM.EXT, EXT.TERM, SPILL (Jeppe Bonde
Weikop, "Funky chunks", 2025). The tables stand in `vectors_*.py`; here is what they share.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

MODEL = "meta/llama-3.1-8b-instruct"
BODY = b'{"model": "meta/llama-3.1-8b-instruct", "prompt": "Once upon a time"}'
PATH = b"/v1/completions"
SMUGGLED = (
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-Smuggled: 1\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)

Groups = Mapping[str, Mapping[str, bytes]]


@dataclass(frozen=True)
class Accepted:
    """A whole request, and what a model server must be told by it."""

    data: bytes
    query: bytes = b""
    fields: tuple[tuple[bytes, bytes], ...] = ()
    absent: tuple[bytes, ...] = ()
    body: bytes = BODY


def flatten(groups: Groups) -> dict[str, bytes]:
    """All vectors of a table; a name stands once in it."""
    names = list(chain.from_iterable(groups.values()))
    assert len(names) == len(set(names)), "a name is given twice"
    return {name: data for group in groups.values() for name, data in group.items()}


def get(lines: bytes) -> bytes:
    """A GET with a Host and the given field lines, each without its end."""
    return b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % lines


def head(lines: bytes, *, version: bytes = b"1.1") -> bytes:
    """The head of a POST with a Host and the given field lines."""
    return b"POST /v1/completions HTTP/%b\r\nHost: a\r\n%b\r\n\r\n" % (version, lines)


def splits(data: bytes, *, offsets_max: int = 400) -> list[list[bytes]]:
    """Whole, byte by byte, and in two parts at each offset (every so many, if it is long)."""
    step = 1 + len(data) // offsets_max
    pairs = [[data[:at], data[at:]] for at in range(1, len(data), step)]
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    return [[data], pieces, *pairs]
