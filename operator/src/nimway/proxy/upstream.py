"""One connection to a model server: sends a request, reads the answer, waits for the next.

Owns the server's socket and the reading of its answers; `exchange.py` decides what is sent and what
becomes of an answer. A connection whose answer was not clean to the last byte is never used again.
"""

import asyncio
import select
from typing import Final, Protocol, cast

from nimway.proxy.catalog import Endpoint
from nimway.proxy.settings import Settings
from nimway.proxy.wire import (
    CLOSE_DELIMITED,
    HEAD_END,
    Dechunker,
    ResponseHead,
    WireError,
    read_response,
)

_JOIN_BYTES_MAX: Final = 16 * 1024
_NO_TRANSPORT: Final = asyncio.Transport()
_POLL_EVENTS: Final = select.POLLIN | select.POLLRDHUP
_INTERIM: Final = 200
_SWITCHING: Final = 101

_IDLE: Final = 0
_HEAD: Final = 1
_LENGTH: Final = 2
_CHUNKED: Final = 3
_CLOSE: Final = 4


class Receiver(Protocol):
    """Whoever sent the request: gets its answer, piece by piece."""

    method: bytes

    def on_head(self, head: ResponseHead, pieces: list[bytes], *, done: bool) -> None:
        """Take the head and what came of the body with it; `done`: that was all."""

    def on_body(self, pieces: list[bytes], trailers: bytes, *, done: bool) -> None:
        """Take more of the body."""

    def on_lost(self, *, malformed: bool) -> None:
        """Take note that the answer will not come, or not to its end."""


