"""Real worker processes under their supervisor: killed, stopped, hanging, impossible to start."""

import asyncio
import itertools
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nimway.proxy import supervisor as supervisors
from nimway.proxy.exposition import METRICS, add_up
from nimway.proxy.messages import Load, ServiceEndpoints, Table, encode
from nimway.proxy.settings import Settings
from nimway.proxy.supervisor import Supervisor
from nimway.routes import Policy
from tests.support.ports import free_port
from tests.support.proxy import NAMESPACE, TEST_SETTINGS, Served
from tests.support.proxy_wire import connect, post, run_model_server
from tests.support.proxy_wire import until as until_soon

MODEL = Served("org/known", policy=Policy(queue_wait_max_s=0))  # without pods: 503 at once
UNKNOWN = post(b'{"model":"org/unknown"}')
KNOWN = post(b'{"model":"org/known"}')
TOTALS = frozenset(metric.source for metric in METRICS if metric.is_total)
until = partial(until_soon, timeout_s=30.0)
"""Processes start and end on a machine that has other things to do."""

Totals = dict[tuple[str, tuple[str, ...]], list[float]]


@dataclass
class Workers:
    """A supervisor with processes, and what its log says of them."""

    supervisor: Supervisor
    port: int
    log: pytest.LogCaptureFixture

    def told(self, event: str) -> list[dict[str, Any]]:
        return [record.__dict__["fields"] for record in self.log.records if record.msg == event]

    @property
    def pids(self) -> list[int]:
        """Of all workers that were started, in that order."""
        return [fields["pid"] for fields in self.told("started a worker")]

    @property
    def demand(self) -> int:
        return self.supervisor.load()[MODEL.to_route().key][2]

    async def serving(self, count: int) -> None:
        await until(lambda: self.supervisor.serving == count)

    async def ask(self, request: bytes) -> int:
        async with connect(self.port) as client:
            return (await client.ask(request)).status

    async def totals(self) -> Totals:
        found = add_up(await self.supervisor.scrape())
        return {
            (name, labels): numbers
            for name, series in found.items()
            if name in TOTALS
            for labels, numbers in series.items()
        }


@asynccontextmanager
async def workers(
    count: int,
    log: pytest.LogCaptureFixture,
    *,
    wait: bool = True,
    port: int | None = None,
    settings: Settings = TEST_SETTINGS,
) -> AsyncIterator[Workers]:
    log.set_level("INFO", "nimway.proxy.supervisor")
    port = port or free_port()
    supervisor = Supervisor(settings, count=count, host="127.0.0.1", port=port)
    running = Workers(supervisor, port, log)
    supervisor.start()
    supervisor.replace_table(Table("1", [MODEL.to_route()]))
    try:
        if wait:
            await running.serving(count)
        yield running
    finally:
        supervisor.drain(stop=True)
        await supervisor.wait_ended()
        supervisor.stop()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def assert_grown(old: Totals, new: Totals) -> None:
    for key, numbers in old.items():
        assert key in new, f"{key} is gone"
        assert all(a <= b for a, b in zip(numbers, new[key], strict=True)), key


def refused(totals: Totals) -> float:
    return totals["requests", ("", "/v1/completions", "404")][0]


async def test_no_counter_goes_back_when_workers_are_killed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with workers(2, caplog) as running:
        sent, lost = 0, 0
        old: Totals = {}
        for turn in range(4):
            asked = running.demand + 20
            for _ in range(20):
                assert await running.ask(UNKNOWN) == 404
                assert await running.ask(KNOWN) == 503
            sent += 20
            if turn % 2 == 0:  # seen before the kill: nothing of it may be missing
                old = await running.totals()
                await until(lambda asked=asked: running.demand == asked)  # type: ignore[misc] # as below
            else:
                lost += 20  # killed between two scrapes: what nobody saw may be missing
            os.kill(running.pids[-1], signal.SIGKILL)
            await until(lambda turn=turn: running.supervisor.restarts > turn)  # type: ignore[misc] # a default binds it
            new = await running.totals()
            assert_grown(old, new)
            await running.serving(2)
            newer = await running.totals()
            assert_grown(new, newer)
            assert sent - lost <= refused(newer) <= sent
            old = newer
        assert running.supervisor.restarts == 4
        assert sent - lost <= running.demand <= sent


async def test_a_worker_that_keeps_dying_is_started_ever_later_and_the_other_serves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with workers(2, caplog) as running:
        for turn in range(4):
            os.kill(_pid_of(running, 0), signal.SIGKILL)
            await until(lambda turn=turn: running.supervisor.restarts > turn)  # type: ignore[misc] # a default binds it
            assert await running.ask(KNOWN) == 503
            await running.serving(2)
        waits = [fields["backoff_s"] for fields in running.told("restarting a worker")]
        assert waits == [0.2, 0.4, 0.8, 1.6]
        assert {fields["worker"] for fields in running.told("restarting a worker")} == {0}


def _pid_of(running: Workers, number: int) -> int:
    started = running.told("started a worker")
    pid: int = [fields["pid"] for fields in started if fields["worker"] == number][-1]
    return pid


