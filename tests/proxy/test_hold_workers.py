"""Holding in real worker processes under their parent: the report, the release, the end, memory."""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nimway import state
from nimway.proxy.admin import AdminServer
from nimway.proxy.messages import ServiceEndpoints, Table
from nimway.proxy.readiness_probe import ReadinessProbe
from nimway.proxy.starting_pods import StartingPods
from nimway.proxy.supervisor import Supervisor
from nimway.routes import Policy, Route
from nimway.state import ModelLoad, ProxyState
from tests.proxy.test_hold import assert_told
from tests.support.ports import free_port
from tests.support.proxy import NAMESPACE, TEST_SETTINGS, Address, Served, listen
from tests.support.proxy_wire import Client, ModelServer, connect, post, run_model_server, until

MODELS = tuple(
    Served(f"org/m{number}", policy=Policy(queue_requests_max=2000, max_concurrency=8))
    for number in range(60)
)
SETTINGS = replace(TEST_SETTINGS, access_log_sample=0.0)
START_S = 30.0


def request(model: Served, size: int = 0) -> bytes:
    return post(json.dumps({"model": model.model, "prompt": "x" * size}).encode())


@dataclass
class Pod:
    """A parent without Kubernetes: real workers, and port 8001."""

    supervisor: Supervisor
    admin: AdminServer
    port: int
    admin_port: int

    def state(self) -> ProxyState:
        loads = self.supervisor.load().items()
        models = {key: ModelLoad(*load) for key, load in loads}
        return ProxyState(self.supervisor.revision, ready=True, draining=False, models=models)

    async def metrics(self) -> bytes:
        return b""

    def queued(self, model: Served) -> int:
        return self.supervisor.load()[model.to_route().key][1]

    def set_endpoints(self, model: Served, *addresses: Address) -> None:
        self.supervisor.replace_endpoints(
            [ServiceEndpoints(NAMESPACE, model.name, list(addresses))]
        )

    @property
    def pids(self) -> list[int]:
        children = Path("/proc/self/task").glob("*/children")
        found = [int(pid) for path in children for pid in path.read_text().split()]
        return [pid for pid in found if b"nimway.proxy.worker" in _command(pid)]


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _rss_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@asynccontextmanager
async def running(count: int = 1) -> AsyncIterator[Pod]:
    port = free_port()
    supervisor = Supervisor(SETTINGS, count=count, host="127.0.0.1", port=port)
    admin_sock = listen()
    pod = Pod(supervisor, None, port, admin_sock.getsockname()[1])  # type: ignore[arg-type] # set below
    pod.admin = AdminServer(SETTINGS, pod)
    await pod.admin.start(admin_sock)
    supervisor.on_change = pod.admin.plan_report
    supervisor.on_urgent = pod.admin.report
    supervisor.start()
    supervisor.replace_table(Table("1", [model.to_route() for model in MODELS]))
    try:
        await until(lambda: supervisor.serving == count, timeout_s=START_S)
        yield pod
    finally:
        supervisor.drain(stop=True)
        await supervisor.wait_ended()
        supervisor.stop()
        pod.admin.stop()


@asynccontextmanager
async def reading_state(pod: Pod) -> AsyncIterator[asyncio.StreamReader]:
    async with connect(pod.admin_port) as client:
        await client.send(b"GET /state HTTP/1.0\r\n\r\n")
        await client.reader.readuntil(b"\r\n\r\n")
        yield client.reader


async def reported(lines: asyncio.StreamReader, model: Served, demand: int) -> float:
    """Return when a report says that the model was asked for so often."""
    while True:
        line = state.decode(await lines.readline())
        load = line.models.get(model.to_route().key)
        if load is not None and load.demand_total >= demand:
            return time.perf_counter()