class Upstream(asyncio.Protocol):
    """The model server's side of the proxy; serves one request at a time."""

    __slots__ = (
        "_buffer",
        "_dechunker",
        "_interim",
        "_left",
        "_poll",
        "_receiver",
        "_reusable",
        "_settings",
        "_state",
        "_transport",
        "closed",
        "endpoint",
        "idle_since",
        "live",
    )

    def __init__(self, endpoint: Endpoint, settings: Settings, live: "set[Upstream]") -> None:
        self.endpoint = endpoint
        self.live = live
        self.closed = False
        self.idle_since = 0.0
        self._settings = settings
        self._transport: asyncio.Transport = _NO_TRANSPORT
        self._poll = select.poll()
        self._receiver: Receiver | None = None
        self._state = _IDLE
        self._buffer = b""
        self._left = 0
        self._interim = 0
        self._reusable = False
        self._dechunker: Dechunker | None = None

    # What the exchange calls.

    def is_alive(self) -> bool:
        """Return whether an idle connection is still open, asking the kernel, not the loop."""
        return not self.closed and not self._poll.poll(0)

    def send(self, receiver: Receiver, head: bytes, body: bytes) -> None:
        """Send one request and have `receiver` told of the answer."""
        self._receiver = receiver
        self._state = _HEAD
        self.idle_since = 0.0
        self._interim = 0
        self._reusable = True
        if len(body) <= _JOIN_BYTES_MAX:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def abort(self) -> None:
        """Close now: nobody wants the rest of the answer."""
        self._receiver = None
        self.closed = True
        self._transport.abort()

    def check_idle(self, now: float, idle_s: float) -> None:
        """Close a connection that no request has used for `idle_s`; called by the sweep.

        The first sweep that finds it idle sets its clock, so it lives up to one period longer.
        """
        if self._state != _IDLE or self.closed:
            self.idle_since = 0.0
        elif not self.idle_since:
            self.idle_since = now
        elif now - self.idle_since > idle_s:
            if self in self.endpoint.idle:
                self.endpoint.idle.remove(self)
            self.abort()

    def pause(self) -> None:
        """Read no more until `resume`: the client does not keep up."""
        if not self.closed:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if not self.closed:
            self._transport.resume_reading()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket."""
        transport = cast("asyncio.Transport", transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=self._settings.write_buffer_bytes)
        self._poll.register(transport.get_extra_info("socket").fileno(), _POLL_EVENTS)
        self.live.add(self)

    def data_received(self, data: bytes) -> None:
        """Take bytes of an answer, and refuse bytes that nobody asked for."""
        state = self._state
        try:
            if state == _CHUNKED:
                self._take_chunked(data)
            elif state == _LENGTH:
                self._take_length(data)
            elif state == _HEAD:
                self._take_head(data)
            elif state == _CLOSE and self._receiver is not None:
                self._receiver.on_body([data], b"", done=False)
            else:
                self._drop()
        except WireError:
            receiver = self._receiver
            self.abort()
            if receiver is not None:
                receiver.on_lost(malformed=True)

    def eof_received(self) -> bool:
        """Take the server's FIN: no further request goes this way."""
        self.closed = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the receiver, and forget the socket."""
        self.closed = True
        self.live.discard(self)
        receiver, self._receiver = self._receiver, None
        if self._state == _IDLE and self in self.endpoint.idle:
            self.endpoint.idle.remove(self)
        if receiver is None:
            return
        if self._state == _CLOSE and exc is None:
            receiver.on_body([], b"", done=True)
        else:
            receiver.on_lost(malformed=False)

    # Reading an answer.

    def _take_head(self, data: bytes) -> None:
        settings = self._settings
        if self._buffer:
            whole = self._buffer + data
            if whole.find(HEAD_END, max(0, len(self._buffer) - len(HEAD_END) + 1)) < 0:
                self._keep_head(whole)
                return
            data = whole
            self._buffer = b""
        while True:
            text, found, rest = data.partition(HEAD_END)
            if not found or len(text) + 4 > settings.head_bytes_max:
                self._keep_head(data)
                return
            head = read_response(text, settings.head_fields_max, settings.head_line_bytes_max)
            if head.status >= _INTERIM:
                break
            data = rest
            self._interim += 1
            if head.status == _SWITCHING or self._interim > settings.interim_responses_max:
                raise WireError(502, "unexpected interim response")
        self._begin_body(head, rest)

    def _keep_head(self, data: bytes) -> None:
        if len(data) >= self._settings.head_bytes_max:
            raise WireError(502, "the head is too large")
        self._buffer = data

    def _begin_body(self, head: ResponseHead, rest: bytes) -> None:
        receiver = self._receiver
        if receiver is None:
            self._drop()
            return
        if not head.keep_alive:
            self._reusable = False
        if head.chunked and receiver.method != b"HEAD":
            self._begin_chunked(head, rest, receiver)
            return
        length = head.body_length(receiver.method)
        if length == len(rest):
            self._finish(b"")
            receiver.on_head(head, [rest] if rest else [], done=True)
        elif length == CLOSE_DELIMITED:
            self._state = _CLOSE
            self._reusable = False
            receiver.on_head(head, [rest] if rest else [], done=False)
        elif length > len(rest):
            self._left = length - len(rest)
            self._state = _LENGTH
            receiver.on_head(head, [rest] if rest else [], done=False)
        else:
            self._finish(rest[length:])
            receiver.on_head(head, [rest[:length]] if length else [], done=True)

    def _begin_chunked(self, head: ResponseHead, rest: bytes, receiver: Receiver) -> None:
        self._state = _CHUNKED
        self._dechunker = dechunker = Dechunker()
        if not rest:
            receiver.on_head(head, [], done=False)
            return
        pieces = dechunker.feed(rest)
        receiver.on_head(head, pieces, done=False)
        if dechunker.done:
            self._finish(dechunker.rest)
            receiver.on_body([], dechunker.trailers, done=True)

    def _take_length(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:
            self._drop()
            return
        piece = data if len(data) <= self._left else data[: self._left]
        self._left -= len(piece)
        if self._left:
            receiver.on_body([piece], b"", done=False)
            return
        self._finish(data[len(piece) :])
        receiver.on_body([piece], b"", done=True)

    def _take_chunked(self, data: bytes) -> None:
        receiver, dechunker = self._receiver, self._dechunker
        if receiver is None or dechunker is None:
            self._drop()
            return
        pieces = dechunker.feed(data)
        if dechunker.done:
            self._finish(dechunker.rest)
            receiver.on_body(pieces, dechunker.trailers, done=True)
        elif pieces:
            receiver.on_body(pieces, b"", done=False)

    def _finish(self, rest: bytes) -> None:
        """The answer is complete: wait for the next request, or close if that is not safe."""
        self._receiver = None
        self._state = _IDLE
        self._dechunker = None
        endpoint = self.endpoint
        if (
            rest  # RFC 9112 section 6.3: bytes that belong to no answer
            or not self._reusable
            or self.closed
            or not endpoint.listed
            or len(endpoint.idle) >= self._settings.upstream_idle_max
            or self._transport.get_write_buffer_size()
        ):
            self._drop()
        else:
            endpoint.idle.append(self)

    def _drop(self) -> None:
        self.closed = True
        self._transport.abort()
