"""A whole proxy pod, `nimway proxy`, as processes of this machine against a real API server."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web

from nimway import routes, state
from tests.support.api_faults import Exchange, FaultyApi
from tests.support.cluster import Cluster, eventually
from tests.support.ports import free_port
from tests.support.proxy import Address

CONFIGMAP = "nimway-test-routes"


@dataclass
class Pod:
    """A running `nimway proxy`."""

    process: subprocess.Popen[bytes]
    port: int
    admin_port: int
    log: Path

    def get(self, path: str, *, admin: bool = True) -> httpx.Response:
        port = self.admin_port if admin else self.port
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5)

    def is_up(self) -> bool:
        try:
            return self.get("/health").status_code == 200
        except httpx.TransportError:
            assert self.process.poll() is None, self.log.read_text()
            return False

    def is_ready(self) -> bool:
        return self.get("/v1/health/ready").status_code == 200

    def names(self) -> list[str]:
        try:
            listing = self.get("/v1/models", admin=False).json()
        except httpx.TransportError:
            return []
        return [card["id"] for card in listing["data"]]

    def state(self) -> state.ProxyState:
        with httpx.stream("GET", f"http://127.0.0.1:{self.admin_port}/state", timeout=5) as answer:
            return state.decode(next(answer.iter_lines()).encode())

    def metric(self, name: str, labels: str = "") -> float | None:
        pattern = rf"^{name}{re.escape(labels)} (\S+)$"
        found = re.search(pattern, self.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else None

    def endpoints(self, model: str) -> float | None:
        return self.metric("nimway_proxy_endpoints_ready", f'{{model="{model}"}}')

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Return what the log says of an event."""
        found = [
            line for line in self.log.read_text().splitlines() if f'"event": "{event}"' in line
        ]
        return [json.loads(line) for line in found]

    def workers(self) -> list[int]:
        """Return the process ids of the workers, in the order of their starts."""
        return [line["pid"] for line in self.lines("started a worker")]


Start = Callable[..., Pod]


@contextmanager
def proxy_pods(kubeconfig: Path, namespace: str, folder: Path) -> Iterator[Start]:
    """Yield what starts a pod in a namespace; all pods end with the block."""
    usual = kubeconfig
    pods: list[Pod] = []

    def start(*, kubeconfig: Path = usual, workers: int = 1, arguments: Sequence[str] = ()) -> Pod:
        log = folder / f"{len(pods)}.log"
        port, admin_port = free_port(), free_port()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *(str(Path(sys.executable).with_name("nimway")), "proxy"),
                    *("--host", "127.0.0.1", "--port", str(port)),
                    *("--admin-port", str(admin_port), "--kubeconfig", str(kubeconfig)),
                    *arguments,
                ],
                env=os.environ
                | {
                    "POD_NAMESPACE": namespace,
                    "NIMWAY_ROUTES_CONFIGMAP": CONFIGMAP,
                    "NIMWAY_WORKERS": str(workers),
                    "NIMWAY_PROPAGATION_DELAY_S": "0.2",
                },
                stdout=output,
                stderr=output,
            )
        pod = Pod(process, port, admin_port, log)
        pods.append(pod)
        eventually(pod.is_up, "the proxy is up")
        return pod

    try:
        yield start
    finally:
        for pod in pods:
            pod.process.kill()
            pod.process.wait()


class LoopbackEndpoints:
    """EndpointSlices with loopback addresses, which no API server takes: put in on the way.

    For a proxy that was started with `--allow-loopback`. Use `set` from any thread. A watch begins
    behind the list that its resourceVersion names, so that no change falls between the two.
    """

    def __init__(self, api: FaultyApi, service: str, *addresses: Address) -> None:
        self._api = api
        self._service = service
        self._addresses = frozenset(addresses)
        self._events: list[tuple[str, Address]] = []
        self._watches: set[asyncio.Event] = set()
        api.on(lambda call: call.plural == "endpointslices", self._act)

    def set(self, *addresses: Address) -> None:
        """Change the addresses: an event for each that comes or goes."""
        old, self._addresses = self._addresses, frozenset(addresses)
        self._events += [("ADDED", address) for address in sorted(self._addresses - old)]
        self._events += [("DELETED", address) for address in sorted(old - self._addresses)]
        for watch in list(self._watches):
            self._api._loop.call_soon_threadsafe(watch.set)

    async def _act(self, exchange: Exchange) -> web.StreamResponse:
        exchange.call.status = 200
        if not exchange.call.is_watch:
            version = len(self._events)
            items = [self._slice(address) for address in sorted(self._addresses)]
            return web.json_response(
                {"metadata": {"resourceVersion": f"{version}"}, "items": items}
            )
        answer = web.StreamResponse()
        await answer.prepare(exchange._request)
        sent = int(exchange._request.query["resourceVersion"])
        changed = asyncio.Event()
        self._watches.add(changed)
        try:
            while True:
                changed.clear()
                for kind, address in self._events[sent:]:
                    sent += 1
                    event = {"type": kind, "object": self._slice(address)}
                    await answer.write(json.dumps(event).encode() + b"\n")
                await changed.wait()
        finally:
            self._watches.discard(changed)

    def _slice(self, address: Address) -> dict[str, Any]:
        return {
            "metadata": {
                "name": f"{self._service}-{address[1]}",
                "labels": {routes.SERVICE_LABEL: self._service},
            },
            "addressType": "IPv4",
            "ports": [{"name": routes.HTTP_PORT_NAME, "port": address[1]}],
            "endpoints": [{"addresses": [address[0]], "conditions": {"ready": True}}],
        }


def build_table(namespace: str, *models: str) -> routes.RoutingTable:
    return routes.build_table(
        [routes.Route(namespace, model, model, (model,), model, 1) for model in models]
    )


def write_table(cluster: Cluster, namespace: str, data: dict[str, str]) -> None:
    metadata = {"name": CONFIGMAP, "labels": {routes.TABLE_LABEL: CONFIGMAP}}
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
    cluster.apply(namespace, manifest)


def write_slice(cluster: Cluster, namespace: str, model: str, *addresses: str) -> None:
    labels = dict(pair.split("=") for pair in routes.MODEL_ENDPOINTS_SELECTOR.split(","))
    cluster.apply(
        namespace,
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{model}-1",
                "labels": labels | {routes.SERVICE_LABEL: model},
            },
            "addressType": "IPv4",
            "ports": [{"name": routes.HTTP_PORT_NAME, "port": 8000}],
            "endpoints": [
                {"addresses": [address], "conditions": {"ready": True}} for address in addresses
            ],
        },
    )
