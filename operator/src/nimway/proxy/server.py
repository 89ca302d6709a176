"""One worker's server: the listener, its connections, the sweep, and the end.

Owns what lives as long as the worker and the one timer: every deadline of every connection is
looked at by `sweep`. What a request means is `exchange.py`'s business.
"""

import asyncio
import errno
import os
import random
import socket
import time
from typing import TYPE_CHECKING, Final

from nimway.proxy.catalog import Catalog, Endpoint, Model
from nimway.proxy.downstream import Downstream
from nimway.proxy.exchange import Exchange
from nimway.proxy.host import Host
from nimway.proxy.messages import ServiceEndpoints, Table
from nimway.proxy.metrics import Meters
from nimway.proxy.retry import RetryBudget
from nimway.proxy.room import Room
from nimway.proxy.settings import Settings
from nimway.proxy.upstream import Upstream
from nimway.proxy.wire import RequestHead
from nimway.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

RELEASE_MAX: Final = 256
LAST_WAIT_S: Final = 1.0
_FADE_SWEEPS: Final = 40
OUR_ERRORS: Final = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
)
"""Why no connection can be made that speaks against no endpoint: this machine has none left."""


class Server(Host):
    """Everything one worker serves with; made inside a running loop."""

    def __init__(self, settings: Settings, *, epoch_s: float = 0.0) -> None:
        self.settings = settings
        self.catalog = Catalog(settings)
        self.meters = Meters(settings, epoch_s)
        self.meters.on_full = self.flush_lines
        self.budget = RetryBudget(settings)
        self.connections: set[Downstream] = set()
        self.exchanges = 0
        self.upstreams: set[Upstream] = set()
        self.bodies_bytes = 0
        self.ready = False
        self.connect = self._start_connecting
        self.draining = False
        self.stopping = False
        self.hold_until = 0.0
        self.held_bytes = 0
        self.dirty: list[Model] = []
        self.on_dirty: Callable[[], None] = _ignore
        self.on_urgent: Callable[[], None] = _ignore
        self.on_lines: Callable[[bytes], None] = _ignore_lines
        self._loop = asyncio.get_running_loop()
        self.now = time.monotonic  # the loop's own clock counts milliseconds
        self.random = random.random
        self._id_prefix = os.urandom(6).hex().encode()
        self._id_count = 0
        self._listener: asyncio.Server | None = None
        self._sweep_handle: asyncio.TimerHandle | None = None
        self._sweeps = 0
        self._empty = asyncio.Event()

    # Life.

    async def start(self, sock: socket.socket) -> None:
        """Accept connections on a bound socket."""
        self._listener = await self._loop.create_server(
            self._accept, sock=sock, backlog=self.settings.backlog
        )
        self._sweep_handle = self._loop.call_later(self.settings.sweep_period_s, self._sweep_on)

    def _accept(self) -> Downstream:
        return Downstream(self)

    def announce_drain(self) -> None:
        """Tell each client with its next answer that the connection ends; accept new ones still."""
        self.draining = True

    async def drain(self, timeout_s: float) -> None:
        """Accept no more, close idle connections, wait for the requests under way, then stop.

        Who waits for a model without endpoints is sent elsewhere at once; who waits for a place at
        an endpoint has until shortly before the end.
        """
        self.draining = True
        self.stopping = True
        self.hold_until = self.now() + timeout_s - LAST_WAIT_S
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in list(self.connections):
            connection.close_idle()
            connection.check(self.now())
        try:
            async with asyncio.timeout(timeout_s):
                while self.connections:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            pass
        await self.stop()

    async def stop(self) -> None:
        """End everything at once."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._sweep_handle is not None:
            self._sweep_handle.cancel()
            self._sweep_handle = None
        for connection in list(self.connections):
            connection.abort()
        for upstream in list(self.upstreams):
            upstream.abort()
        while self.connections or self.upstreams:  # noqa: ASYNC110 # closed in the loop's next turn
            await asyncio.sleep(0)
        self.flush_lines()

    # What a connection and an exchange call.

    def begin(self, downstream: Downstream, head: RequestHead) -> Exchange:
        """Return the handler of a request."""
        return Exchange(self, downstream, head)

    def next_request_id(self) -> bytes:
        """Return an id that no other worker gives."""
        self._id_count += 1
        return b"%b-%d" % (self._id_prefix, self._id_count)

    def forget(self, downstream: Downstream) -> None:
        """Drop a connection that is closed."""
        self.connections.discard(downstream)
        if not self.connections:
            self._empty.set()

    def changed(self, model: Model) -> None:
        """Take note that a model's load changed."""
        if not model.dirty:
            model.dirty = True
            self.dirty.append(model)
            if len(self.dirty) == 1:
                self.on_dirty()

    def urge(self) -> None:
        """Have the load that changed reported at once."""
        self.on_urgent()

    def release(self, model: Model) -> None:
        """Let requests of a model go for which there is a place now, in order.

        Not all at once: connecting takes the loop's time, and without `maxConcurrency` the first
        pod of several would get them all.
        """
        room = model.room
        if not room or room.pacing:
            return
        settings, most = self.settings, RELEASE_MAX
        if not model.limits.concurrency:
            most = min(most, settings.release_burst * max(1, len(model.endpoints)))
        if room.release(most):
            room.pacing = True
            self._loop.call_later(settings.release_step_s, self._release_next, model, room)

    def _release_next(self, model: Model, room: Room) -> None:
        room.pacing = False
        self.release(model)

    def _start_connecting(self, endpoint: Endpoint, exchange: Exchange) -> None:
        """Open a connection for `exchange`; if it has gone by then, the next request takes it."""
        spawn(self._connect(endpoint, exchange), name="connect")

    async def _connect(self, endpoint: Endpoint, exchange: Exchange) -> None:
        settings = self.settings
        upstream = Upstream(endpoint, settings, self.upstreams)
        try:
            async with asyncio.timeout(exchange.timeout_connect_s):
                await self._loop.create_connection(
                    lambda: upstream, endpoint.address, endpoint.port
                )
        except (OSError, TimeoutError) as error:
            if exchange.wants(endpoint):
                exchange.on_connect_failed(ours=error.errno in OUR_ERRORS)
            return
        if exchange.wants(endpoint) and not upstream.closed:
            exchange.on_connected(upstream)
        elif exchange.wants(endpoint):
            exchange.on_connect_failed()
        elif upstream.closed or not endpoint.listed:
            upstream.abort()
        else:
            endpoint.idle.append(upstream)

    # What the control channel calls.

    def take_table(self, table: Table) -> "Iterator[None]":
        """Take a part of a new routing table; serve it from its last part on.

        In steps of a few ms, between which the loop may turn.
        """
        self.catalog.draft_routes(table.revision, table.routes)
        if table.more:
            return
        yield
        yield from self.catalog.adopt()
        for model in self.catalog.commit():
            if model.room:
                model.room.dismiss()
        yield
        models = list(self.catalog.models.values())
        self._release(models)
        yield
        yield from self.meters.forget(frozenset(model.name for model in models))

    def replace_endpoints(self, services: list[ServiceEndpoints]) -> None:
        """Send new requests to these endpoints; connections to those that left end when idle."""
        for service in services:
            for endpoint in self.catalog.replace_endpoints(service):
                for upstream in list(endpoint.idle):
                    upstream.abort()
                endpoint.idle.clear()
            self._release(self.catalog.models_behind(service))

    def share_among(self, pods: int, workers: int) -> None:
        """Take a part of each limit that counts over the workers of this pod, or of all pods."""
        self._release(self.catalog.share_among(pods, workers))

    def _release(self, models: "Iterable[Model]") -> None:
        """Let requests go for which there may be a place now."""
        for model in models:
            if model.room:
                self.release(model)

    def take_load(self) -> dict[str, tuple[int, int, int]]:
        """Return the load of the models that changed since the last call.

        A request of a model that left the table does not speak for another one of its key.
        """
        changed, self.dirty = self.dirty, []
        for model in changed:
            model.dirty = False
        models = self.catalog.models
        return {
            model.key: (model.in_flight, model.queued, model.demand_total)
            for model in changed
            if models.get(model.key) is model
        }

    # The one timer.

    def _sweep_on(self) -> None:
        self._sweep_handle = self._loop.call_later(self.settings.sweep_period_s, self._sweep_on)
        self.sweep()

    def sweep(self) -> None:
        """Look at every deadline, end idle connections to model servers, hand out log lines."""
        now = self.now()
        self.meters.tick(now, self.settings.sweep_period_s)
        for connection in list(self.connections):
            connection.check(now)
        idle_s = self.settings.timeout_upstream_idle_s
        for upstream in list(self.upstreams):
            upstream.check_idle(now, idle_s)
        self.catalog.shed()
        self._sweeps += 1
        if self._sweeps % _FADE_SWEEPS == 0:
            self.budget.fade()
        self.flush_lines()

    def flush_lines(self) -> None:
        """Hand out the access log's lines."""
        if lines := self.meters.take_lines():
            self.on_lines(lines)


def _ignore() -> None:
    """Nobody listens yet."""


def _ignore_lines(lines: bytes) -> None:
    """Nobody writes the log."""
