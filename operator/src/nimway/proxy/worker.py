"""A worker process: `python -m nimway.proxy.worker FD HOST PORT SETTINGS`, started by the parent.

Owns the listener and the channel to its parent over the socket `FD`. It imports no Kubernetes
client: tables and endpoints come through the channel, load and counters go back. It listens only
once it has a table, so that a restarted worker never answers 404 for a model it has yet to hear of.
"""

import asyncio
import gc
import os
import resource
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator

import msgspec
import uvloop

from nimway.proxy.channel import Channel
from nimway.proxy.logs import LineWriter
from nimway.proxy.messages import (
    Counters,
    Drain,
    Drained,
    Endpoints,
    Load,
    Ping,
    Ready,
    Scrape,
    Serving,
    Sharing,
    Table,
    ToWorker,
    to_worker,
)
from nimway.proxy.scrape import collect
from nimway.proxy.server import Server
from nimway.proxy.settings import Settings
from nimway.tasks import spawn

GC_OBJECTS = 20_000
"""So many new objects are searched for cycles: requests leave none, thousands are under way."""

DESCRIPTORS_MAX = 1 << 20
"""More open files than a worker's connections on both sides can ever be."""

ORPHANED_S = 1.0
_LARGE_BYTES = 4096


class Worker:
    """Glue between the channel and the server."""

    def __init__(self, settings: Settings, host: str, port: int) -> None:
        self._settings = settings
        self._address = (host, port)
        self._loop = asyncio.get_running_loop()
        epoch_s = time.time_ns() / 1e9 - time.monotonic()
        self._server = Server(settings, epoch_s=epoch_s)
        self._server.on_dirty = self._plan_report
        self._server.on_urgent = self._send_urgent
        self._server.on_lines = self._write_lines
        self._writer = LineWriter(1)
        self._listening = False
        self._draining = False
        self._ended = asyncio.Event()
        self._frames: deque[bytes] = deque()
        self._steps: Iterator[None] | None = None
        self._scrapes: deque[int] = deque()
        self._channel = Channel(self._take, self._ended.set)

    async def run(self, sock: socket.socket) -> None:
        """Serve until the parent says drain, or is gone: then who waits is sent elsewhere."""
        await self._loop.create_unix_connection(lambda: self._channel, sock=sock)
        await self._ended.wait()
        await self._server.drain(ORPHANED_S)

    def _take(self, frame: bytes) -> None:
        """Handle one frame a turn of the loop: a large table comes in many, requests between."""
        self._frames.append(frame)
        if len(self._frames) == 1:
            self._loop.call_soon(self._handle_next)

    def _handle_next(self) -> None:
        """Handle the first frame, or its next step; it stays first until its last step."""
        frame, done = self._frames[0], True
        try:
            if self._steps is None:
                self._steps = self._handle(to_worker.decode(frame))
            done = next(self._steps, self) is self
        finally:
            if done:
                self._steps = None
                self._frames.popleft()
                if len(frame) > _LARGE_BYTES:
                    gc.freeze()  # a table's objects stay: a full collection would walk them
            if self._frames:
                self._loop.call_soon(self._handle_next)

    def _handle(self, message: ToWorker) -> Iterator[None]:
        if isinstance(message, Endpoints):
            self._server.replace_endpoints(message.services)
        elif isinstance(message, Table):
            yield from self._server.take_table(message)
            if not message.more:
                self._serve()
        elif isinstance(message, Sharing):
            self._server.share_among(message.pods, message.workers)
        elif isinstance(message, Ready):
            self._server.ready = message.ready
        elif isinstance(message, Ping):
            self._channel.send(message)
        elif isinstance(message, Scrape):
            self._scrapes.append(message.number)
            if len(self._scrapes) == 1:
                self._send_counters(collect(self._server, message.number))
        elif isinstance(message, Drain):
            self._drain(stop=message.stop)

    def _serve(self) -> None:
        """A whole table is served: say so, or listen if it is the first one."""
        if self._listening:
            self._channel.send(Serving(self._server.catalog.revision))
        else:
            self._listening = True
            spawn(self._listen(), name="listen")

    async def _listen(self) -> None:
        """Listen and say so; a worker that cannot ends, and its parent tries again."""
        sock = socket.socket(socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            sock.bind(self._address)
            await self._server.start(sock)
        except OSError:
            self._ended.set()
            raise
        self._channel.send(Serving(self._server.catalog.revision))

    def _drain(self, *, stop: bool) -> None:
        self._server.ready = False
        self._server.announce_drain()
        if stop and not self._draining:
            self._draining = True
            spawn(self._drain_and_end(), name="drain")

    async def _drain_and_end(self) -> None:
        await self._server.drain(self._settings.drain_s)
        self._send_load()
        self._scrapes.clear()
        for part in collect(self._server, 0):
            self._channel.send(part)
        self._channel.send(Drained())
        self._ended.set()

    def _send_counters(self, parts: Iterator[Counters]) -> None:
        """Send a part a turn of the loop: thousands of models make many, requests between."""
        if not self._scrapes:
            return  # the last counters of all were sent meanwhile
        part = next(parts)
        self._channel.send(part)
        if not part.more:
            self._scrapes.popleft()
            if not self._scrapes:
                return
            parts = collect(self._server, self._scrapes[0])
        self._loop.call_soon(self._send_counters, parts)

    def _write_lines(self, lines: bytes) -> None:
        self._server.meters.lines_dropped += self._writer.write(lines)

    def _plan_report(self) -> None:
        self._loop.call_later(self._settings.report_delay_s, self._send_load)

    def _send_load(self) -> None:
        load = self._server.take_load()
        if load:
            self._channel.send(Load(load))

    def _send_urgent(self) -> None:
        self._channel.send(Load(self._server.take_load(), urgent=True))


async def _main(descriptor: int, host: str, port: int, settings: Settings) -> None:
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(False)
    await Worker(settings, host, port).run(sock)


def raise_descriptor_limit() -> None:
    """Allow as many open files as this process may: many runtimes begin with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(arguments: list[str]) -> None:
    """Run one worker; signals are the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    descriptor, host, port, settings = arguments
    os.set_inheritable(int(descriptor), False)
    raise_descriptor_limit()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS)
    uvloop.run(
        _main(int(descriptor), host, int(port), msgspec.json.decode(settings, type=Settings))
    )


if __name__ == "__main__":
    main(sys.argv[1:])
