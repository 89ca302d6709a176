"""The proxy's parent and workers with a fixed table: everything but the watch on Kubernetes.

`python -m tests.bench.parent PORT UPSTREAM_PORT WORKERS MODEL`. These are the production processes
with the production settings (uvloop, access log, metrics, reports on load, every check); loopback
endpoints are allowed on top, and the access log's lines are written to /dev/null.
"""

import asyncio
import os
import sys

import uvloop

from nimway import routes
from nimway.proxy import parent
from nimway.proxy.logs import set_up_logging
from nimway.proxy.messages import ServiceEndpoints
from nimway.proxy.settings import Settings
from tests.support.ports import free_port

SCRAPE_PERIOD_S = 5.0
HOST = "127.0.0.1"
ROUTE_NAMESPACE = "bench"
SERVICE = "model"


class FixedParent(parent.Parent):
    """A parent that is told one table, once, and is scraped often."""

    def __init__(self, config: parent.ParentConfig, model: str, upstream: int) -> None:
        super().__init__(config)
        self._table = routes.build_table(
            [
                routes.Route(
                    namespace=ROUTE_NAMESPACE,
                    name=SERVICE,
                    model=model,
                    names=(model,),
                    service=SERVICE,
                    created_s=1_750_000_000,
                )
            ]
        )
        self._endpoints = ServiceEndpoints(ROUTE_NAMESPACE, SERVICE, [(HOST, upstream)])

    async def run(self) -> None:
        await self._admin.start(parent._bind(HOST, self._config.admin_port))
        self._supervisor.start()
        self.replace_endpoints([self._endpoints])
        self.replace_table(self._table)
        self.confirm_table()
        self.set_complete(complete=True)
        while True:
            await asyncio.sleep(SCRAPE_PERIOD_S)
            await self.metrics()


def main(port: int, upstream: int, workers: int, model: str) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    config = parent.ParentConfig(
        namespace=ROUTE_NAMESPACE,
        configmap="routes",
        workers=workers,
        host=HOST,
        port=port,
        admin_port=free_port(),
        kubeconfig=None,
        settings=Settings(allow_loopback=True),
    )

    async def serve() -> None:
        await FixedParent(config, model, upstream).run()

    set_up_logging()
    uvloop.run(serve())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
