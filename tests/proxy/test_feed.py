"""What the feed makes of events and of errors: one table at a time, none in part, none missed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from unittest import mock

import msgspec
import pytest

from nimway import routes
from nimway.proxy.assembly import ConfigMap
from nimway.proxy.endpoints import EndpointSlice
from nimway.proxy.feed import Feed
from nimway.proxy.messages import ServiceEndpoints
from nimway.routes import RoutingTable
from nimway.tasks import spawn
from tests.proxy.test_assembly import HEAD, build_config_map, config_maps
from tests.support.proxy_wire import until
from tests.test_shards import SMALL, build_route


@dataclass
class Bug:
    """An error that nobody thought of: raised where it is met first, and not again."""

    place: str = ""
    met: int = 0

    def meet(self, place: str) -> None:
        if place == self.place:
            self.met += 1
            if self.met == 1:
                raise LookupError("injected")


@dataclass
class Server:
    """The ConfigMaps and slices there are, events to come, and what was asked for."""

    items: list[ConfigMap] = field(default_factory=list)
    slices: list[EndpointSlice] = field(default_factory=list)
    bug: Bug = field(default_factory=Bug)
    events: "asyncio.Queue[bytes]" = field(default_factory=asyncio.Queue)
    queries: list[dict[str, str]] = field(default_factory=list)

    async def list(self, path: str, query: dict[str, str], *, timeout_s: float) -> bytes:
        del timeout_s
        self.bug.meet(f"list of {path.rpartition('/')[2]}")
        if path.endswith("configmaps"):
            self.queries.append(query)
        items = self.items if path.endswith("configmaps") else self.slices
        return msgspec.json.encode({"metadata": {"resourceVersion": "1"}, "items": items})

    async def watch(
        self, path: str, query: dict[str, str], *, timeout_s: float
    ) -> AsyncIterator[bytes]:
        del query, timeout_s
        self.bug.meet(f"watch of {path.rpartition('/')[2]}")
        while path.endswith("configmaps"):
            yield await self.events.get()
        await asyncio.Event().wait()

    def send(self, kind: str, item: ConfigMap) -> None:
        self.events.put_nowait(msgspec.json.encode({"type": kind, "object": item}))


@dataclass
class Told:
    """The feed's sink."""

    bug: Bug = field(default_factory=Bug)
    tables: list[RoutingTable] = field(default_factory=list)
    endpoints: dict[str, ServiceEndpoints] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    confirmed: int = 0
    refused: int = 0

    def replace_table(self, table: RoutingTable) -> None:
        self.bug.meet("new table")
        self.tables.append(table)

    def confirm_table(self) -> None:
        self.confirmed += 1

    def count_table_error(self) -> None:
        self.refused += 1

    def replace_endpoints(self, services: list[ServiceEndpoints]) -> None:
        self.bug.meet("new endpoints")
        self.endpoints |= {each.service: each for each in services}

    def count_watch_error(self, resource: str) -> None:
        self.errors.append(resource)

    def count_proxies(self, pods: int) -> None: ...
    def set_complete(self, *, complete: bool) -> None: ...


@asynccontextmanager
async def feeding(server: Server) -> AsyncIterator[Told]:
    told = Told(server.bug)
    task = spawn(Feed(server, told, "system", HEAD).run(), name="feed")
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.wait([task])


def build_slice(name: str, service: str, *addresses: str) -> EndpointSlice:
    return msgspec.convert(
        {
            "metadata": {"name": name, "labels": {routes.SERVICE_LABEL: service}},
            "endpoints": [{"addresses": [address]} for address in addresses],
            "ports": [{"name": routes.HTTP_PORT_NAME, "port": 8000}],
        },
        EndpointSlice,
    )


def tables() -> tuple[RoutingTable, RoutingTable]:
    """Two tables of several shards, some of them the same."""
    first = routes.build_table([build_route(number) for number in range(40)])
    return first, routes.build_table([build_route(number) for number in range(41)])


async def test_a_table_is_taken_with_its_head_and_shards_alone_change_nothing() -> None:
    with mock.patch.multiple(routes, **SMALL):
        old, new = tables()
        server = Server(config_maps(old))
        async with feeding(server) as told:
            await until(lambda: told.tables == [old])
            assert server.queries == [{"labelSelector": f"nimway.dev/routes={HEAD}"}]
            *shards, head = config_maps(new, 2)
            for shard in shards:
                server.send("ADDED", shard)
            server.send("MODIFIED", head)
            await until(lambda: told.tables == [old, new])
            kept = {item.metadata.name for item in (*shards, head)}
            for item in config_maps(old):
                if item.metadata.name not in kept:
                    server.send("DELETED", item)
            server.send("MODIFIED", head)
            await until(lambda: told.confirmed == 3)
            assert told.refused == 0


async def test_a_head_before_its_shards_is_refused_once_and_taken_with_the_last_of_them() -> None:
    with mock.patch.multiple(routes, **SMALL):
        old, new = tables()
        server = Server(config_maps(old))
        async with feeding(server) as told:
            await until(lambda: told.tables == [old])
            *shards, head = config_maps(new, 2)
            server.send("MODIFIED", head)
            await until(lambda: told.refused == 1)
            assert told.tables == [old]
            for shard in shards:
                server.send("ADDED", shard)
            await until(lambda: told.tables == [old, new])


async def test_a_table_that_goes_leaves_the_last_one_and_says_so_once() -> None:
    with mock.patch.multiple(routes, **SMALL):
        old, new = tables()
        server = Server(config_maps(old))
        async with feeding(server) as told:
            await until(lambda: told.tables == [old])
            *shards, head = config_maps(old)
            for item in (head, *shards):
                server.send("DELETED", item)
            for item in config_maps(new, 3):
                server.send("ADDED", item)
            await until(lambda: told.tables == [old, new])


async def test_before_the_first_table_shards_are_waited_for_without_a_word() -> None:
    with mock.patch.multiple(routes, **SMALL):
        old, _ = tables()
        server = Server()
        async with feeding(server) as told:
            for item in config_maps(old):
                server.send("ADDED", item)
            await until(lambda: told.tables == [old])
            assert told.refused == 0
            server.send("MODIFIED", build_config_map(HEAD, 2, data={}))
            await until(lambda: told.refused == 1)


@pytest.mark.parametrize(
    ("place", "resource"),
    [
        ("list of configmaps", "configmaps"),
        ("watch of configmaps", "configmaps"),
        ("new table", "configmaps"),
        ("list of endpointslices", "endpointslices"),
        ("watch of endpointslices", "endpointslices"),
        ("new endpoints", "endpointslices"),
    ],
)
async def test_an_error_that_nobody_thought_of_is_counted_and_told_and_ends_no_watch(
    place: str, resource: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = routes.build_table([build_route(1)])
    server = Server(config_maps(table), [build_slice("a-1", "service", "192.0.2.1")], Bug(place))
    async with feeding(server) as told:
        await until(lambda: server.bug.met == 2 and bool(told.endpoints))
        assert told.tables == [table]
        assert told.endpoints["service"].ready == [("192.0.2.1", 8000)]
        assert told.errors == [resource]
    [told_of] = [record for record in caplog.records if record.exc_info]
    assert (told_of.levelname, told_of.exc_info and told_of.exc_info[0]) == ("ERROR", LookupError)
