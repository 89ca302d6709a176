"""One client's connection: reads requests one after the other, writes answers in their order.

Owns the client's socket: heads, bodies, keep-alive, pipelining, flow control, lingering close. What
a request means and who answers it is its handler's business (`exchange.py`, `admin.py`).
"""

import asyncio
import re
import socket
import struct
from typing import Final, Protocol, cast

from nimway.proxy import answers
from nimway.proxy.answers import Answer
from nimway.proxy.handler import Handler
from nimway.proxy.settings import Settings
from nimway.proxy.wire import (
    BARE_LF,
    CONTINUE,
    CRLF,
    EMPTY_LINES,
    HEAD_END,
    Dechunker,
    RequestHead,
    WireError,
    read_request,
)

_JOIN_BYTES_MAX: Final = 16 * 1024
_JOIN_BYTES_MIN: Final = 4 * 1024
_CR: Final = 13
_NO_TRANSPORT: Final = asyncio.Transport()
_LINGER_NONE: Final = struct.pack("ii", 1, 0)
_METHOD_START: Final = re.compile(rb"([A-Z-]{1,16}) ")
"""A method that a line of the access log may hold as it is, whatever comes behind it."""

_HEAD: Final = 0
_BODY: Final = 1
_BUSY: Final = 2
_DISCARD: Final = 3
_LINGER: Final = 4
_CLOSED: Final = 5


class Host(Protocol):
    """What a connection needs of its server."""

    settings: Settings
    connections: "set[Downstream]"
    draining: bool
    stopping: bool
    bodies_bytes: int

    def now(self) -> float:
        """Return the loop's clock."""

    def begin(self, downstream: "Downstream", head: RequestHead) -> Handler:
        """Return the handler of a request; a head that was not read has no path."""

    def next_request_id(self) -> bytes:
        """Return an id for a request that brought none."""

    def forget(self, downstream: "Downstream") -> None:
        """Drop a connection that is closed."""


