"""Bytes to facts and back: heads of requests and responses, and the chunked coding.

llhttp reads every line of a head (`lines.py`); the rules here refuse what it leaves open, each
named by its section of RFC 9112 or RFC 9110. A refused message ends its connection: whoever
disagrees with us about where a message ends must not get a second one across. This module does no
IO and keeps no body.
"""

import re
from functools import partial
from typing import Final

import httptools

from nimway.proxy.lines import (
    CRLF,
    HEAD_END,
    FieldLines,
    FirstLines,
    Rule,
    WireError,
    check_line,
    read_chunk_size,
)

__all__ = ["CRLF", "HEAD_END", "WireError"]  # callers need not know of lines.py

LAST_CHUNK: Final = b"0\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE_DELIMITED: Final = -1
"""Length of a response body that ends with its connection (RFC 9112 section 6.3, rule 8)."""

NOT_MODIFIED: Final = 304
BODILESS = (204, NOT_MODIFIED)
"""Statuses of answers that never have a body (RFC 9112 section 6.3, rule 1)."""

CHUNK_LINE_BYTES_MAX: Final = 256
SMALL_BYTES: Final = 4096
TRAILER_BYTES_MAX: Final = 8 * 1024
LENGTH_DIGITS_MAX: Final = 18
NOMINATED_MAX: Final = 32
HEARTBEAT_S_MAX: Final = 60