def show(what: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    p99 = ordered[int(len(ordered) * 0.99)]
    text = f"p50 {statistics.median(ordered) * 1e3:.2f}, p99 {p99 * 1e3:.2f} ms"
    sys.stdout.write(f"{what}: {text}, n={len(ordered)}\n")


async def test_the_first_request_for_a_sleeping_model_is_on_the_stream_within_5_ms() -> None:
    taken: list[float] = []
    async with running(2) as pod, reading_state(pod) as lines, AsyncExitStack() as stack:
        for model in MODELS:
            client = await stack.enter_async_context(connect(pod.port))
            start = time.perf_counter()
            await client.send(request(model))
            taken.append(await reported(lines, model, 1) - start)
    show("first request to /state", taken)
    assert statistics.median(taken) < state.URGENT_DELAY_MAX_S


async def test_a_pod_that_gets_ready_has_the_held_request_within_milliseconds() -> None:
    taken: list[float] = []
    async with run_model_server() as model, running() as pod, connect(pod.port) as client:
        for served in MODELS:
            await client.send(request(served))
            await until(lambda served=served: pod.queued(served) == 1)  # type: ignore[misc] # a default binds it
            model.called.clear()
            start = time.perf_counter()
            pod.set_endpoints(served, model.address)
            await model.called.wait()
            taken.append(time.perf_counter() - start)
            assert (await client.read()).status == 200
    show("endpoint event to request at the pod", taken)
    assert statistics.median(taken) < 0.012


async def test_a_starting_pod_that_answers_has_the_held_request() -> None:
    async with (
        run_model_server() as model,
        running() as pod,
        aclosing(ReadinessProbe(allow_loopback=True)) as probe,
        connect(pod.port) as client,
    ):
        served = MODELS[0]
        pods = StartingPods(
            probe.is_ready,
            lambda key: pod.supervisor.load()[key][1] > 0,
            pod.supervisor.replace_endpoints,
        )
        names = (served.model,)
        pods.replace_routes([Route(NAMESPACE, served.name, served.model, names, served.name, 1)])
        pods.take([ServiceEndpoints(NAMESPACE, served.name, [], [model.address])])
        pod.supervisor.on_urgent = pods.look
        answer = await client.ask(request(served))
        assert answer.status == 200
        assert [call.head.split()[0] for call in model.calls] == [b"GET", b"POST"]
        pods.stop()


async def test_a_parent_that_dies_leaves_no_waiter_hanging() -> None:
    async with running() as pod, connect(pod.port) as client:
        await client.send(request(MODELS[0]))
        await until(lambda: pod.queued(MODELS[0]) == 1)
        for handle in pod.supervisor._handles:
            handle.channel.close()  # all that a worker sees of it
        async with asyncio.timeout(2):
            assert_told(await client.read(), "draining", 1)


async def test_a_pod_that_is_told_to_end_leaves_no_waiter_hanging() -> None:
    async with running(2) as pod, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(pod.port)) for _ in range(20)]
        for client in clients:
            await client.send(request(MODELS[0]))
        await until(lambda: pod.queued(MODELS[0]) == 20)
        pod.supervisor.drain(stop=True)
        async with asyncio.timeout(2):
            for client in clients:
                assert_told(await client.read(), "draining", 1)
        await asyncio.wait_for(pod.supervisor.wait_ended(), 5)


async def _hold(pod: Pod, clients: list[Client], size: int) -> None:
    for number, client in enumerate(clients):
        await client.send(request(MODELS[0], size))
        if number % 100 == 99:
            await until(lambda number=number: pod.queued(MODELS[0]) == number + 1)  # type: ignore[misc] # a default binds it


async def _wake(pod: Pod, server: ModelServer, clients: list[Client]) -> None:
    pod.set_endpoints(MODELS[0], server.address)
    for client in clients:
        assert (await client.read()).status == 200


async def test_two_thousand_waiters_cost_16_kib_each_and_their_bodies() -> None:
    count, size = 2000, 4096
    async with run_model_server() as server, running() as pod, AsyncExitStack() as stack:
        [pid] = pod.pids
        before = _rss_bytes(pid)
        clients = [await stack.enter_async_context(connect(pod.port)) for _ in range(count)]
        await _hold(pod, clients, size)
        held = _rss_bytes(pid)
        await _wake(pod, server, clients)
        peak = max(held, _rss_bytes(pid))
        each = (peak - before) / count
        sys.stdout.write(f"{count} held requests of {size} bytes: {each / 1024:.1f} KiB each\n")
        assert each < 16 * 1024 + size
        assert len(server.calls) == count


@pytest.mark.parametrize("count", [1, 1000])
def test_a_report_of_many_models_costs_little(count: int) -> None:
    models = {f"models/m{number}": ModelLoad(1, 2, 3) for number in range(count)}
    report = ProxyState("r", ready=True, draining=False, models=models)
    start = time.process_time()
    line = state.encode(report)
    taken = time.process_time() - start
    assert state.decode(line) == report
    sys.stdout.write(f"{count} models in a report: {taken * 1e3:.2f} ms\n")
    assert taken < 0.02
