"""The operator's own HTTP server: liveness, readiness, metrics.

`/healthz` fails when the operator is blind, that is when it could not list the cluster for
`BLIND_S`, so that the kubelet restarts it. `/readyz` says that the first list is done; a standby
is ready as well, or a rolling update would wait for a Lease that its predecessor holds.
"""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from nimway.control.metrics import Metrics

BLIND_S = 300.0


class HealthServer:
    """Serves on all addresses; `refresh` brings gauges up to date before they are read."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        resync_age_s: Callable[[], float | None],
        refresh: Callable[[], None],
    ) -> None:
        self._metrics = metrics
        self._resync_age_s = resync_age_s
        self._refresh = refresh
        self._runner: web.AppRunner | None = None

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
        age_s = self._resync_age_s()
        if age_s is not None and age_s > BLIND_S:
            text = f"no complete list of the cluster for {age_s:.0f} s\n"
            return web.Response(status=503, text=text)
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if self._resync_age_s() is None:
            return web.Response(status=503, text="the first list of the cluster is not done\n")
        return web.Response(text="ok\n")

    async def _metrics_page(self, _: web.Request) -> web.Response:
        self._refresh()
        page = generate_latest(self._metrics.registry)
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_LATEST})
