"""How an answer is framed for its client: a length, chunks, or the end of the connection.

Owns what of an exchange its framing needs, and the bytes that framing adds. What passes, and when,
is `exchange.py`'s business, which builds on this.
"""

import re
from typing import Final

from nimway.proxy.downstream import Downstream
from nimway.proxy.heartbeat import COMMENT, Heartbeat, build_stream_head
from nimway.proxy.metrics import Answered
from nimway.proxy.wire import RequestHead, ResponseHead, build_response

ACCEPT_ENCODING: Final = re.compile(rb"(?i)accept-encoding:")

_SMALL_BYTES: Final = 1024
_SIZE_LINES: Final = [b"%x\r\n" % size for size in range(_SMALL_BYTES)]
"""First lines of small chunks: to write one takes a twentieth of an event's instructions."""


class Framed(Answered):
    """An answer on its way to one client."""

    # Defaults stand at the class: an assignment each costs.
    _chunked = False
    _keep_alive = False
    _downstream: Downstream
    _head: RequestHead

    def _plan_framing(self, head: ResponseHead, *, done: bool) -> bytes:
        """Return the header lines that say where the body ends, for this client."""
        length = head.length
        if head.chunked or (length is None and not done):
            if self._head.minor == 0:
                self._keep_alive, connection = self._downstream.plan_keep_alive(possible=False)
                return connection
            self._chunked = True
            self._keep_alive, connection = self._downstream.plan_keep_alive()
            return b"Transfer-Encoding: chunked\r\n" + connection
        self._keep_alive, connection = self._downstream.plan_keep_alive()
        if length is None:
            return connection
        return b"Content-Length: %d\r\n%b" % (length, connection)

    def _frame(self, pieces: list[bytes], parts: list[bytes]) -> int:
        """Add `pieces` to `parts` in the client's framing; return their size."""
        size = 0
        if self._chunked:
            for piece in pieces:
                size += len(piece)
                length = len(piece)
                line = _SIZE_LINES[length] if length < _SMALL_BYTES else b"%x\r\n" % length
                parts += (line, piece, b"\r\n")
        else:
            for piece in pieces:
                size += len(piece)
            parts += pieces
        self.bytes_out += size
        return size

    def _beat(self, heartbeat: Heartbeat, now: float) -> None:
        """Show a streaming client that its request is held; the first time with a head."""
        parts: list[bytes] = []
        if not heartbeat.is_open:
            heartbeat.is_open = True
            head = build_stream_head()
            fields = self._head.fields  # the head out says no coding, so none may come
            self._head.fields = [line for line in fields if not ACCEPT_ENCODING.match(line)]
            framing = self._plan_framing(head, done=False)
            parts.append(build_response(head, self._head.request_id, framing))
        heartbeat.plan_next(now)
        if not self._downstream.paused:
            size = self._frame([COMMENT], parts)
            self._downstream.write(parts, size)

    def _write_last(self, frame: bytes) -> None:
        """Write an error event, and end the connection without ending the stream."""
        parts: list[bytes] = []
        size = self._frame([frame], parts)
        self._downstream.write(parts, size)
        self._downstream.cut()
