"""Composition root of the operator: builds the parts, starts them in order, stops them in order.

Start: are the kinds served? listen for probes, watch, list everything, become leader, work.
Stop: finish what is being written, give the Lease back, leave. A lost Lease or a broken watch ends
the process; the kubelet starts it anew, which costs no write.
"""

import asyncio
import gc
import itertools
import logging
import random
import signal
import time

import kopf

from nimway.api import GROUP, VERSION
from nimway.control import clock
from nimway.control.apply import Applier
from nimway.control.backchannel import BackChannel
from nimway.control.book import RouteBook
from nimway.control.client import (
    ApiError,
    ConfigurationError,
    KubeClient,
    NotFoundError,
    load_configuration,
)
from nimway.control.context import STATUS_DELAY_S, Context
from nimway.control.election import Elector, LeadershipLostError
from nimway.control.events import Recorder
from nimway.control.handlers import build_registry, build_settings
from nimway.control.health import HealthServer
from nimway.control.kinds import OWNERS, PROXY, SERVICE_MONITOR, Ref
from nimway.control.load import LoadBook
from nimway.control.metrics import Metrics
from nimway.control.models import ModelReconciler
from nimway.control.observe import Observer
from nimway.control.optional import OptionalKind
from nimway.control.proxies import ProxyReconciler
from nimway.control.report import Reporter
from nimway.control.scaling import SCALE, Autoscaler
from nimway.control.settings import LEASE_NAME, Settings
from nimway.control.store import Store
from nimway.control.workqueue import Lanes, Workers, WorkQueue
from nimway.state import ProxyState
from nimway.tasks import spawn

STOP_S = 2.0
RETRY_LIST_S = 1.0
RETRY_RESYNC_S = 5.0
"""After a failure, doubled with each more."""

FRESH_S = 2.0
"""A list of this age need not be repeated by who becomes leader with it."""

RELIST_S = 0.5
"""After a watch had to list again, others often have to as well: wait for them."""

SWEEP_EVERY = 10
"""Of so many fresh lists one has every key looked at, whatever it changed."""

SWEEP_S = 15.0
"""All models are looked at over this time, so that nobody has to wait behind them."""

RESYNC_JITTER = 0.1
"""By which part of its period a resync comes earlier or later."""

GARBAGE_OBJECTS = 20_000
"""New containers between two collections: a decoded object has hundreds, and no cycles."""

_log = logging.getLogger(__name__)