async def test_the_revision_is_the_one_that_all_workers_serve(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with workers(2, caplog) as running:
        supervisor = running.supervisor
        assert supervisor.revision == "1"
        with stopped(running.pids[0]):
            supervisor.replace_table(Table("2", [MODEL.to_route()]))
            await until(lambda: {each.revision for each in supervisor._handles} == {"1", "2"})
            assert supervisor.revision == "1"
        await until(lambda: supervisor.revision == "2")
        os.kill(running.pids[0], signal.SIGKILL)
        await until(lambda: supervisor.restarts == 1)
        assert supervisor.revision == "2"
        await running.serving(2)
        assert {each.revision for each in supervisor._handles} == {"2"}


async def test_a_model_that_leaves_and_comes_back_has_no_load_and_its_demand(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with workers(1, caplog) as running:
        assert await running.ask(KNOWN) == 503
        await until(lambda: running.demand == 1)
        (handle,) = running.supervisor._handles
        running.supervisor._handle(handle, _load_frame(3))
        for revision, routes in (("2", []), ("3", [MODEL.to_route()])):
            running.supervisor.replace_table(Table(revision, routes))
            await until(lambda revision=revision: running.supervisor.revision == revision)  # type: ignore[misc] # bound
        assert running.supervisor.load()[MODEL.to_route().key] == (0, 0, 1)
        assert await running.ask(KNOWN) == 503
        await until(lambda: running.demand == 2)


async def test_workers_take_their_part_of_a_model_s_queue_and_of_the_proxy_s(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two workers in each of three pods: 6 of 20 places are this pod's, but all 8 of the proxy's.

    So many are asked that each worker, whichever the kernel takes, has more than it can hold.
    """
    own = Served("org/own", policy=Policy(queue_requests_max=20))
    default = Served("org/default")
    settings = replace(TEST_SETTINGS, queue_requests_max=8)
    async with workers(2, caplog, settings=settings) as running, AsyncExitStack() as stack:
        running.supervisor.share_among(3)
        running.supervisor.replace_table(Table("2", [own.to_route(), default.to_route()]))
        await until(lambda: running.supervisor.revision == "2")
        for model, expected in ((own, 6), (default, 8)):
            key = model.to_route().key
            for _ in range(40):
                client = await stack.enter_async_context(connect(running.port))
                await client.send(post(b'{"model":"%b"}' % model.model.encode()))
            await until(lambda key=key: running.supervisor.load()[key][2] == 40)  # type: ignore[misc] # bound
            assert running.supervisor.load()[key][1] == expected


def _load_frame(in_flight: int) -> bytes:
    """What the channel hands on of a load: requests under way, and the demand so far."""
    return encode(Load({MODEL.to_route().key: (in_flight, 0, 1)}))[4:]


async def test_a_worker_that_hangs_is_ended_and_replaced(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "PING_PERIOD_S", 0.5)
    async with workers(1, caplog) as running:
        os.kill(running.pids[0], signal.SIGSTOP)
        await until(lambda: running.supervisor.restarts == 1)
        assert running.told("ending a worker that hangs") == [{"pid": running.pids[0]}]
        await running.serving(1)
        assert await running.ask(KNOWN) == 503


async def test_a_worker_that_answers_late_is_left_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "PING_PERIOD_S", 1.0)
    async with workers(1, caplog) as running:
        (handle,) = running.supervisor._handles
        with stopped(running.pids[0]):
            await until(lambda: handle.pings_missed >= 1)
        await until(lambda: handle.pings_missed == 0)
        assert running.supervisor.restarts == 0


async def test_a_worker_that_cannot_be_started_is_started_later(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, fails = asyncio.create_subprocess_exec, 20

    async def start_later(*arguments: Any, **options: Any) -> Any:
        nonlocal fails
        if fails:
            fails -= 1
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return await start(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_later)
    monkeypatch.setattr(supervisors, "BACKOFF_MAX_S", 0.01)
    before = _descriptors()
    async with workers(1, caplog) as running:
        assert running.supervisor.restarts == 20
        reasons = {fields["status"] for fields in running.told("restarting a worker")}
        assert reasons == {"[Errno 11] Resource temporarily unavailable"}
        assert await running.ask(KNOWN) == 503
    assert _descriptors() < before + 10


async def test_a_worker_that_cannot_listen_is_started_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as other:
        port = other.getsockname()[1]
        async with workers(1, caplog, wait=False, port=port) as running:
            await until(lambda: running.supervisor.restarts == 1)
            assert running.supervisor.revision == ""
            other.close()
            await running.serving(1)
            assert await running.ask(KNOWN) == 503


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 # /proc is no tree of files


def test_a_worker_may_open_as_many_files_as_its_pod() -> None:
    """10,000 clients need 20,000 descriptors; many runtimes begin with 1,024."""
    program = (
        "import resource; from nimway.proxy.worker import raise_descriptor_limit;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096));"
        "raise_descriptor_limit(); print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 4096
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["4096", "4096"]


async def test_a_worker_without_descriptors_refuses_and_ejects_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is at its limit, the model servers are well."""
    async with workers(1, caplog) as running, run_model_server() as model:
        service = ServiceEndpoints(NAMESPACE, MODEL.name, [model.address])
        running.supervisor.replace_endpoints([service])
        (pid,) = running.pids
        async with connect(running.port) as client:
            await until(lambda: running.supervisor.serving == 1)
            assert (await client.ask(UNKNOWN)).status == 404
            _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (_free_descriptor(pid), hard))
            for _ in range(5):
                answer = await client.ask(KNOWN)
                assert (answer.status, b"overloaded" in answer.body) == (503, True)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
            assert (await client.ask(KNOWN)).status == 200
        totals = await running.totals()
        assert (totals["ejections", ()], totals["retries", ()]) == ([0], [0])


def _free_descriptor(pid: int) -> int:
    """Return the number that the process's next descriptor would have."""
    used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in itertools.count() if number not in used)
