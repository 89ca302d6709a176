"""PX-13: an API server that is away, silent or without a table, before the start and after it.

A real proxy pod against the real API server, with what breaks it in between; the model servers are
this process's own.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from nimway import routes
from nimway.tasks import spawn
from tests.support.api_faults import FaultyApi, faulty_api, hang, refuse
from tests.support.cluster import Cluster
from tests.support.faults import FULL
from tests.support.proxy_pod import (
    LoopbackEndpoints,
    Pod,
    Start,
    build_table,
    write_table,
)
from tests.support.proxy_wire import ModelServer, connect, post, run_model_server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

AWAY_S = 600.0 if FULL else 12.0
BODY = b'{"model":"a","prompt":"x"}'


@pytest.fixture
def api(cluster: Cluster) -> Iterator[FaultyApi]:
    with faulty_api(cluster.kubeconfig) as faults:
        yield faults


async def soon(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Ask in a thread: the model servers share this loop."""
    end = time.monotonic() + timeout_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < end, f"not in {timeout_s:g} s: {what}"
        await asyncio.sleep(0.05)


@asynccontextmanager
async def asking(pod: Pod) -> AsyncIterator[list[int]]:
    """Four clients ask without a pause while the block runs; yield the statuses they get."""
    statuses: list[int] = []

    async def ask() -> None:
        async with connect(pod.port) as client:
            while True:
                statuses.append((await client.ask(post(BODY))).status)
                await asyncio.sleep(0.02)  # four clients are no load test

    tasks = [spawn(ask(), name="client") for _ in range(4)]
    try:
        yield statuses
        assert not any(task.done() for task in tasks), "a client's connection broke"
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def served(
    api: FaultyApi, cluster: Cluster, namespace: str, start: Callable[[], Awaitable[Pod]]
) -> AsyncIterator[tuple[Pod, ModelServer]]:
    """A ready pod with one model."""
    await asyncio.to_thread(
        write_table, cluster, namespace, routes.encode(build_table(namespace, "a"))
    )
    async with run_model_server() as model:
        LoopbackEndpoints(api, "a", model.address)
        pod = await start()
        await soon(pod.is_ready, "ready")
        yield pod, model


@pytest.fixture
def start(api: FaultyApi, start_pod: Start, tmp_path: Path) -> Callable[[], Awaitable[Pod]]:
    """Start a pod that sees the API server through `api`."""
    kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")

    async def run() -> Pod:
        arguments = ["--allow-loopback"]
        return await asyncio.to_thread(
            lambda: start_pod(kubeconfig=kubeconfig, workers=2, arguments=arguments)
        )

    return run


async def test_it_is_not_ready_before_its_first_full_table(
    api: FaultyApi, cluster: Cluster, namespace: str, start: Callable[[], Awaitable[Pod]]
) -> None:
    api.go_down()
    async with run_model_server() as model:
        pod = await start()
        errors = 'nimway_proxy_watch_errors_total{resource="%s"}'
        await soon(lambda: _count(pod, errors % "configmaps") >= 2, "two tries")
        assert not pod.is_ready()
        assert pod.state().revision == ""

        api.heal()
        await soon(lambda: bool(pod.lines("waiting for the routing ConfigMap")), "a list")
        assert not pod.is_ready()

        endpoints = LoopbackEndpoints(api, "a", model.address)
        rules, api.rules = api.rules, []
        api.on(lambda call: call.plural == "endpointslices", refuse(500, "InternalError"))
        table = build_table(namespace, "a")
        await asyncio.to_thread(write_table, cluster, namespace, routes.encode(table))
        await soon(lambda: _count(pod, errors % "endpointslices") >= 2, "two more tries")
        await soon(lambda: pod.state().revision == table.revision, "the table")
        assert not pod.is_ready()

        api.rules = rules
        await soon(pod.is_ready, "ready")
        async with connect(pod.port) as client:
            assert (await client.ask(post(BODY))).status == 200
        endpoints.set()
        await soon(lambda: pod.endpoints("a") == 0, "an event")


def _count(pod: Pod, series: str) -> float:
    name, _, labels = series.partition("{")
    return pod.metric(name, "{" + labels) or 0


@pytest.mark.parametrize("how", ["reset", "frozen"])
async def test_it_serves_for_as_long_as_the_api_server_is_away(
    how: str,
    api: FaultyApi,
    cluster: Cluster,
    namespace: str,
    start: Callable[[], Awaitable[Pod]],
) -> None:
    if FULL and how == "frozen":
        pytest.skip("ten minutes once are enough")
    async with served(api, cluster, namespace, start) as (pod, model):
        rules = api.rules
        async with asking(pod) as statuses:
            if how == "reset":
                api.go_down()
            else:
                api.rules = []
                api.on(lambda _: True, hang)
                api.freeze_watches()
            end = time.monotonic() + AWAY_S
            while time.monotonic() < end:
                await asyncio.sleep(0.5)  # the absence is the fault
                assert await asyncio.to_thread(pod.is_ready)
            age_s = await asyncio.to_thread(pod.metric, "nimway_proxy_table_age_seconds")
            assert age_s is not None
            assert age_s >= AWAY_S - 1
            api.is_down, api.rules = False, rules
            api.cut_watches()
            table = build_table(namespace, "a", "b")
            await asyncio.to_thread(write_table, cluster, namespace, routes.encode(table))
            await soon(lambda: pod.state().revision == table.revision, "the next table", 90)
        failed = [status for status in statuses if status != 200]
        sys.stdout.write(
            f"{how} for {AWAY_S:g} s: {len(statuses)} requests, {len(failed)} failed\n"
        )
        assert len(statuses) > AWAY_S * 10
        assert not failed
        assert len(model.calls) >= len(statuses)
