"""Port 8001: metrics, health and the `/state` stream, over the same HTTP code as port 8000.

Owns this port's paths and its connections; what it reports comes from its `Source`.
"""

import asyncio
import socket
from typing import Protocol

from nimway import state
from nimway.proxy import answers
from nimway.proxy.answers import Answer
from nimway.proxy.downstream import Downstream
from nimway.proxy.settings import Settings
from nimway.proxy.wire import RequestHead
from nimway.state import ProxyState
from nimway.tasks import spawn

URGENT_PERIOD_S = 0.002
_SWEEP_PERIOD_S = 1.0
_METRICS_PATHS = (b"/metrics", b"/v1/metrics")
_LIVE_PATHS = (b"/health", b"/v1/health/live", b"/healthz")
_READY_PATHS = (b"/v1/health/ready", b"/readyz")
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
    b"Cache-Control: no-store\r\nConnection: close\r\n"
)


class Source(Protocol):
    """What is reported."""

    def state(self) -> ProxyState:
        """Return the report of now."""

    async def metrics(self) -> bytes:
        """Return the Prometheus text."""


class AdminServer:
    """The server of port 8001; lives in the parent process."""

    def __init__(self, settings: Settings, source: Source) -> None:
        self.settings = settings
        self.source = source
        self.connections: set[Downstream] = set()
        self.streams: set[AdminExchange] = set()
        self.draining = False
        self.stopping = False
        self.bodies_bytes = 0
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._ids = 0
        self._listener: asyncio.Server | None = None
        self._report_planned = False
        self._urgent_planned = False
        self._last_report_at = 0.0
        self._sweep_handle: asyncio.TimerHandle | None = None

    async def start(self, sock: socket.socket) -> None:
        """Accept connections on a bound socket."""
        self._listener = await self._loop.create_server(lambda: Downstream(self), sock=sock)
        self._sweep()

    def stop(self) -> None:
        """End everything at once."""
        if self._listener is not None:
            self._listener.close()
        if self._sweep_handle is not None:
            self._sweep_handle.cancel()
        for connection in list(self.connections):
            connection.abort()

    def plan_report(self) -> None:
        """Send the state to the streams: at once after a pause, else soon, many changes in one."""
        if self._report_planned or not self.streams:
            return
        self._report_planned = True
        wait_s = self._last_report_at + self.settings.report_delay_s - self.now()
        self._loop.call_later(max(0.0, wait_s), self._report)

    def report(self) -> None:
        """Send the state to the streams at once, unless that was done a moment ago."""
        wait_s = self._last_report_at + URGENT_PERIOD_S - self.now()
        if wait_s <= 0:
            self._report()
        elif not self._urgent_planned:
            self._urgent_planned = True
            self._loop.call_later(wait_s, self._report)

    def begin(self, downstream: Downstream, head: RequestHead) -> "AdminExchange":
        """Return the handler of a request."""
        return AdminExchange(self, downstream, head)

    def next_request_id(self) -> bytes:
        """Return an id."""
        self._ids += 1
        return b"admin-%x" % self._ids

    def forget(self, downstream: Downstream) -> None:
        """Drop a connection that is closed."""
        self.connections.discard(downstream)

    def _report(self) -> None:
        self._report_planned = False
        self._urgent_planned = False
        self._last_report_at = self.now()
        if self.streams:
            line = state.encode(self.source.state())
            for stream in list(self.streams):
                stream.send(line)

    def _sweep(self) -> None:
        self._sweep_handle = self._loop.call_later(_SWEEP_PERIOD_S, self._sweep)
        now = self.now()
        for connection in list(self.connections):
            connection.check(now)
        if now - self._last_report_at >= state.REPORT_PERIOD_S - _SWEEP_PERIOD_S:
            self._report()


class AdminExchange:
    """One request on port 8001."""

    __slots__ = ("_behind", "_chunked", "_done", "_downstream", "_head", "_paused", "_server")

    def __init__(self, server: AdminServer, downstream: Downstream, head: RequestHead) -> None:
        self._server = server
        self._downstream = downstream
        self._head = head
        self._chunked = head.minor == 1
        self._paused = False
        self._behind = False
        self._done = False

    def admit(self) -> Answer | None:
        """Refuse what this port has not."""
        path = self._head.path
        if path not in (*_METRICS_PATHS, *_LIVE_PATHS, *_READY_PATHS, b"/state"):
            return answers.NOT_FOUND
        if self._head.method not in (b"GET", b"HEAD"):
            return answers.method_not_allowed(b"GET, HEAD")
        return None

    def run(self, body: bytes) -> None:
        """Answer."""
        del body
        path = self._head.path
        if path in _METRICS_PATHS:
            spawn(self._answer_metrics(), name="metrics")
        elif path in _READY_PATHS:
            ready = self._server.source.state().ready
            self._answer(answers.OK_READY if ready else answers.NOT_READY)
        elif path == b"/state" and self._head.method == b"GET":
            self._stream()
        else:
            self._answer(answers.OK_LIVE)

    def refuse(self, answer: Answer) -> None:
        """The connection answers."""
        del answer
        self._done = True

    def cancel(self) -> None:
        """The client is gone."""
        self._done = True
        self._server.streams.discard(self)

    def pause(self) -> None:
        """Only the newest state matters: leave lines out until the client reads on."""
        self._paused = True

    def resume(self) -> None:
        """Send the newest state, if lines were left out."""
        self._paused = False
        if self._behind and not self._done:
            self._behind = False
            self.send(state.encode(self._server.source.state()))

    def check(self, now: float) -> None:
        """A stream has no end of its own."""

    def send(self, line: bytes) -> None:
        """Send one line of the stream."""
        if self._paused:
            self._behind = True
            return
        parts = [b"%x\r\n" % len(line), line, b"\r\n"] if self._chunked else [line]
        self._downstream.write(parts, len(line))

    def _stream(self) -> None:
        framing = b"Transfer-Encoding: chunked\r\n" if self._chunked else b""
        self._downstream.write([_STREAM_HEAD, framing, b"\r\n"], 0)
        self._server.streams.add(self)
        self.send(state.encode(self._server.source.state()))

    async def _answer_metrics(self) -> None:
        text = await self._server.source.metrics()
        if not self._done:
            self._answer(Answer(200, text, content_type=answers.TEXT))

    def _answer(self, answer: Answer) -> None:
        self._done = True
        self._downstream.answer(answer, self._head.request_id)
