"""What the feed makes of the events of a table in shards: one table at a time, none in part."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from unittest import mock

import msgspec

from nimway import routes
from nimway.proxy.assembly import ConfigMap
from nimway.proxy.feed import Feed
from nimway.proxy.messages import ServiceEndpoints
from nimway.routes import RoutingTable
from nimway.tasks import spawn
from tests.proxy.test_assembly import HEAD, build_config_map, config_maps
from tests.support.proxy_wire import until
from tests.test_shards import SMALL, build_route


@dataclass
class Server:
    """The ConfigMaps there are, events to come, and what was asked for."""

    items: list[ConfigMap] = field(default_factory=list)
    events: "asyncio.Queue[bytes]" = field(default_factory=asyncio.Queue)
    queries: list[dict[str, str]] = field(default_factory=list)

    async def list(self, path: str, query: dict[str, str], *, timeout_s: float) -> bytes:
        del timeout_s
        if not path.endswith("configmaps"):
            return b'{"metadata":{"resourceVersion":"1"},"items":[]}'
        self.queries.append(query)
        return msgspec.json.encode({"metadata": {"resourceVersion": "1"}, "items": self.items})

    async def watch(
        self, path: str, query: dict[str, str], *, timeout_s: float
    ) -> AsyncIterator[bytes]:
        del query, timeout_s
        while path.endswith("configmaps"):
            yield await self.events.get()
        await asyncio.Event().wait()

    def send(self, kind: str, item: ConfigMap) -> None:
        self.events.put_nowait(msgspec.json.encode({"type": kind, "object": item}))


@dataclass
class Told:
    """The feed's sink."""

    tables: list[RoutingTable] = field(default_factory=list)
    confirmed: int = 0
    refused: int = 0

    def replace_table(self, table: RoutingTable) -> None:
        self.tables.append(table)

    def confirm_table(self) -> None:
        self.confirmed += 1

    def count_table_error(self) -> None:
        self.refused += 1

    def replace_endpoints(self, services: list[ServiceEndpoints]) -> None: ...
    def count_watch_error(self, resource: str) -> None: ...
    def count_proxies(self, pods: int) -> None: ...
    def set_complete(self, *, complete: bool) -> None: ...


@asynccontextmanager
async def feeding(server: Server) -> AsyncIterator[Told]:
    told = Told()
    task = spawn(Feed(server, told, "system", HEAD).run(), name="feed")
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.wait([task])


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
