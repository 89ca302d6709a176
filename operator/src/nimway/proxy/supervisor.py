"""The workers of a proxy pod: starts them, tells them what to serve, restarts the dead.

Owns the processes and their channels, and what the workers report. It keeps the newest table and
endpoints, so that a worker that starts later gets the same as the others.
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from nimway.proxy.addresses import format_authority
from nimway.proxy.channel import Channel
from nimway.proxy.exposition import keep_totals
from nimway.proxy.messages import (
    Counters,
    Drain,
    Drained,
    Endpoints,
    Load,
    Ping,
    Ready,
    Scrape,
    ServiceEndpoints,
    Serving,
    Sharing,
    Table,
    ToWorker,
    encode,
    split,
    to_parent,
)
from nimway.proxy.settings import Settings
from nimway.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
STEADY_S = 10.0
SCRAPE_TIMEOUT_S = 2.0
PING_PERIOD_S = 10.0
PINGS_MISSED_MAX = 3
"""A worker that answers none of so many hangs: its clients would wait for ever."""

_log = logging.getLogger(__name__)
_Load = tuple[int, int, int]


ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_TOP_PAD_": str(1 << 20),
}
"""Keeps up to 64 MiB of freed memory in a worker (mallopt(3)). Otherwise glibc maps each large body
anew and gives it back, which costs more than a third of a request of 1 MiB."""


def build_environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return a worker's environment; what a user set for the pod goes before ours."""
    return {**ALLOCATOR, **own}


class WorkerHandle:
    """One worker as the parent sees it; `revision` is None until it listens."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.revision: str | None = None
        self.load: dict[str, _Load] = {}
        self.counters: Counters | None = None
        self._draft = Counters(0, {})
        self.pings_missed = 0

    def take_counters(self, part: Counters) -> bool:
        """Take a part of the worker's counters; return whether that was the last one."""
        if part.number != self._draft.number:
            self._draft = Counters(part.number, {})
        for name, entries in part.values.items():
            self._draft.values.setdefault(name, []).extend(entries)
        if not part.more:
            self.counters, self._draft = self._draft, Counters(-1, {})
        return not part.more


_NOTHING: _Load = (0, 0, 0)


class _Loads(dict[str, _Load]):
    """The load of the models that were asked for; of the others, nothing."""

    def __missing__(self, key: str) -> _Load:
        return _NOTHING