class Runtime:
    """One operator process."""

    def __init__(self, settings: Settings, client: KubeClient) -> None:
        self._settings = settings
        self._client = client
        self._metrics = Metrics()
        self._store = Store()
        self._workers = Lanes(
            lambda ref: ref.kind,
            {
                kind: self._build_workers(settings.workers)
                for kind in (*(owner.kind for owner in OWNERS), SCALE)
            },
        )
        self._observer = Observer(
            settings, client, self._store, self._workers, clock=clock.monotonic_s
        )
        self._monitors = OptionalKind(
            SERVICE_MONITOR,
            settings,
            client,
            observer=self._observer,
            store=self._store,
            workers=self._workers,
        )
        self._elector = Elector(
            client,
            namespace=settings.namespace,
            name=LEASE_NAME,
            identity=settings.identity,
            clock=clock.monotonic_s,
            wall=clock.wall,
            jitter=random.random,
            sleep=asyncio.sleep,
        )
        self._context = self._build_context()
        self._autoscaler = Autoscaler(self._context, may_write=self._may_write)
        self._models = ModelReconciler(self._context, self._autoscaler)
        self._proxies = ProxyReconciler(self._context)
        self._list_failure = ""
        self._health = HealthServer(
            self._metrics,
            clock=clock.monotonic_s,
            listed_s=lambda: self._observer.last_resync_s,
            failure=lambda: self._list_failure,
            refresh=self._refresh,
        )
        self._stop = asyncio.Event()
        self._listed = asyncio.Event()

    async def run(self) -> int:
        """Work until a signal (0) or until the process must not go on (1)."""
        await self._require_kinds()
        await self._health.start(self._settings.health_port)
        kopf_stop = asyncio.Event()
        watch = await self._watch(kopf_stop)
        monitors = spawn(self._monitors.run(), name="ServiceMonitors")
        lead = spawn(self._lead(), name="lead")
        follow = spawn(self._follow(), name="follow children")
        stop = spawn(self._stop.wait(), name="signal")
        try:
            await asyncio.wait({watch, follow, lead, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            follow.cancel()
            monitors.cancel()
            await self._shut_down(lead)
        kopf_stop.set()
        await asyncio.wait({watch}, timeout=STOP_S)
        # Kopf cancels all tasks when it fails, `stop` included.
        return 0 if self._stop.is_set() else 1

    def _build_workers(self, count: int) -> Workers[Ref]:
        queue: WorkQueue[Ref] = WorkQueue(jitter=random.random)
        return Workers(queue, self._reconcile, count=count, clock=clock.monotonic_s)

    def _build_context(self) -> Context:
        recorder = Recorder(
            self._client,
            self._metrics,
            may_write=self._may_write,
            clock=clock.monotonic_s,
            wall=clock.wall,
        )
        reporter = Reporter(
            self._client,
            self._store,
            recorder,
            self._metrics,
            may_write=self._may_write,
            wall=clock.wall,
        )
        applier = Applier(
            self._client,
            self._store,
            self._metrics,
            may_write=self._may_write,
            is_current=self._is_current,
            clock=clock.monotonic_s,
        )
        return Context(
            settings=self._settings,
            client=self._client,
            store=self._store,
            book=RouteBook(),
            loads=LoadBook(),
            applier=applier,
            reporter=reporter,
            channel=BackChannel(self._heard),
            workers=self._workers,
            metrics=self._metrics,
            monitors=self._monitors,
            clock=clock.monotonic_s,
            wall=clock.wall,
        )

    def _may_write(self) -> bool:
        return self._elector.is_leader

    def _is_current(self) -> bool:
        age_s = self._resync_age_s()
        return age_s is not None and age_s < 2 * self._settings.resync_s

    async def _require_kinds(self) -> None:
        try:
            served = await self._client.request("GET", f"/apis/{GROUP}/{VERSION}")
            names = {each["name"] for each in served["resources"]}
        except NotFoundError:
            names = set()
        missing = [f"{kind.plural}.{GROUP}" for kind in OWNERS if kind.plural not in names]
        if missing:
            raise ConfigurationError(
                f"the cluster does not serve {' and '.join(missing)} ({VERSION}): "
                "install them with kubectl apply --server-side -f crds/"
            )

    async def _watch(self, kopf_stop: asyncio.Event) -> "asyncio.Task[None]":
        started = asyncio.Event()
        namespaces = sorted(self._settings.namespaces or ())
        watch = spawn(
            kopf.operator(
                registry=build_registry(self._observer.seen, self._client.configuration),
                settings=build_settings(),
                clusterwide=self._settings.namespaces is None,
                namespaces=namespaces,
                stop_flag=kopf_stop,
                ready_flag=started,
            ),
            name="kopf",
        )
        ready = spawn(started.wait(), name="kopf is ready")
        await asyncio.wait({watch, ready}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        # Kopf has set its own handlers; ours give the Lease back before anything else.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        return watch

    async def _lead(self) -> None:
        await self._first_list()
        # What imports and the first list left stays for ever: no collection need walk it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE_OBJECTS)
        self._listed.set()
        resync = spawn(self._resync(), name="resync")
        try:
            await self._elector.acquire()
            self._metrics.leader.set(1)
            async with asyncio.TaskGroup() as group:
                # From now on: with a slow API server the list takes longer than the Lease lasts.
                group.create_task(self._elector.keep(), name="keep the Lease")
                if (self._resync_age_s() or 0.0) > FRESH_S:
                    # What a standby has seen may be late; a leader starts from what is true now.
                    await self._first_list()
                self._observer.begin()
                self._workers.start()
        except* LeadershipLostError as lost:
            _log.error("leadership lost, exiting: %s", lost.exceptions[0])
        finally:
            self._metrics.leader.set(0)
            resync.cancel()

    async def _follow(self) -> None:
        await self._listed.wait()
        await self._observer.follow()

    async def _first_list(self) -> None:
        while True:
            try:
                await self._list()
            except ApiError as error:
                _log.warning("listing failed: error=%s", error)
                await asyncio.sleep(RETRY_LIST_S)
            else:
                return

    async def _list(self) -> None:
        """List everything afresh, and remember for who asks why it could not be done.

        Raises:
            ApiError: a list failed.
        """
        try:
            await self._observer.resync()
        except ApiError as error:
            self._list_failure = str(error)
            raise
        self._list_failure = ""

    async def _resync(self) -> None:
        """List everything afresh now and then, and what Kopf watches whenever Kopf had to."""
        period_s, failures = self._settings.resync_s, 0
        for count in itertools.count(1):
            jitter = random.uniform(-RESYNC_JITTER, RESYNC_JITTER)
            due_s = clock.monotonic_s() + period_s * (1 + jitter)
            try:
                while await self._relisted(due_s):
                    await self._observer.relist_owners()
                await self._list()
                if self._may_write():
                    await self._look_again(everything=count % SWEEP_EVERY == 0)
                period_s, failures = self._settings.resync_s, 0
            except ApiError as error:
                _log.warning("resync failed: error=%s", error)
                period_s = min(RETRY_RESYNC_S * 2**failures, self._settings.resync_s)
                failures += 1

    async def _relisted(self, until_s: float) -> bool:
        """Wait until Kopf listed again, and tell so, or until `until_s`."""
        try:
            async with asyncio.timeout(until_s - clock.monotonic_s()):
                await self._observer.relisted.wait()
                await asyncio.sleep(RELIST_S)
        except TimeoutError:
            return False
        self._observer.relisted.clear()
        return True

    async def _look_again(self, *, everything: bool) -> None:
        """Mark what no change tells of: time that went by, and what was in the way of others."""
        if everything:
            self._observer.sweep(lambda: random.random() * SWEEP_S)
        self._observer.mark_proxies()
        for ref in self._context.applier.take_refused():
            self._workers.mark(ref)
        self._context.mark_models(self._context.book.silent(clock.monotonic_s()))
        await self._proxies.sweep()

    async def _reconcile(self, ref: Ref) -> None:
        began_s = time.perf_counter()
        try:
            if ref.kind == PROXY.kind:
                await self._proxies.reconcile(ref)
            elif ref.kind == SCALE:
                await self._autoscaler.reconcile(ref)
            else:
                await self._models.reconcile(ref)
        except Exception:
            self._metrics.failures.labels(ref.kind).inc()
            raise
        finally:
            took_s = time.perf_counter() - began_s
            self._metrics.reconciles.labels(ref.kind).observe(took_s)

    def _heard(self, proxy: str, uid: str, state: ProxyState | None) -> None:
        self._autoscaler.heard(proxy, uid, state)
        affected = self._context.book.report(proxy, uid, state, clock.monotonic_s())
        if affected:
            namespace, _, name = proxy.partition("/")
            self._workers.mark(Ref(PROXY.kind, namespace, name), delay_s=STATUS_DELAY_S)
            self._context.mark_models(affected)

    async def _shut_down(self, lead: "asyncio.Task[None]") -> None:
        lead.cancel()
        await self._workers.stop(STOP_S)
        await self._elector.release()
        await self._context.channel.close()
        await self._health.stop()

    def _resync_age_s(self) -> float | None:
        last_s = self._observer.last_resync_s
        return None if last_s is None else clock.monotonic_s() - last_s

    def _refresh(self) -> None:
        self._metrics.queue.set(self._workers.depth)
        self._metrics.objects.set(len(self._store))
        self._metrics.resync_age.set(self._health.blind_s)
        self._metrics.watch_age.set(clock.monotonic_s() - self._observer.last_event_s)


async def run(settings: Settings) -> int:
    """Run one operator and return its exit code.

    Raises:
        ConfigurationError: the cluster or its configuration cannot be used.
        ApiError: the API server refused the first request.
    """
    client = KubeClient(await load_configuration())
    try:
        return await Runtime(settings, client).run()
    finally:
        await client.close()
