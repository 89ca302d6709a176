"""Lines of heads, each read once and remembered: most lines of a head came before.

Owns llhttp, the memory of what it said, and its bounds. What a field means is `wire.py`'s business.
"""

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import httptools

HEAD_END: Final = b"\r\n\r\n"
CRLF: Final = b"\r\n"

_NEVER_KEPT: Final = frozenset(
    (
        b"authorization",
        b"proxy-authorization",
        b"cookie",
        b"set-cookie",
        b"x-api-key",
        b"api-key",
        b"x-request-id",
        b"traceparent",
        b"tracestate",
    )
)
"""Fields whose lines are not remembered: credentials, and values that come once."""

_PLAIN_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]++):([\t\x20-\x7e]*+)")
"""RFC 9110 section 5: a token, a colon, and text in ASCII. llhttp reads such a line no otherwise,
but for the fields below, of which it reads the values, too."""

_PLAIN_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,4}")
_READ_BY_LLHTTP: Final = frozenset(
    (b"connection", b"proxy-connection", b"transfer-encoding", b"upgrade", b"content-length")
)
_LENGTH: Final = b"content-length"
_LENGTH_DIGITS_MAX: Final = 18  # llhttp takes what fits into 64 bits

KEPT_FIRST_LINES_MAX: Final = 256
KEPT_LINES_MAX: Final = 1024
KEPT_OF_A_FIELD_MAX: Final = 64
KEPT_LINE_BYTES_MAX: Final = 256


T = TypeVar("T")


class WireError(Exception):
    """A message that must not be answered as if it had been understood; `status` is the answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


Rule = Callable[[Any, bytes], bool | None]
"""What a field's value does to a head; the line is passed on only where it returns true."""

Line = tuple[Rule | None, bytes, bytes]
"""A field line as read: the rule it is for, if any, its value, and the line to pass on."""


class FieldLines(dict[bytes, Line]):
    """Field lines by what they mean; a line that is not known yet is read, by llhttp if not plain.

    Most lines of a head came before: the same client, the same model server. Reading each line by
    itself is safe because nothing in llhttp's grammar reaches over a CRLF but line folding, which
    is refused, and framing, which the rules decide over the whole head. Credentials and ids are
    never kept, and what is kept is bounded, also for each field: one whose value is always new
    takes no place of the others.
    """

    def __init__(
        self, parser: Callable[[Any], Any], first: bytes, rules: dict[bytes, Rule]
    ) -> None:
        super().__init__()
        self._parser = parser
        self._first = first + CRLF
        self._rules = rules
        self._kept: dict[bytes, list[bytes]] = {}

    def __missing__(self, line: bytes) -> Line:
        """Read a line.

        Raises:
            WireError: llhttp does not take it, or not as one field.
        """
        name, low, value = read_plain(line) or self.read(line)
        read = (self._rules.get(low), value, b"%b: %b\r\n" % (name, value))
        if len(line) <= KEPT_LINE_BYTES_MAX and low not in _NEVER_KEPT:
            self._keep(low, line, read)
        return read

    def read(self, line: bytes) -> tuple[bytes, bytes, bytes]:
        """Have llhttp read a line; return its name, that in lower case, and its value.

        Raises:
            WireError: llhttp does not take it, or not as one field.
        """
        found = _Fields()
        _feed(self._parser(found), self._first + line + HEAD_END)
        name, colon, rest = line.partition(b":")
        value = rest.strip(b" \t")
        if not colon or found.fields != [(name, value)]:
            raise WireError(400, "malformed field line")
        return name, name.lower(), value

    def _keep(self, low: bytes, line: bytes, read: Line) -> None:
        if len(self) >= KEPT_LINES_MAX:
            self.clear()
            self._kept.clear()
        kept = self._kept.setdefault(low, [])
        if len(kept) >= KEPT_OF_A_FIELD_MAX:
            for old in kept:
                del self[old]
            kept.clear()
        kept.append(line)
        self[line] = read


def read_plain(line: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Return what llhttp would find in a line that leaves it no choice, or None for another line.

    That is most of those that are new: ids, credentials and lengths; llhttp takes ten times as
    long.
    """
    match = _PLAIN_LINE.fullmatch(line)
    if match is None:
        return None
    name, rest = match.groups()
    value = rest.strip(b" \t")
    low = name.lower()
    if low in _READ_BY_LLHTTP and not (
        low == _LENGTH and value.isdigit() and len(value) <= _LENGTH_DIGITS_MAX
    ):
        return None
    return name, low, value


class FirstLines(dict[bytes, T]):
    """First lines of heads and chunks, and hosts: what `read` says of each; emptied when full."""

    def __init__(self, read: Callable[[bytes], T]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, line: bytes) -> T:
        """Read a line."""
        read = self._read(line)
        if len(self) >= KEPT_FIRST_LINES_MAX:
            self.clear()
        self[line] = read
        return read


def read_chunk_size(line: bytes) -> int:
    """Return the size in a chunk's first line that is plain hex, or 0 for another line."""
    return int(line, 16) if _PLAIN_SIZE.fullmatch(line) else 0


class _Fields:
    """The fields that llhttp finds."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field from llhttp."""
        self.fields.append((name, value.strip(b" \t")))


def check_line(parser: Callable[[Any], Any], line: bytes) -> None:
    """Have llhttp look at a request line or a status line.

    Raises:
        WireError: it does not take it.
    """
    _feed(parser(_Fields()), line + HEAD_END)


def _feed(parser: Any, data: bytes) -> None:
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # RFC 9110 section 7.8: a server may ignore Upgrade; CONNECT has no route
    except httptools.HttpParserError as error:
        raise WireError(400, f"malformed head: {error}") from error
