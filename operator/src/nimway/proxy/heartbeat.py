"""Signs of life for a streaming client whose request waits: comments of an event stream.

Owns when the next one is due and what becomes of an answer whose status can no longer be sent: the
first comment takes the head of a 200 with it. Exists only for a request that asks for it.
"""

from typing import Protocol

from nimway.proxy import answers
from nimway.proxy.answers import Answer
from nimway.proxy.upstream import Receiver
from nimway.proxy.wire import ResponseHead

COMMENT = b": waiting\n\n"
ERROR_BYTES_MAX = 64 * 1024
_OK = 200
_EVENT_STREAM = b"text/event-stream"


def build_stream_head() -> ResponseHead:
    """Return the head that goes out before there is an answer."""
    head = ResponseHead()
    head.status = _OK
    head.line = b"HTTP/1.1 200 OK"
    head.chunked = head.event_stream = True
    head.fields = [b"Content-Type: text/event-stream\r\n", b"Cache-Control: no-cache\r\n"]
    return head


class Streamer(Receiver, Protocol):
    """The exchange as its heartbeat sees it."""

    def fail_stream(self, answer: Answer, *, done: bool) -> None:
        """End a stream that has begun with an error event; `done`: the answer was read whole."""


class Heartbeat:
    """The heartbeat of one request; between the model server and the exchange it only listens.

    `is_open` says that a comment, hence the head, is out. `next_at` is the loop's time.
    """

    __slots__ = ("_error", "_exchange", "_period_s", "_status", "is_open", "method", "next_at")

    def __init__(self, exchange: Streamer, period_s: float, now: float) -> None:
        self._exchange = exchange
        self._period_s = period_s
        self._status = 0
        self._error = b""
        self.method = exchange.method
        self.is_open = False
        self.next_at = now + period_s

    def plan_next(self, now: float) -> None:
        """The next one is due a period from now."""
        self.next_at = now + self._period_s

    # What the model server's connection calls.

    def on_head(self, head: ResponseHead, pieces: list[bytes], *, done: bool) -> None:
        """Let a stream join the one that is open; keep what an error says."""
        if not self.is_open or (head.status == _OK and _is_stream(head)):
            self._exchange.on_head(head, pieces, done=done)
            return
        self._status = head.status
        self._take_error(pieces, done=done)

    def on_body(self, pieces: list[bytes], trailers: bytes, *, done: bool) -> None:
        """Let it pass, or keep it."""
        if self._status:
            self._take_error(pieces, done=done)
        else:
            self._exchange.on_body(pieces, trailers, done=done)

    def on_lost(self, *, malformed: bool) -> None:
        """Let the exchange know."""
        if self._status:
            self._take_error([], done=True)
        else:
            self._exchange.on_lost(malformed=malformed)

    def _take_error(self, pieces: list[bytes], *, done: bool) -> None:
        self._error = b"".join((self._error, *pieces))
        if done or len(self._error) > ERROR_BYTES_MAX:
            error = answers.relay_error(self._status, self._error)
            self._exchange.fail_stream(error, done=done)


def _is_stream(head: ResponseHead) -> bool:
    """Return whether events come; the fields still say so where a length is declared.

    Coded ones do not fit into a stream that began plain.
    """
    if head.encoded:
        return False
    lines = (line.lower().partition(b":") for line in head.fields)
    return head.event_stream or any(
        name == b"content-type" and value.strip().startswith(_EVENT_STREAM)
        for name, _, value in lines
    )
