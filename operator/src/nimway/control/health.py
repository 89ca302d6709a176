"""The operator's own HTTP server: liveness, readiness, metrics.

`/healthz` fails when the operator is blind, that is when it could not list the cluster for
`BLIND_S`, its start included, so that the kubelet restarts it. `/readyz` says that the first list
is done; a standby is ready as well, or a rolling update would wait for a Lease that its
predecessor holds.
"""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from nimway.control.metrics import Metrics

BLIND_S = 300.0


class HealthServer:
    """Serves on all addresses; `refresh` brings gauges up to date before they are read.

    `clock` is monotonic seconds, `listed_s` when the last complete list ended by it (None before
    the first), `failure` why the last try failed ("" if it did not).
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        clock: Callable[[], float],
        listed_s: Callable[[], float | None],
        failure: Callable[[], str],
        refresh: Callable[[], None],
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._listed_s = listed_s
        self._failure = failure
        self._refresh = refresh
        self._began_s = clock()
        self._runner: web.AppRunner | None = None

    @property
    def blind_s(self) -> float:
        """Seconds since the last complete list; since the start, as long as there was none."""
        listed_s = self._listed_s()
        return self._clock() - (self._began_s if listed_s is None else listed_s)

    async def start(self, port: int) -> None:
        """Listen.

        Raises:
            OSError: the port is taken.
        """
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics_page)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "0.0.0.0", port).start()  # noqa: S104 - the kubelet asks

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        if self.blind_s > BLIND_S:
            return self._refuse(f"no complete list of the cluster for {self.blind_s:.0f} s")
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if self._listed_s() is None:
            return self._refuse("the first list of the cluster is not done")
        return web.Response(text="ok\n")

    def _refuse(self, text: str) -> web.Response:
        failure = self._failure()
        return web.Response(status=503, text=f"{text}{failure and f': {failure}'}\n")

    async def _metrics_page(self, _: web.Request) -> web.Response:
        self._refresh()
        page = generate_latest(self._metrics.registry)
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_LATEST})
