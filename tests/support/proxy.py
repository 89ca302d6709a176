"""A real proxy worker over loopback, with a routing table given by the test: no Kubernetes.

`ProxyHarness` runs the worker's server in the test's own loop. Clients in another process or thread
(an SDK, curl) reach it at `base_url` as long as the loop runs; `run_in_thread` gives it a loop of
its own for tests that block.
"""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import uvloop

from nimway.proxy.messages import RouteEntry, ServiceEndpoints, Table
from nimway.proxy.server import Server
from nimway.proxy.settings import Settings
from nimway.routes import Policy

Address = tuple[str, int]
NAMESPACE = "models"
TEST_SETTINGS = Settings(allow_loopback=True, sweep_period_s=0.02)
IDLE_S = 3.0
"""So long what a client left behind may take to end by itself."""


@dataclass(frozen=True)
class Served:
    """One model: its name, the addresses of its model servers, and further served names."""

    model: str
    endpoints: Sequence[Address] = ()
    aliases: Sequence[str] = ()
    created_s: int = 1_750_000_000
    adapters: Sequence[str] = ()
    policy: Policy | None = None
    cold_start_s: int = 0

    @property
    def name(self) -> str:
        return "".join(char if char.isalnum() else "-" for char in self.model.lower())

    def to_route(self) -> RouteEntry:
        return RouteEntry(
            key=f"{NAMESPACE}/{self.name}",
            model=self.model,
            names=(self.model, *self.aliases),
            namespace=NAMESPACE,
            service=self.name,
            created_s=self.created_s,
            adapters=tuple(self.adapters),
            policy=self.policy,
            cold_start_s=self.cold_start_s,
        )


@dataclass
class ProxyHarness:
    """A running worker; change what it serves with `serve`."""

    server: Server
    port: int
    _ahead_s: float = 0.0

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass for the proxy's timeouts, and have it look at them."""
        if not self._ahead_s:
            self.server.now = lambda: time.monotonic() + self._ahead_s
        self._ahead_s += seconds
        self.server.sweep()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self, *models: Served, revision: str = "test") -> None:
        table = Table(revision, [model.to_route() for model in models])
        for _ in self.server.take_table(table):
            pass
        for model in models:
            self.set_endpoints(model.name, model.endpoints)

    def set_endpoints(self, service: str, endpoints: Sequence[Address]) -> None:
        self.server.replace_endpoints([ServiceEndpoints(NAMESPACE, service, list(endpoints))])

    def live_objects(self) -> Mapping[str, int]:
        """What must be 0 again once nothing is under way (idle connections apart)."""
        models = self.server.catalog.models.values()
        endpoints = self.server.catalog.endpoints()
        return {
            "exchanges": self.server.exchanges,
            "bodies_bytes": self.server.bodies_bytes,
            "held_bytes": self.server.held_bytes,
            "in_flight": sum(model.in_flight for model in models),
            "queued": sum(model.queued + len(model.room or ()) for model in models),
            "outstanding": sum(endpoint.outstanding for endpoint in endpoints),
            "connecting": sum(task.get_name() == "connect" for task in asyncio.all_tasks()),
        }

    async def become_idle(self) -> None:
        """Wait until nothing is left of what went through, before `stop` would end it.

        Raises:
            AssertionError: something is left after `IDLE_S`.
        """
        deadline_s = time.monotonic() + IDLE_S
        while any((left := self.live_objects()).values()):
            assert time.monotonic() < deadline_s, f"goes on without its client: {left}"
            await asyncio.sleep(0.01)


def listen() -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    return sock


@contextlib.asynccontextmanager
async def run_proxy(
    *models: Served, settings: Settings = TEST_SETTINGS
) -> AsyncIterator[ProxyHarness]:
    """Run a worker in this loop, ready and serving `models`."""
    sock = listen()
    server = Server(settings)
    server.ready = True
    harness = ProxyHarness(server, sock.getsockname()[1])
    harness.serve(*models)
    await server.start(sock)
    try:
        yield harness
        await harness.become_idle()
    finally:
        await server.stop()
        left = harness.live_objects()
        assert not any(left.values()), f"left behind: {left}"


@contextlib.contextmanager
def run_in_thread(*models: Served, settings: Settings = TEST_SETTINGS) -> Iterator[ProxyHarness]:
    """Run a worker in a thread with a loop of its own, for clients that block."""
    started = threading.Event()
    box: list[tuple[ProxyHarness, asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        ended = asyncio.Event()
        async with run_proxy(*models, settings=settings) as harness:
            box.append((harness, asyncio.get_running_loop(), ended))
            started.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: uvloop.run(serve()), name="proxy")
    thread.start()
    if not started.wait(10):
        raise TimeoutError("the proxy did not start")
    harness, loop, ended = box[0]
    try:
        yield harness
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