ABSOLUTE_FORM = re.compile(rb"(?i:https?)://([^/?]*)(.*)")
HOST_FORM = re.compile(rb"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
REQUEST_ID_FORM = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
SECONDS_FORM = re.compile(rb"[0-9]{1,6}(?:\.[0-9]{1,3})?")
STATUS_LINE_FORM = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
CHUNK_LINE_FORM = re.compile(
    rb"([0-9A-Fa-f]{1,12})"
    rb"(?:;[!#$%&'*+.^_`|~0-9A-Za-z-]++(?:=(?:[!#$%&'*+.^_`|~0-9A-Za-z-]++|\"[ !#-\[\]-~]*\"))?)*+"
)
TRAILER_FORM = re.compile(
    rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+", re.ASCII
)
BARE_LF = re.compile(rb"(?<!\r)\n")
EMPTY_LINES = re.compile(rb"(?:\r\n)*+")

_NEVER_NOMINATED = frozenset((b"content-type", b"content-encoding", b"set-cookie", b"traceparent"))
"""What a `Connection` field may not take away; framing and credentials are no such fields."""

_FORBIDDEN_TRAILERS = (b"content-length", b"transfer-encoding", b"host", b"connection")


class Head:
    """What both kinds of head share.

    `fields` are the lines to pass on, each with its CRLF; `length` is Content-Length or None.
    `keep_alive`: the peer goes on using the connection; `whole`: no rule concerns other fields.
    """

    # Defaults stand at the class: a head sets few of them.
    minor = 1
    length: int | None = None
    chunked = False
    close = False
    keep = False
    keep_alive = True
    nominated: tuple[bytes, ...] = ()
    whole = True
    fields: list[bytes]

    def read_fields(self, lines: list[bytes], known: FieldLines) -> None:
        """Take the lines behind the first, then apply what concerns them together: framing."""
        fields: list[bytes] = []
        self.fields = fields
        for at in range(1, len(lines)):
            rule, value, passed = known[lines[at]]
            if rule is None or rule(self, value):
                fields.append(passed)
        if not (self.whole and self.minor):
            self._join_rules()

    def _join_rules(self) -> None:
        """Apply what HTTP/1.0, `Transfer-Encoding` and `Connection` mean for the other fields."""
        if self.chunked:
            _check_chunked(self)
        if self.nominated:
            self.fields = _drop_nominated(self.fields, self.nominated)
        if self.close or not self.minor:  # RFC 9112 section 9.3
            self.keep_alive = self.keep and not self.close


class RequestHead(Head):
    """The facts of one request head; `timeout_s`, `heartbeat_s` are 0 where none is asked for."""

    method = b""
    path = b""
    query = b""
    host: bytes | None = None
    expect = False
    credentials: tuple[bytes, ...] = ()  # lines to pass on only where that is configured
    request_id = b""
    timeout_s = 0.0
    heartbeat_s = 0.0


class ResponseHead(Head):
    """The facts of one response head; `line` is the status line for the client."""

    status = 0
    line = b""
    event_stream = False
    encoded = False

    def body_length(self, method: bytes) -> int:
        """Return the length that RFC 9112 section 6.3 gives the body, if it is not chunked."""
        if method == b"HEAD" or self.status in BODILESS:
            return 0
        return CLOSE_DELIMITED if self.length is None else self.length


def read_request(data: bytes, fields_max: int = 100, line_bytes_max: int = 16384) -> RequestHead:
    """Read a request head; `data` ends with its empty line, or goes up to it.

    Raises:
        WireError: 400 for what no server may accept, 431 and 417 for what this one does not.
    """
    lines = data.removesuffix(HEAD_END).split(CRLF)
    if len(lines) > fields_max + 1 or len(data) > line_bytes_max:
        _check_size(lines, fields_max, line_bytes_max)
    head = RequestHead()
    head.method, absolute, head.path, head.query, head.minor = _request_first[lines[0]]
    head.read_fields(lines, _request_lines)
    if absolute:
        head.path, mark, query = _read_absolute_form(head, absolute).partition(b"?")
        head.query = mark + query
    if head.host is None and head.minor == 1:
        raise WireError(400, "Host is missing")
    return head


def read_response(data: bytes, fields_max: int = 100, line_bytes_max: int = 16384) -> ResponseHead:
    """Read a response head; `data` ends with its empty line, or goes up to it.

    Raises:
        WireError: whatever its status says, the answer for the client is 502.
    """
    lines = data.removesuffix(HEAD_END).split(CRLF)
    if len(lines) > fields_max + 1 or len(data) > line_bytes_max:
        _check_size(lines, fields_max, line_bytes_max)
    head = ResponseHead()
    head.minor, head.status, head.line = _status_first[lines[0]]
    head.read_fields(lines, _answer_lines)
    if head.status in BODILESS:
        _drop_framing(head)
    elif head.length is not None or head.encoded:
        # An error event has no room within a declared length, and no meaning in a coded one.
        head.event_stream = False
    return head


def _drop_framing(head: ResponseHead) -> None:
    """RFC 9110 section 8.6, RFC 9112 section 6.1: without a body there is nothing to frame.

    A server that frames one all the same may send it, too: its connection is not used again.
    """
    if head.chunked or head.length:
        head.keep_alive = False
    head.chunked = False
    if head.status != NOT_MODIFIED:
        head.length = None


def _check_size(lines: list[bytes], fields_max: int, line_bytes_max: int) -> None:
    """Bound number and length of the lines, the first one included (RFC 6585 section 5)."""
    if len(lines) > fields_max + 1:
        raise WireError(431, "too many header fields")
    if max(map(len, lines)) > line_bytes_max:
        raise WireError(431, "a line of the head is too long")


def _read_request_line(line: bytes) -> tuple[bytes, bytes, bytes, bytes, int]:
    """Return method, target if it is no path, path, query with its mark, and minor version.

    RFC 9112 section 3: three words, one space between them, HTTP/1.0 or 1.1, no fragment.
    """
    check_line(httptools.HttpRequestParser, line)
    words = line.split(b" ")
    if len(words) != 3 or not line[:1].isalpha():  # noqa: PLR2004 # method, target, version
        raise WireError(400, "malformed request line")
    method, target, version = words
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise WireError(400, "unsupported HTTP version")
    if b"#" in target:
        raise WireError(400, "a request target has no fragment")
    path, mark, query = target.partition(b"?")
    absolute = b"" if target.startswith(b"/") else target
    return method, absolute, path, mark + query, 1 if version == b"HTTP/1.1" else 0


def _read_status_line(line: bytes) -> tuple[int, int, bytes]:
    """RFC 9112 section 4: HTTP/1.0 or 1.1, three digits, one space between.

    Return minor version and status, and the line for the client: in our own version.
    """
    check_line(httptools.HttpResponseParser, line)
    match = STATUS_LINE_FORM.fullmatch(line)
    if match is None:
        raise WireError(502, "malformed status line")
    return int(match[1]), int(match[2]), b"HTTP/1.1 " + line[9:]


def _read_absolute_form(head: RequestHead, target: bytes) -> bytes:
    """RFC 9112 section 3.2.2: the target's authority replaces Host; return the origin-form."""
    match = ABSOLUTE_FORM.fullmatch(target)
    if match is None or not HOST_FORM.fullmatch(match[1]):
        raise WireError(400, "malformed request target")
    if head.host is not None:
        head.host = match[1]
    return match[2] if match[2].startswith(b"/") else b"/" + match[2]


def _check_chunked(head: Head) -> None:
    """RFC 9112 section 6.1: not in HTTP/1.0, and never beside Content-Length."""
    if head.minor == 0:
        raise WireError(400, "Transfer-Encoding in HTTP/1.0")
    if head.length is not None:
        raise WireError(400, "Transfer-Encoding and Content-Length")


def _drop_nominated(fields: list[bytes], nominated: tuple[bytes, ...]) -> list[bytes]:
    return [line for line in fields if line.partition(b":")[0].lower() not in nominated]


def _rule_host(head: RequestHead, value: bytes) -> None:
    """RFC 9112 section 3.2: once, and a host with an optional port, nothing else."""
    if head.host is not None:
        raise WireError(400, "Host is given twice")
    if not _hosts[value]:
        raise WireError(400, "malformed Host")
    head.host = value


def _rule_content_length(head: Head, value: bytes) -> None:
    """RFC 9112 section 6.3: one plain decimal number, once."""
    if head.length is not None:
        raise WireError(400, "malformed Content-Length")
    head.length = _lengths[value]


def _read_length(value: bytes) -> int:
    if not value.isdigit() or len(value) > LENGTH_DIGITS_MAX:
        raise WireError(400, "malformed Content-Length")
    return int(value)


def _rule_transfer_encoding(head: Head, value: bytes) -> None:
    """RFC 9112 section 6.1: `chunked`, once, alone."""
    if head.chunked or value.lower() != b"chunked":
        raise WireError(400, "unsupported Transfer-Encoding")
    head.chunked = True
    head.whole = False


def _rule_connection(head: Head, value: bytes) -> None:
    """RFC 9110 section 7.6.1: options of this hop, and names of fields for this hop."""
    head.whole = False
    for option in value.lower().split(b","):
        token = option.strip(b" \t")
        if token == b"close":
            head.close = True
        elif token == b"keep-alive":
            head.keep = True
        elif token and token not in _NEVER_NOMINATED:
            if len(head.nominated) == NOMINATED_MAX:
                raise WireError(400, "too many connection options")
            head.nominated += (token,)


def _rule_expect(head: RequestHead, value: bytes) -> None:
    """RFC 9110 section 10.1.1: `100-continue`, ignored in HTTP/1.0."""
    if value.lower() != b"100-continue":
        raise WireError(417, "unsupported expectation")
    head.expect = True


def _withhold(name: bytes, head: RequestHead, value: bytes) -> None:
    """Credentials are for whoever checks them before the model: who runs it must not see them."""
    if name == b"Authorization" and any(line.startswith(name) for line in head.credentials):
        raise WireError(400, "Authorization is given twice")
    head.credentials += (b"%b: %b\r\n" % (name, value),)


def _rule_request_id(head: RequestHead, value: bytes) -> None:
    if REQUEST_ID_FORM.fullmatch(value):
        head.request_id = value


def _rule_timeout(head: RequestHead, value: bytes) -> None:
    if not SECONDS_FORM.fullmatch(value) or not float(value):
        raise WireError(400, "x-nimway-timeout: expected seconds")
    head.timeout_s = float(value)


def _rule_heartbeat(head: RequestHead, value: bytes) -> None:
    if not SECONDS_FORM.fullmatch(value) or not 1 <= float(value) <= HEARTBEAT_S_MAX:
        raise WireError(400, f"x-nimway-heartbeat: expected 1 to {HEARTBEAT_S_MAX} seconds")
    head.heartbeat_s = float(value)


def _rule_content_type(head: ResponseHead, value: bytes) -> bool:
    if value[:17].lower() == b"text/event-stream":
        head.event_stream = True
    return True


def _rule_content_encoding(head: ResponseHead, value: bytes) -> bool:
    if value.lower() != b"identity":
        head.encoded = True
    return True


def _rule_drop(head: Head, value: bytes) -> None:
    """RFC 9110 section 7.6.1: the field is about one hop only, or is set anew by us."""


_HOP_BY_HOP: dict[bytes, Rule] = {
    b"connection": _rule_connection,
    b"content-length": _rule_content_length,
    b"transfer-encoding": _rule_transfer_encoding,
    **dict.fromkeys(
        (b"keep-alive", b"proxy-connection", b"te", b"upgrade", b"http2-settings"), _rule_drop
    ),
}

_CREDENTIALS = (b"Authorization", b"X-Api-Key", b"Api-Key", b"Cookie")

REQUEST_RULES: dict[bytes, Rule] = {
    **_HOP_BY_HOP,
    b"host": _rule_host,
    b"expect": _rule_expect,
    **{name.lower(): partial(_withhold, name) for name in _CREDENTIALS},
    b"proxy-authorization": _rule_drop,
    b"trailer": _rule_drop,
    b"x-request-id": _rule_request_id,
    b"x-nimway-timeout": _rule_timeout,
    b"x-nimway-heartbeat": _rule_heartbeat,
}

RESPONSE_RULES: dict[bytes, Rule] = {
    **_HOP_BY_HOP,
    b"content-type": _rule_content_type,
    b"content-encoding": _rule_content_encoding,
    b"proxy-authenticate": _rule_drop,
    b"x-request-id": _rule_drop,
}


_chunk_sizes: Final = FirstLines(read_chunk_size)
_hosts: Final = FirstLines(HOST_FORM.fullmatch)
_lengths: Final = FirstLines(_read_length)
_request_first: Final = FirstLines(_read_request_line)
_status_first: Final = FirstLines(_read_status_line)
_request_lines: Final = FieldLines(httptools.HttpRequestParser, b"GET / HTTP/1.1", REQUEST_RULES)
_answer_lines: Final = FieldLines(httptools.HttpResponseParser, b"HTTP/1.1 200 OK", RESPONSE_RULES)


def build_request(
    head: RequestHead, path: bytes, authority: bytes, length: int, credentials: tuple[bytes, ...]
) -> bytes:
    """Return the head for the model server; `path` is the allow-list's, without a query."""
    extra = b"".join(credentials) if credentials else b""
    fields = b"".join(head.fields)
    return (
        b"%b %b%b HTTP/1.1\r\nHost: %b\r\n%b%bContent-Length: %d\r\nX-Request-Id: %b\r\n\r\n"
    ) % (head.method, path, head.query, authority, fields, extra, length, head.request_id)


def build_response(head: ResponseHead, request_id: bytes, framing: bytes) -> bytes:
    """Return the head for the client; `framing` holds whole lines: length or coding, connection."""
    fields = b"".join(head.fields)
    return b"%b\r\n%b%bX-Request-Id: %b\r\n\r\n" % (head.line, fields, framing, request_id)


class Dechunker:
    """Takes the chunked coding off a body (RFC 9112 section 7.1), piece by piece as it comes.

    `done` is set after the last chunk and its trailers; then `trailers` holds the trailer lines,
    each with its CRLF, and `rest` what came behind the message.
    """

    __slots__ = ("_carry", "_in_trailers", "_left", "done", "rest", "trailers")

    def __init__(self) -> None:
        self._left = -1  # bytes of the current chunk with its CRLF still to come; -1: a size line
        self._carry = b""
        self._in_trailers = False
        self.done = False
        self.trailers = b""
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the pieces of the body in `data`, one for each chunk or part of a chunk.

        Raises:
            WireError: a chunk that a second parser could read otherwise.
        """
        if self._carry:
            data = self._carry + data
            self._carry = b""
        elif self._left < 0 and not self._in_trailers and len(data) <= SMALL_BYTES:
            line, _, rest = data.partition(CRLF)
            if (length := _chunk_sizes[line]) and rest[length:] == CRLF:
                return [rest[:length]]  # one whole chunk, as an event mostly comes
        pieces: list[bytes] = []
        at = 0
        size = len(data)
        while at < size and not self.done:
            if self._in_trailers:
                self._read_trailers(data, at)
                break
            if self._left < 0:
                at = self._read_size_line(data, at)
            else:
                at = self._read_chunk(data, at, pieces)
        return pieces

    def _read_size_line(self, data: bytes, at: int) -> int:
        end = data.find(CRLF, at, at + CHUNK_LINE_BYTES_MAX)
        if end < 0:
            if len(data) - at >= CHUNK_LINE_BYTES_MAX or BARE_LF.search(data, at):
                raise WireError(400, "malformed chunk size")
            self._carry = data[at:]
            return len(data)
        match = CHUNK_LINE_FORM.fullmatch(data, at, end)
        if match is None:
            raise WireError(400, "malformed chunk size")
        length = int(match[1], 16)
        self._in_trailers = length == 0
        self._left = length + 2
        return end + 2

    def _read_chunk(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Take what `data` holds of the chunk; the CRLF behind it counts as its last two bytes."""
        left = self._left
        available = len(data) - at
        if available >= left:
            end = at + left - 2
            if data[end : end + 2] != CRLF:
                raise WireError(400, "a chunk does not end where it says")
            if left > 2:  # noqa: PLR2004 # the CRLF alone
                pieces.append(data[at:end])
            self._left = -1
            return end + 2
        if available > left - 2:  # the CR is here, the LF is not: decide when both are
            if left > 2:  # noqa: PLR2004 # the CRLF alone
                pieces.append(data[at : at + left - 2])
            self._left = 2
            self._carry = data[at + left - 2 :]
            if self._carry != b"\r":
                raise WireError(400, "a chunk does not end where it says")
            return len(data)
        pieces.append(data[at:])
        self._left = left - available
        return len(data)

    def _read_trailers(self, data: bytes, at: int) -> None:
        if data.startswith(CRLF, at):
            end = at
        else:
            end = data.find(HEAD_END, at, at + TRAILER_BYTES_MAX)
            if end < 0:
                if len(data) - at >= TRAILER_BYTES_MAX or BARE_LF.search(data, at):
                    raise WireError(400, "malformed trailers")
                self._carry = data[at:]
                return
            end += 2
        if not TRAILER_FORM.fullmatch(data, at, end):
            raise WireError(400, "malformed trailers")
        self.trailers = _safe_trailers(data[at:end])
        self.rest = data[end + 2 :]
        self.done = True


def _safe_trailers(lines: bytes) -> bytes:
    """RFC 9110 section 6.5.1: framing and routing are never read from a trailer, so drop them."""
    return b"".join(_drop_nominated(lines.splitlines(keepends=True), _FORBIDDEN_TRAILERS))