class Downstream(asyncio.Protocol):
    """The client's side of the proxy."""

    __slots__ = (
        "_advancing",
        "_body",
        "_body_end",
        "_body_left",
        "_body_size",
        "_buffer",
        "_deadline",
        "_dechunker",
        "_handler",
        "_head",
        "_host",
        "_keep_alive",
        "_linger_left",
        "_reading",
        "_scanned",
        "_served",
        "_state",
        "_transport",
        "paused",
    )

    def __init__(self, host: Host) -> None:
        self._host = host
        self._transport: asyncio.Transport = _NO_TRANSPORT
        self._state = _HEAD
        self._buffer = b""
        self._handler: Handler | None = None
        self._head: RequestHead | None = None
        self._body: list[bytes | bytearray] = []
        self._body_size = 0
        self._body_left = 0
        self._body_end = 0.0
        self._dechunker: Dechunker | None = None
        self._keep_alive = False
        self._deadline = 0.0
        self._linger_left = 0
        self._advancing = False
        self._scanned = 0
        self._reading = True
        self._served = False
        self.paused = False

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket, unless there are too many."""
        transport = cast("asyncio.Transport", transport)
        self._transport = transport
        host = self._host
        transport.set_write_buffer_limits(high=host.settings.write_buffer_bytes)
        self._deadline = host.now() + host.settings.timeout_head_s
        full = len(host.connections) >= host.settings.connections_max
        host.connections.add(self)
        if full:
            self._refuse(answers.overloaded(1))

    def data_received(self, data: bytes) -> None:
        """Take bytes as far as the state allows."""
        state = self._state
        if state == _HEAD:
            self._buffer = self._buffer + data if self._buffer else data
            self._advance()
        elif state in (_BODY, _DISCARD):
            self._take_body(data)
        elif state == _BUSY:
            self._buffer += data
            if len(self._buffer) > self._host.settings.pipelined_bytes_max:
                self._pause_reading()
        elif state == _LINGER:
            self._linger_left -= len(data)
            if self._linger_left < 0:
                self.abort()

    def eof_received(self) -> bool:
        """Take the client's FIN as its leaving: whoever waits for an answer keeps its side open."""
        self._leave()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the socket."""
        del exc
        self._leave()
        self._state = _CLOSED
        self._host.forget(self)

    def pause_writing(self) -> None:
        """The client does not keep up: stop whoever produces."""
        self.paused = True
        if self._handler is not None:
            self._handler.pause()

    def resume_writing(self) -> None:
        """The client took everything."""
        self.paused = False
        if self._handler is not None:
            self._handler.resume()
        elif self._state == _HEAD and self._buffer:
            self._advance()

    # What a handler calls.

    def write(self, parts: list[bytes], size: int) -> None:
        """Send `parts`, about `size` bytes in all."""
        if size <= _JOIN_BYTES_MAX:
            self._transport.write(b"".join(parts))
        else:
            self._transport.writelines(parts)

    def plan_keep_alive(self, *, possible: bool = True) -> tuple[bool, bytes]:
        """Return whether the connection outlives this answer, and the header line that says so."""
        head = self._head
        if head is None or not possible or self._host.draining or not head.keep_alive:
            return False, b"Connection: close\r\n"
        return True, b"" if head.minor else b"Connection: keep-alive\r\n"

    def answer(self, answer: Answer, request_id: bytes) -> None:
        """Send a whole answer of the proxy's own, and end the exchange."""
        body_read = self._state == _BUSY
        unread_ok = body_read or self._can_discard()
        keep_alive, connection = self.plan_keep_alive(possible=unread_ok)
        parts = [answers.build_head(answer, request_id, connection)]
        if self._head is None or self._head.method != b"HEAD":
            parts.append(answer.body)
        self.write(parts, len(answer.body))
        if body_read:
            self.finish(keep_alive=keep_alive)
        elif keep_alive:
            self._handler = None
            self._state = _DISCARD
        else:
            self._linger()

    def finish(self, *, keep_alive: bool) -> None:
        """The answer is written: read the next request, or close."""
        self._handler = None
        self._head = None
        if not keep_alive or (self._host.stopping and not self._buffer):
            self._close()
            return
        self._state = _HEAD
        self._served = True
        host = self._host
        self._deadline = host.now() + host.settings.timeout_client_idle_s
        if self._buffer:
            self._deadline = host.now() + host.settings.timeout_head_s
            if not self._reading:
                self._reading = True
                self._transport.resume_reading()
            self._advance()

    def cut(self) -> None:
        """End a streamed answer short: what is written still goes out, then FIN."""
        self._handler = None
        self._close()

    def abort(self) -> None:
        """End the connection at once with a reset: nothing may look complete."""
        self._leave()
        self._state = _CLOSED
        reset(self._transport)

    # What the server calls.

    @property
    def is_idle(self) -> bool:
        """Whether the connection is between two requests."""
        return self._state == _HEAD and not self._buffer

    def close_idle(self) -> None:
        """Close, if there is no request under way."""
        if self.is_idle:
            self._close()

    def check(self, now: float) -> None:
        """Look at the timeouts of this connection and of its request."""
        if self._handler is not None and self._state == _BUSY:
            self._handler.check(now)
            return
        if now < self._deadline or self._state == _BUSY:
            return
        if self._state == _HEAD and not self._buffer:
            self._close()
        elif self._state in (_HEAD, _BODY):
            self._refuse(answers.refused(408, "the request took too long to arrive"))
        else:
            self.abort()

    # Reading.

    def _advance(self) -> None:
        """Read requests from the buffer as long as they are answered at once."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._buffer and self._state == _HEAD and not self.paused:
                if not self._read_head():
                    break
        finally:
            self._advancing = False

    def _read_head(self) -> bool:
        """Begin one request; return False where its head is not complete."""
        data = self._buffer
        if data[0] == _CR and data.startswith(CRLF):
            # RFC 9112 section 2.2: empty lines before a request line
            self._buffer = data = EMPTY_LINES.sub(b"", data, count=1)
            if not data:
                return False
        settings = self._host.settings
        if self._scanned and data.find(HEAD_END, self._scanned) < 0:
            self._wait_for_head(data)
            return False
        text, found, rest = data.partition(HEAD_END)
        if not found or len(text) + 4 > settings.head_bytes_max:
            self._wait_for_head(data)
            return False
        self._scanned = 0
        try:
            head = read_request(text, settings.head_fields_max, settings.head_line_bytes_max)
        except WireError as error:
            self._refuse(answers.refused(error.status, error.reason))
            return False
        self._head = head
        self._begin(head, rest)
        return True

    def _wait_for_head(self, data: bytes) -> None:
        """Take note of how far the head was looked at: one that trickles is not read anew."""
        if len(data) >= self._host.settings.head_bytes_max:
            self._refuse(answers.refused(431, "the head is too large"))
        elif BARE_LF.search(data, self._scanned):
            self._refuse(answers.refused(400, "a line ends with a bare LF"))
        else:
            self._scanned = max(0, len(data) - len(HEAD_END) + 1)
            if self._served and self._deadline > 0:
                self._served = False
                self._deadline = self._host.now() + self._host.settings.timeout_head_s

    def _begin(self, head: RequestHead, rest: bytes) -> None:
        host = self._host
        if not head.request_id:
            head.request_id = host.next_request_id()
        self._handler = handler = host.begin(self, head)
        refusal = handler.admit()
        length = head.length or 0
        if refusal is None and not head.chunked and len(rest) >= length:
            self._state = _BUSY
            if len(rest) == length:
                self._buffer = b""
                handler.run(rest)
            else:
                self._buffer = rest[length:]
                handler.run(rest[:length])
            return
        self._body = []
        self._body_size = 0
        self._body_left = length
        self._dechunker = Dechunker() if head.chunked else None
        self._buffer = b""
        self._state = _BODY
        total_s = host.settings.timeout_total_s
        self._body_end = host.now() + min(head.timeout_s or total_s, total_s)
        self._plan_body()
        if refusal is not None:
            self._answer_early(refusal, head, rest)
            return
        if rest:
            self._take_body(rest)
        elif head.expect and head.minor:
            self._transport.write(CONTINUE)

    def _answer_early(self, refusal: Answer, head: RequestHead, rest: bytes) -> None:
        """Answer without the body: one that is here, or short, is read and thrown away."""
        if self._handler is not None:
            self._handler.refuse(refusal)
        self.answer(refusal, head.request_id)
        if self._state == _DISCARD:
            self._take_body(rest)

    def _can_discard(self) -> bool:
        head = self._head
        return (
            head is not None
            and not head.expect
            and self._dechunker is None
            and self._state in (_BODY, _DISCARD)
            and self._body_left <= self._host.settings.discard_bytes_max
        )

    def _plan_body(self) -> None:
        """A body may be silent for so long, and take as long as the whole request may."""
        idle_s = self._host.settings.timeout_body_idle_s
        self._deadline = min(self._host.now() + idle_s, self._body_end)

    def _take_body(self, data: bytes) -> None:
        self._plan_body()
        if self._dechunker is None:
            piece = data if len(data) <= self._body_left else data[: self._body_left]
            self._body_left -= len(piece)
            pieces, done = [piece], self._body_left == 0
            rest = data[len(piece) :]
        else:
            try:
                pieces = self._dechunker.feed(data)
            except WireError as error:
                self._refuse(answers.refused(error.status, error.reason))
                return
            done, rest = self._dechunker.done, self._dechunker.rest
        if self._state == _DISCARD:
            if done:
                self._buffer = rest
                self.finish(keep_alive=True)
            return
        size = self._keep(pieces)
        self._body_size += size
        self._host.bodies_bytes += size
        if done:
            self._finish_body(rest)
        else:
            self._check_body_size()

    def _keep(self, pieces: list[bytes]) -> int:
        """Add to the body; tiny pieces, each an object, would cost many times their bytes."""
        piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if len(piece) >= _JOIN_BYTES_MIN or not self._body:
            self._body.append(piece)
        elif isinstance(tail := self._body[-1], bytearray):
            tail += piece
        else:
            self._body.append(bytearray(piece))
        return len(piece)

    def _check_body_size(self) -> None:
        settings = self._host.settings
        if self._body_size > settings.body_bytes_max:
            self._refuse(answers.refused(413, "the body is too large"))
        elif self._host.bodies_bytes > settings.bodies_bytes_max:
            self._refuse(answers.overloaded(1))

    def _finish_body(self, rest: bytes) -> None:
        if self._body_size > self._host.settings.body_bytes_max:
            self._refuse(answers.refused(413, "the body is too large"))
            return
        handler = self._handler
        body = b"".join(self._body)
        self._drop_body()
        self._buffer = rest
        self._state = _BUSY
        if handler is not None:
            handler.run(body)

    def _drop_body(self) -> None:
        self._host.bodies_bytes -= self._body_size
        self._body = []
        self._body_size = 0
        self._dechunker = None

    # Ending.

    def _refuse(self, answer: Answer) -> None:
        """Answer a message that cannot be trusted or waited for, and close safely.

        Its handler counts and logs it: a message whose head was not read gets one for that.
        """
        handler, self._handler = self._handler, None
        head, self._head = self._head, None
        if handler is None or head is None:
            head = self._build_unread()
            handler = self._host.begin(self, head)
        handler.refuse(answer)
        parts = [answers.build_head(answer, head.request_id, b"Connection: close\r\n"), answer.body]
        self.write(parts, len(answer.body))
        self._linger()

    def _build_unread(self) -> RequestHead:
        """Return what a head is that was not read: a new id, and the method if that is plain."""
        head = RequestHead()
        head.request_id = self._host.next_request_id()
        if match := _METHOD_START.match(self._buffer):
            head.method = match[1]
        return head

    def _linger(self) -> None:
        """Close in two steps: a reset for unread bytes would take the answer with it."""
        self._handler = None
        self._drop_body()
        self._buffer = b""
        self._state = _LINGER
        settings = self._host.settings
        self._linger_left = settings.linger_bytes_max
        self._deadline = self._host.now() + settings.linger_s
        if not self._transport.is_closing() and self._transport.can_write_eof():
            self._transport.write_eof()

    def _close(self) -> None:
        """Close once everything written is sent; the sweep ends what a client does not take."""
        self._state = _CLOSED
        self._buffer = b""
        self._deadline = self._host.now() + self._host.settings.timeout_idle_s
        self._transport.close()

    def _leave(self) -> None:
        """The client is gone: so is its request."""
        self._drop_body()
        self._buffer = b""
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.cancel()

    def _pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._transport.pause_reading()


def reset(transport: asyncio.Transport) -> None:
    """Close with RST: an answer that ends with its connection must not look complete."""
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        except OSError:
            pass  # it is closed already
    transport.abort()
