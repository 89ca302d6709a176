"""The proxy's watches over sockets: one that falls silent, and credentials that cannot be read."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import pytest
from kubernetes.aio import client, config

from nimway import routes
from nimway.proxy import feed, kube
from nimway.proxy.assembly import ConfigMap
from nimway.proxy.endpoints import EndpointSlice
from nimway.proxy.feed import Feed
from nimway.proxy.kube import KubeReader
from nimway.tasks import spawn
from tests.proxy.test_assembly import HEAD, config_maps
from tests.proxy.test_feed import Told, build_slice
from tests.support.proxy_wire import until
from tests.test_shards import build_route

JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
OLD = routes.build_table([build_route(1), build_route(2)])
NEW = routes.build_table([build_route(2)])


@dataclass
class SilentApi:
    """Answers lists with what there is; says nothing in a watch, and never ends one."""

    objects: dict[str, list[ConfigMap] | list[EndpointSlice]]
    targets: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await self._answer(await reader.readuntil(b"\r\n\r\n"), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        target = head.split(b" ")[1].decode()
        self.targets.append(target)
        path, _, query = target.partition("?")
        if "watch=true" in query:
            writer.write(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            return
        body = msgspec.json.encode(
            {"metadata": {"resourceVersion": "1"}, "items": self.objects[path.rpartition("/")[2]]}
        )
        writer.write(JSON_HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))


@asynccontextmanager
async def feeding(
    api: SilentApi, configuration: client.Configuration | None = None
) -> AsyncIterator[Told]:
    """A feed that reads from `api` as a proxy pod does."""

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        spawn(api.serve(reader, writer), name="API server")

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    configuration = configuration or client.Configuration()
    configuration.host = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    told = Told()
    async with server, KubeReader(configuration) as reader:
        task = spawn(Feed(reader, told, "system", HEAD).run(), name="feed")
        try:
            yield told
        finally:
            task.cancel()
            await asyncio.wait([task])


async def test_what_went_behind_a_silent_watch_goes_with_the_next_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "RELIST_PERIOD_S", 0.2)
    monkeypatch.setattr(kube, "WATCH_GRACE_S", 0.1)
    slices = [build_slice("a-1", "a", "192.0.2.1"), build_slice("b-1", "b", "192.0.2.2")]
    api = SilentApi({"configmaps": config_maps(OLD), "endpointslices": slices})
    async with feeding(api) as told:
        await until(lambda: sum("watch=true" in target for target in api.targets) == 2)
        assert told.tables == [OLD]
        assert all(each.ready for each in told.endpoints.values())
        api.objects = {"configmaps": config_maps(NEW, 2), "endpointslices": slices[1:]}
        await until(lambda: told.tables == [OLD, NEW] and not told.endpoints["a"].ready)
        assert told.endpoints["b"].ready
        assert not told.errors


def test_a_watch_is_over_within_a_minute_whatever_the_api_server_does() -> None:
    assert 1.1 * feed.RELIST_PERIOD_S + kube.WATCH_GRACE_S <= 60


async def test_credentials_that_cannot_be_read_for_a_while_are_an_error_like_any_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = True

    def read_token(configuration: client.Configuration) -> None:
        if broken:
            raise config.ConfigException("Token file exists but empty.")
        configuration.api_key["BearerToken"] = "bearer new"

    configuration = client.Configuration()
    configuration.api_key["BearerToken"] = "bearer old"
    configuration.refresh_api_key_hook = read_token  # type: ignore[assignment] # it may be one
    api = SilentApi({"configmaps": config_maps(OLD), "endpointslices": []})
    async with feeding(api, configuration) as told:
        await until(lambda: told.errors == ["configmaps"])
        broken = False
        await until(lambda: told.tables == [OLD])
    assert not [record for record in caplog.records if record.exc_info]
