"""Limits that count over all proxies: who counts the pods, and when."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import msgspec
import pytest

from nimway import routes
from nimway.proxy.endpoints import EndpointSlice, Target
from nimway.proxy.feed import Feed
from nimway.proxy.messages import ServiceEndpoints
from nimway.tasks import spawn
from tests.proxy.test_tables import build_slice
from tests.support.proxy_wire import until

OWN = f"{routes.SERVICE_LABEL}=nimway-default"
EMPTY = b'{"metadata":{"resourceVersion":"1"},"items":[]}'


@dataclass
class Store:
    """What the API server has: one table, and the pods of this proxy; a watch line is an event."""

    table: routes.RoutingTable
    selectors: list[str] = field(default_factory=list)
    events: "asyncio.Queue[bytes]" = field(default_factory=asyncio.Queue)
    own: list[EndpointSlice] = field(
        default_factory=lambda: [
            build_slice("s", "nimway-default", ("10.0.0.1", {}), ("10.0.0.2", {}))
        ]
    )

    async def list(self, path: str, query: dict[str, str], *, timeout_s: float) -> bytes:
        del timeout_s
        if path.endswith("configmaps"):
            item = {
                "metadata": {"name": "nimway-default-routes"},
                "data": routes.encode(self.table),
            }
            return msgspec.json.encode({"metadata": {"resourceVersion": "1"}, "items": [item]})
        self.selectors.append(query["labelSelector"])
        if query["labelSelector"] != OWN:
            return EMPTY
        return msgspec.json.encode({"metadata": {"resourceVersion": "1"}, "items": self.own})

    async def watch(
        self, path: str, query: dict[str, str], *, timeout_s: float
    ) -> AsyncIterator[bytes]:
        del path, timeout_s
        if query.get("labelSelector") == OWN:
            yield await self.events.get()
        await asyncio.Event().wait()


@dataclass
class Told:
    """The feed's sink."""

    pods: list[int] = field(default_factory=list)
    complete: bool = False

    def replace_table(self, table: routes.RoutingTable) -> None: ...
    def confirm_table(self) -> None: ...
    def replace_endpoints(self, services: list[ServiceEndpoints]) -> None: ...
    def count_table_error(self) -> None: ...
    def count_watch_error(self, resource: str) -> None: ...

    def count_proxies(self, pods: int) -> None:
        self.pods.append(pods)

    def set_complete(self, *, complete: bool) -> None:
        self.complete = complete


def build_store(policy: routes.Policy) -> Store:
    route = routes.Route("ns", "a", "a", ("a",), "a", 1, policy=policy)
    return Store(routes.build_table([route]))


@pytest.mark.parametrize(
    "policy", [routes.Policy(max_concurrency=8), routes.Policy(queue_requests_max=9)]
)
async def test_the_ready_pods_of_the_own_service_are_counted_and_followed(
    policy: routes.Policy,
) -> None:
    store, told = build_store(policy), Told()
    task = spawn(Feed(store, told, "system", "nimway-default-routes").run(), name="feed")
    await until(lambda: told.pods == [2])
    item = build_slice("s", "nimway-default", ("10.0.0.1", {}), ("10.0.0.2", {"ready": False}))
    store.events.put_nowait(msgspec.json.encode({"type": "MODIFIED", "object": item}))
    await until(lambda: told.pods == [2, 1])
    task.cancel()
    await asyncio.wait([task])


async def test_a_pod_with_two_address_families_takes_one_share() -> None:
    store, told = build_store(routes.Policy(max_concurrency=8)), Told()
    store.own = []
    for kind, addresses in (("IPv4", ("10.0.0.1", "10.0.0.2")), ("IPv6", ("fd00::1", "fd00::2"))):
        item = build_slice(kind, "nimway-default", *((address, {}) for address in addresses))
        item.addressType = kind
        for endpoint, uid in zip(item.endpoints or (), ("one", "two"), strict=True):
            endpoint.targetRef = Target(uid)
        store.own.append(item)
    task = spawn(Feed(store, told, "system", "nimway-default-routes").run(), name="feed")
    await until(lambda: bool(told.pods))
    assert told.pods == [2]
    task.cancel()
    await asyncio.wait([task])


async def test_without_a_limit_nobody_asks_for_the_own_pods() -> None:
    store, told = build_store(routes.Policy()), Told()
    task = spawn(Feed(store, told, "system", "nimway-default-routes").run(), name="feed")
    await until(lambda: told.complete)
    assert store.selectors == [routes.MODEL_ENDPOINTS_SELECTOR]
    task.cancel()
    await asyncio.wait([task])
