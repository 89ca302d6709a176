"""The proxy's two connections without sockets: bytes in, facts out, in any split.

`feed_client` runs a `Downstream` and returns the requests that it would have served; `feed_server`
runs an `Upstream` and returns what its receiver was told.
"""

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from nimway.proxy.answers import Answer
from nimway.proxy.catalog import Endpoint
from nimway.proxy.downstream import Downstream
from nimway.proxy.upstream import Upstream
from nimway.proxy.wire import RequestHead, ResponseHead
from tests.support.proxy import TEST_SETTINGS


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        super().__init__()
        self.sent = b""
        self.closed = False
        self._sock = sock

    def write(self, data: Any) -> None:
        self.sent += data

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.sent += b"".join(list_of_data)

    def close(self) -> None:
        self.closed = True

    abort = close
    write_eof = close

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closed

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        del high, low

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._sock if name == "socket" else default


@dataclass
class Served:
    """A request that would have been served."""

    head: RequestHead
    body: bytes

    def facts(self) -> tuple[Any, ...]:
        head = self.head
        return (head.method, head.path, head.query, head.host, head.minor, tuple(head.fields)), (
            head.keep_alive,
            self.body,
        )


@dataclass
class Recorder:
    """The host of a client's connection; answers each request at once with `answer`."""

    settings: Any = TEST_SETTINGS
    connections: set[Downstream] = field(default_factory=set)
    served: list[Served] = field(default_factory=list)
    draining: bool = False
    stopping: bool = False
    bodies_bytes: int = 0
    answer: Answer = field(default_factory=lambda: Answer(200, b"ok"))

    def now(self) -> float:
        return 0.0

    def begin(self, downstream: Downstream, head: RequestHead) -> "_Handler":
        return _Handler(self, downstream, head)

    def next_request_id(self) -> bytes:
        return b"id"

    def forget(self, downstream: Downstream) -> None:
        self.connections.discard(downstream)


class _Handler:
    def __init__(self, recorder: Recorder, downstream: Downstream, head: RequestHead) -> None:
        self._recorder, self._downstream, self._head = recorder, downstream, head

    def admit(self) -> Answer | None:
        return None

    def run(self, body: bytes) -> None:
        self._recorder.served.append(Served(self._head, body))
        self._downstream.answer(self._recorder.answer, self._head.request_id)

    def refuse(self, answer: Answer) -> None:
        pass

    def cancel(self) -> None:
        pass

    pause = resume = cancel

    def check(self, now: float) -> None:
        pass


@dataclass
class ClientSide:
    """What became of a client's bytes."""

    served: list[Served]
    sent: bytes
    closed: bool
    held_bytes: int

    @property
    def statuses(self) -> list[int]:
        return [int(line[:3]) for line in self.sent.split(b"HTTP/1.1 ")[1:]]


def feed_client(parts: Iterable[bytes]) -> ClientSide:
    """Feed `parts` to a client's connection."""
    recorder, wire = Recorder(), Wire()
    downstream = Downstream(recorder)
    downstream.connection_made(wire)
    for part in parts:
        if not wire.closed:
            downstream.data_received(part)
    closed = wire.closed
    downstream.connection_lost(None)
    return ClientSide(recorder.served, wire.sent, closed, recorder.bodies_bytes)


@dataclass
class Told:
    """A receiver: what an exchange would have been told."""

    method: bytes = b"POST"
    head: ResponseHead | None = None
    body: bytes = b""
    trailers: bytes = b""
    done: bool = False
    lost: bool = False
    malformed: bool = False

    def on_head(self, head: ResponseHead, pieces: list[bytes], *, done: bool) -> None:
        assert self.head is None, "a second head"
        self.head, self.body, self.done = head, b"".join(pieces), done

    def on_body(self, pieces: list[bytes], trailers: bytes, *, done: bool) -> None:
        assert not self.done, "a body behind the end"
        self.body += b"".join(pieces)
        self.trailers, self.done = trailers, done

    def on_lost(self, *, malformed: bool) -> None:
        assert not self.done, "lost behind the end"
        self.lost, self.malformed = True, malformed

    def facts(self) -> tuple[Any, ...]:
        head = self.head
        line = b"" if head is None else head.line
        fields = () if head is None else tuple(head.fields)
        return line, fields, self.body, self.trailers, self.done, self.lost


def feed_server(parts: Iterable[bytes], *, end: bool = True) -> tuple[Told, bool]:
    """Feed `parts` as an answer; return what was told, and whether the connection is kept.

    With `end` the server then closes its side.
    """
    endpoint = Endpoint("127.0.0.1", 1)
    with socket.socket() as sock:
        wire, told = Wire(sock), Told()
        upstream = Upstream(endpoint, TEST_SETTINGS, set())
        upstream.connection_made(wire)
        upstream.send(told, b"POST / HTTP/1.1\r\n\r\n", b"")
        for part in parts:
            if not wire.closed:
                upstream.data_received(part)
        kept = upstream in endpoint.idle and not upstream.closed
        if wire.closed or end:
            upstream.connection_lost(None)
        return told, kept
