"""The parent process of a proxy pod: joins the feed, the workers and port 8001.

Owns readiness and the end of the pod. It serves no model traffic.
"""

import asyncio
import logging
import signal
import socket
from contextlib import aclosing
from dataclasses import dataclass

from nimway import routes
from nimway.proxy.addresses import format_authority
from nimway.proxy.admin import AdminServer
from nimway.proxy.exposition import Series, add_up, encode_text
from nimway.proxy.feed import Feed
from nimway.proxy.kube import KubeReader, load_configuration
from nimway.proxy.messages import RouteEntry, ServiceEndpoints, Table
from nimway.proxy.readiness_probe import ReadinessProbe
from nimway.proxy.settings import Settings
from nimway.proxy.starting_pods import StartingPods
from nimway.proxy.supervisor import Supervisor
from nimway.state import ModelLoad, ProxyState
from nimway.tasks import spawn

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ParentConfig:
    """What a proxy pod is told: where its table is, where it listens, how it ends."""

    namespace: str
    configmap: str
    workers: int
    host: str
    port: int
    admin_port: int
    kubeconfig: str | None
    settings: Settings


class Parent:
    """State of the pod; the feed's sink and port 8001's source."""

    def __init__(self, config: ParentConfig) -> None:
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._supervisor = Supervisor(
            config.settings, count=config.workers, host=config.host, port=config.port
        )
        self._admin = AdminServer(config.settings, self)
        self._supervisor.on_change = self._changed
        self._supervisor.on_urgent = self._urged
        self._probe = ReadinessProbe(allow_loopback=config.settings.allow_loopback)
        self._starting = StartingPods(
            self._probe.is_ready,
            lambda key: self._supervisor.load()[key][1] > 0,
            self._supervisor.replace_endpoints,
        )
        self._complete = False
        self._draining = False
        self._table_at = 0.0
        self._table_models = 0
        self._table_errors = 0
        self._watch_errors: dict[str, int] = {"configmaps": 0, "endpointslices": 0}

    async def run(self) -> None:
        """Serve until SIGTERM, then drain and return."""
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, ended.set)
        config = self._config
        async with (
            aclosing(self._probe),
            KubeReader(await load_configuration(config.kubeconfig)) as reader,
        ):
            await self._admin.start(_bind(config.host, config.admin_port))
            # Held and not listened on: a taken port ends the start, not each worker's later.
            with _bind(config.host, config.port, socket.SO_REUSEPORT):
                self._supervisor.start()
                feed = Feed(reader, self, config.namespace, config.configmap)
                task = spawn(feed.run(), name="feed")
                await ended.wait()
                ended.clear()
                await self._drain(ended)
                task.cancel()
                self._starting.stop()
        self._admin.stop()

    # The feed's sink.

    def replace_table(self, table: routes.RoutingTable) -> None:
        """Hand a new table to the workers."""
        self._table_models = len(table.routes)
        self._starting.replace_routes(table.routes)
        self._supervisor.replace_table(build_message(table))

    def confirm_table(self) -> None:
        """Take note of when the table was last seen."""
        self._table_at = self._loop.time()

    def replace_endpoints(self, services: list[ServiceEndpoints]) -> None:
        """Hand new endpoints to the workers, by way of those that answer already."""
        self._starting.take(services)

    def count_proxies(self, pods: int) -> None:
        """Have the workers take their part of limits that count over all pods."""
        self._supervisor.share_among(pods)

    def set_complete(self, *, complete: bool) -> None:
        """Become ready with the first full table; a later namespace takes nothing back."""
        self._complete = self._complete or complete
        self._changed()

    def count_table_error(self) -> None:
        """Count a table that was refused."""
        self._table_errors += 1

    def count_watch_error(self, resource: str) -> None:
        """Count a list or watch that failed."""
        self._watch_errors[resource] += 1

    # Port 8001's source.

    def state(self) -> ProxyState:
        """Return the report of now."""
        return ProxyState(
            revision=self._supervisor.revision,
            ready=self._is_ready(),
            draining=self._draining,
            models={key: ModelLoad(*load) for key, load in self._supervisor.load().items()},
        )

    async def metrics(self) -> bytes:
        """Return the Prometheus text."""
        reports = await self._supervisor.scrape()
        values: dict[str, Series] = {}
        revision = self._supervisor.revision
        values["workers"] = {(): [self._supervisor.serving]}
        values["restarts"] = {(): [self._supervisor.restarts]}
        values["early_endpoints"] = {(): [self._starting.early_total]}
        values["table_models"] = {(): [self._table_models]}
        values["table_errors"] = {(): [self._table_errors]}
        values["watch_errors"] = {(key,): [count] for key, count in self._watch_errors.items()}
        if revision:
            values["table"] = {(revision,): [1]}
            values["table_age"] = {(): [round(self._loop.time() - self._table_at, 3)]}
        # In a thread: with thousands of models it takes longer than an endpoint's event may wait.
        return await asyncio.to_thread(lambda: encode_text(add_up(reports) | values))

    # Within.

    def _is_ready(self) -> bool:
        return self._complete and not self._draining and bool(self._supervisor.revision)

    def _changed(self) -> None:
        self._supervisor.set_ready(ready=self._is_ready())
        self._admin.plan_report()
        self._starting.look()

    def _urged(self) -> None:
        self._admin.report()
        self._starting.look()

    async def _drain(self, again: asyncio.Event) -> None:
        """Fail readiness, go on serving until nobody sends here any more, finish, end.

        A second signal ends everything at once.
        """
        settings = self._config.settings
        _log.info("draining", extra={"fields": {"drain_s": settings.drain_s}})
        self._draining = True
        self._changed()
        self._supervisor.drain(stop=False)
        try:
            async with asyncio.timeout(settings.propagation_delay_s):
                await again.wait()
        except TimeoutError:
            pass
        if not again.is_set():
            self._supervisor.drain(stop=True)
            waiting = spawn(self._supervisor.wait_ended(), name="wait for workers")
            stopping = spawn(again.wait(), name="wait for a second signal")
            await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            stopping.cancel()
        self._supervisor.stop()
        _log.info("ending")


def build_message(table: routes.RoutingTable) -> Table:
    """Return `table` in the form the workers take."""
    return Table(
        revision=table.revision,
        routes=[
            RouteEntry(
                key=route.key,
                model=route.model,
                names=route.names,
                namespace=route.namespace,
                service=route.service,
                created_s=route.created_s,
                adapters=route.adapters,
                policy=None if route.policy == routes.DEFAULT_POLICY else route.policy,
                cold_start_s=route.cold_start_s,
            )
            for route in table.routes
        ],
    )


def _bind(host: str, port: int, *options: int) -> socket.socket:
    """Return a socket bound to the address, with socket `options` set.

    Raises:
        OSError: somebody else listens there, or the address is not this machine's.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    for option in (socket.SO_REUSEADDR, *options):
        sock.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        message = f"cannot listen on {format_authority(host, port)}: {error.strerror}"
        raise OSError(message) from error
    return sock
