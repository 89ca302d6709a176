"""How an answer is framed for its client: a length, chunks, or the end of the connection.

Owns what of an exchange its framing needs, and the bytes that framing adds. What passes, and when,
is `exchange.py`'s business, which builds on this.
"""

from nimway.proxy.downstream import Downstream
from nimway.proxy.metrics import Answered
from nimway.proxy.wire import RequestHead, ResponseHead


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
                parts += (b"%x\r\n" % len(piece), piece, b"\r\n")
        else:
            for piece in pieces:
                size += len(piece)
            parts += pieces
        self.bytes_out += size
        return size