class Supervisor:
    """All workers of this pod."""

    def __init__(self, settings: Settings, *, count: int, host: str, port: int) -> None:
        self._settings = settings
        self._count = count
        self._address = (host, port)
        self._handles: set[WorkerHandle] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._endpoints: dict[tuple[str, str], ServiceEndpoints] = {}
        self._table: Table | None = None
        self._ready = Ready(ready=False)
        self._sharing = Sharing(1, count)
        self._drain: Drain | None = None
        self._past_demand: dict[str, int] = {}
        self._keys: frozenset[str] = frozenset()
        self._load = _Loads()
        self._past = Counters(0, {})
        self._common_revision = ""
        self._scrape = 0
        self._scraped = asyncio.Event()
        self.restarts = 0
        self.on_change: Callable[[], None] = _ignore
        self.on_urgent: Callable[[], None] = _ignore

    # What the parent asks.

    @property
    def serving(self) -> int:
        """Workers that listen."""
        return sum(handle.revision is not None for handle in self._handles)

    @property
    def revision(self) -> str:
        """The last revision that all listening workers served at once, or "" before the first."""
        return self._common_revision if self.serving else ""

    def load(self) -> Mapping[str, _Load]:
        """Return per model: in flight, queued, and demand since the pod started.

        It is added up with each report and not when asked for: a walk over all models with each
        change would be most of what this process does. Models nobody asked for are not in it.
        """
        return self._load

    async def scrape(self) -> list[Counters]:
        """Return the counters of every worker that answers in time, and of those that ended."""
        self._scrape += 1
        number = self._scrape
        self._send(Scrape(number))
        try:
            async with asyncio.timeout(SCRAPE_TIMEOUT_S):
                while any(_is_behind(handle, number) for handle in self._handles):
                    self._scraped.clear()
                    await self._scraped.wait()
        except TimeoutError:
            _log.warning("reporting metrics without a worker that does not answer")
        now = [handle.counters for handle in self._handles if handle.counters is not None]
        return [self._keep((self._past,)), *now]

    def _keep(self, reports: Iterable[Counters]) -> Counters:
        models = {route.model for route in self._table.routes} if self._table is not None else set()
        addresses = {
            format_authority(*address)
            for service in self._endpoints.values()
            for address in service.ready
        }
        return keep_totals(reports, models, addresses)

    # What the parent says.

    def start(self) -> None:
        """Start the workers."""
        self._tasks = [
            spawn(self._keep_running(number), name=f"worker {number}")
            for number in range(self._count)
        ]

    def replace_table(self, table: Table) -> None:
        """Have every worker serve `table`; a model that comes back begins without load."""
        self._table = table
        self._keys = frozenset(route.key for route in table.routes)
        for key in self._load.keys() - self._keys:
            self._past_demand[key] = self._load.pop(key)[2]
            for handle in self._handles:
                handle.load.pop(key, None)
        for key in self._past_demand.keys() & self._keys:
            self._load[key] = 0, 0, self._past_demand.pop(key)
        for part in split(table):
            self._send(part)

    def replace_endpoints(self, services: list[ServiceEndpoints]) -> None:
        """Have every worker use these endpoints."""
        for service in services:
            key = (service.namespace, service.service)
            if service.ready:
                self._endpoints[key] = service
            else:
                self._endpoints.pop(key, None)
        for part in split(Endpoints(services)):
            self._send(part)

    def share_among(self, pods: int) -> None:
        """Have every worker take its part of limits that count over all ready proxy pods."""
        sharing = Sharing(max(1, pods), self._count)
        if sharing != self._sharing:
            self._sharing = sharing
            self._send(sharing)

    def set_ready(self, *, ready: bool) -> None:
        """Have the workers' health answers say so."""
        if ready != self._ready.ready:
            self._ready = Ready(ready)
            self._send(self._ready)

    def drain(self, *, stop: bool) -> None:
        """Announce the end to clients, or end."""
        self._drain = Drain(stop)
        self._send(self._drain)

    async def wait_ended(self) -> None:
        """Wait until every worker has ended, after `drain(stop=True)`."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop(self) -> None:
        """End the workers at once: they go when their channel ends."""
        for task in self._tasks:
            task.cancel()
        for handle in self._handles:
            handle.channel.close()

    # One worker.

    async def _keep_running(self, number: int) -> None:
        backoff_s = BACKOFF_MIN_S
        loop = asyncio.get_running_loop()
        while not self._is_draining():
            started = loop.time()
            status: int | str
            try:
                status = await self._run_one(number)
            except OSError as error:  # no process or descriptor is left: there may be one later
                status = str(error)
            if self._is_draining():
                return
            self.restarts += 1
            backoff_s = BACKOFF_MIN_S if loop.time() - started > STEADY_S else backoff_s * 2
            _log.error(
                "restarting a worker",
                extra={"fields": {"worker": number, "status": status, "backoff_s": backoff_s}},
            )
            await asyncio.sleep(min(backoff_s, BACKOFF_MAX_S))

    def _is_draining(self) -> bool:
        return self._drain is not None

    async def _run_one(self, number: int) -> int:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs, ExitStack() as failed:
            failed.callback(ours.close)
            ours.setblocking(False)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "nimway.proxy.worker",
                str(theirs.fileno()),
                self._address[0],
                str(self._address[1]),
                msgspec.json.encode(self._settings).decode(),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env=build_environment(os.environ),
            )
            failed.pop_all()
        _log.info("started a worker", extra={"fields": {"worker": number, "pid": process.pid}})
        handle: WorkerHandle | None = None

        def take(frame: bytes) -> None:
            if handle is not None:
                self._handle(handle, frame)

        channel = Channel(take, lambda: None)
        handle = WorkerHandle(channel)
        try:
            await loop.create_unix_connection(lambda: channel, sock=ours)
            self._handles.add(handle)
            self._greet(channel)
            return await _wait_for_end(process, handle)
        finally:
            self._forget(handle)
            channel.close()

    def _greet(self, channel: Channel) -> None:
        """Tell a new worker all that the others know; the table last, for then it listens."""
        channel.send(self._ready)
        channel.send(self._sharing)
        for part in split(Endpoints(list(self._endpoints.values()))):
            channel.send(part)
        if self._table is not None:
            for part in split(self._table):
                channel.send(part)
        if self._drain is not None:
            channel.send(self._drain)

    def _forget(self, handle: WorkerHandle) -> None:
        """Keep the totals of a worker that ended: a counter never goes back."""
        self._handles.discard(handle)
        for key, load in handle.load.items():
            self._add_load(key, (-load[0], -load[1], 0))
        if handle.counters is not None:
            self._past = self._keep((self._past, handle.counters))
        self._scraped.set()
        self.on_change()

    def _take_load(self, handle: WorkerHandle, models: Mapping[str, _Load]) -> None:
        """Add what changed of one worker's load; models that left the table do not count."""
        for key, new in models.items():
            if key in self._keys:
                old = handle.load.get(key, _NOTHING)
                handle.load[key] = new
                self._add_load(key, (new[0] - old[0], new[1] - old[1], new[2] - old[2]))

    def _add_load(self, key: str, more: _Load) -> None:
        so_far = self._load[key]
        self._load[key] = so_far[0] + more[0], so_far[1] + more[1], so_far[2] + more[2]

    def _handle(self, handle: WorkerHandle, frame: bytes) -> None:
        message = to_parent.decode(frame)
        if isinstance(message, Serving):
            handle.revision = message.revision
            revisions = {each.revision for each in self._handles if each.revision is not None}
            if len(revisions) == 1:
                self._common_revision = message.revision
                self.on_change()
        elif isinstance(message, Load):
            self._take_load(handle, message.models)
            (self.on_urgent if message.urgent else self.on_change)()
        elif isinstance(message, Counters):
            if handle.take_counters(message):
                self._scraped.set()
        elif isinstance(message, Ping):
            handle.pings_missed = 0
        elif isinstance(message, Drained):
            handle.revision = None

    def _send(self, message: ToWorker) -> None:
        frame = encode(message)
        for handle in self._handles:
            handle.channel.send_frame(frame)


async def _wait_for_end(process: asyncio.subprocess.Process, handle: WorkerHandle) -> int:
    """Wait until a worker ends, and return its status; end one whose loop turns no more."""
    while True:
        handle.channel.send(Ping())
        try:
            async with asyncio.timeout(PING_PERIOD_S):
                return await process.wait()
        except TimeoutError:
            handle.pings_missed += 1
        if handle.pings_missed > PINGS_MISSED_MAX:
            _log.error("ending a worker that hangs", extra={"fields": {"pid": process.pid}})
            process.kill()
            return await process.wait()


def _is_behind(handle: WorkerHandle, number: int) -> bool:
    """Return whether a listening worker has not answered scrape `number`."""
    if handle.revision is None:
        return False
    return handle.counters is None or handle.counters.number < number


def _ignore() -> None:
    """Nobody listens yet."""
