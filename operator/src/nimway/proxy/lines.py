"""Lines of heads, each read by llhttp once and remembered: most lines of a head came before.

Owns llhttp, the memory of what it said, and its bounds. What a field means is `wire.py`'s business.
"""

from collections.abc import Callable
from typing import Any

import httptools

HEAD_END = b"\r\n\r\n"
CRLF = b"\r\n"

_NEVER_KEPT = frozenset(
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

KEPT_LINES_MAX = 1024
KEPT_LINE_BYTES_MAX = 256


class WireError(Exception):
    """A message that must not be answered as if it had been understood; `status` is the answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


Rule = Callable[[Any, bytes], None]
Line = tuple[Rule | None, bytes, tuple[bytes, ...]]
"""A field line as read: the rule it is for, if any, its value, and the parts to pass on."""


class FieldLines(dict[bytes, Line]):
    """Field lines by what they mean; a line that is not known yet is read by llhttp.

    Most lines of a head came before: the same client, the same model server. Reading each line by
    itself is safe because nothing in llhttp's grammar reaches over a CRLF but line folding, which
    is refused, and framing, which the rules decide over the whole head. Credentials and ids are
    never kept, and what is kept is bounded.
    """

    def __init__(
        self, parser: Callable[[Any], Any], first: bytes, rules: dict[bytes, Rule]
    ) -> None:
        super().__init__()
        self._parser = parser
        self._first = first + CRLF
        self._rules = rules

    def __missing__(self, line: bytes) -> Line:
        """Read a line.

        Raises:
            WireError: llhttp does not take it, or not as one field.
        """
        found = _Fields()
        _feed(self._parser(found), self._first + line + HEAD_END)
        name, colon, rest = line.partition(b":")
        value = rest.strip(b" \t")
        if not colon or found.fields != [(name, value)]:
            raise WireError(400, "malformed field line")
        low = name.lower()
        rule = self._rules.get(low)
        read = (rule, value, (name, b": ", value, CRLF))
        if len(line) <= KEPT_LINE_BYTES_MAX and low not in _NEVER_KEPT:
            if len(self) >= KEPT_LINES_MAX:
                self.clear()
            self[line] = read
        return read


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
