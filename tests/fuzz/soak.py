"""`python -m tests.fuzz.soak MINUTES`: a whole proxy pod under load with 5 % aborts (PX-15).

The parent and two workers are processes of their own, on a control plane of their own; clients and
model servers share this one. Meanwhile pods come and go, tables change, watches are cut and metrics
are read. Resident memory and open descriptors of each process are compared between the first and
the last third of the time, once the first tenth of it has passed; a task that is left behind would
hold a descriptor or memory. At the end every gauge of what is under way must be 0.
"""

import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import uvloop

from nimway import routes
from nimway.sandbox import binaries, launcher
from nimway.tasks import spawn
from tests.support.api_faults import FaultyApi, faulty_api
from tests.support.cluster import Cluster, eventually
from tests.support.proxy import Address
from tests.support.proxy_pod import LoopbackEndpoints, Pod, build_table, proxy_pods, write_table
from tests.support.proxy_wire import OK, SSE_HEAD, Call, chunk, connect, post

CLIENTS = 32
WORKERS = 2
REQUESTS_PER_CONNECTION = 50
ABORTS = 0.05
GROWTH_BYTES_MAX = 2 * 1024 * 1024
DESCRIPTORS_MAX = 16
PERIOD_S = 10.0
NAMESPACE = "soak"
BODY = b'{"model":"a","prompt":"Once upon a time"}'
STREAMED = b'{"model":"a","prompt":"stream"}'
UNDER_WAY = (
    ("nimway_proxy_connections", ""),
    ("nimway_proxy_upstream_connections", ""),
    ("nimway_proxy_bodies_bytes", ""),
    ("nimway_proxy_requests_in_flight", '{model="a"}'),
    ("nimway_proxy_requests_queued", '{model="a"}'),
)

Reading = dict[str, tuple[int, int]]
"""Resident bytes and open descriptors of each process."""


@dataclass
class Counts:
    """What the clients did and saw."""

    requests: int = 0
    streams: int = 0
    aborts: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class World:
    """A pod, and the ways to disturb it."""

    cluster: Cluster
    api: FaultyApi
    endpoints: LoopbackEndpoints
    pod: Pod


async def _answer(call: Call) -> None:
    if b"stream" not in call.body:
        await call.send(OK)
        return
    await call.send(SSE_HEAD)
    for number in range(8):
        await call.send(chunk(b"data: %d\n\n" % number))
        await asyncio.sleep(0.001)
        if call.writer.is_closing():
            raise ConnectionResetError
    await call.send(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A model server's connection that keeps nothing of what it served."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.partition(b"Content-Length: ")[2].partition(b"\r")[0])
            await _answer(Call(head, await reader.readexactly(size), reader, writer))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _client(port: int, end: float, chance: random.Random, counts: Counts) -> None:
    while time.monotonic() < end:
        async with connect(port) as client:
            for _ in range(REQUESTS_PER_CONNECTION):
                stream = chance.random() < 0.3
                await client.send(post(STREAMED if stream else BODY))
                counts.requests += 1
                counts.streams += stream
                if chance.random() < ABORTS:
                    counts.aborts += 1
                    await asyncio.sleep(chance.random() * 0.01)
                    client.reset()
                    break
                answer = await client.read()
                if answer.status != 200 or not answer.clean:
                    counts.wrong.append(f"{answer.status} {answer.body[-120:]!r}")


async def _disturb(world: World, addresses: list[Address], end: float) -> None:
    """Every second a pod goes or comes; every 20 s another table, every 60 s cut watches."""
    turn = 0
    while time.monotonic() < end:
        await asyncio.sleep(1)
        turn += 1
        world.endpoints.set(*(addresses if turn % 2 else addresses[turn // 2 % 2 :][:1]))
        if turn % 20 == 0:
            others = [f"other-{turn}-{number}" for number in range(turn // 20 % 5)]
            data = routes.encode(build_table(NAMESPACE, "a", *others))
            await asyncio.to_thread(write_table, world.cluster, NAMESPACE, data)
        if turn % 60 == 0:
            world.api.cut_watches()


def _read(pod: Pod) -> Reading:
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    processes = {"parent": pod.process.pid}
    processes |= {f"worker {number}": pid for number, pid in enumerate(pod.workers())}
    found = {}
    for name, pid in processes.items():
        folder = Path(f"/proc/{pid}")
        pages = int((folder / "statm").read_text(encoding="ascii").split()[1])
        found[name] = pages * page_bytes, len(list((folder / "fd").iterdir()))
    return found


def _tell(counts: Counts, reading: Reading, since_s: float) -> None:
    processes = "  ".join(
        f"{name} {resident / 2**20:.1f} MiB {descriptors} fds"
        for name, (resident, descriptors) in reading.items()
    )
    sys.stdout.write(
        f"{since_s:6.0f} s  {counts.requests:,} requests  {counts.streams:,} streams  "
        f"{counts.aborts:,} aborts  {len(counts.wrong)} wrong  {processes}\n"
    )
    sys.stdout.flush()


async def _watch(pod: Pod, start: float, end: float, counts: Counts) -> list[Reading]:
    """Readings of the time after the first tenth."""
    readings = []
    while (now := time.monotonic()) < end:
        await asyncio.sleep(min(PERIOD_S, end - now))
        await asyncio.to_thread(pod.get, "/metrics")
        reading = _read(pod)
        _tell(counts, reading, time.monotonic() - start)
        if time.monotonic() - start > (end - start) / 10:
            readings.append(reading)
    return readings


def _judge(readings: list[Reading], counts: Counts) -> list[str]:
    """What is not as it must be."""
    third = max(1, len(readings) // 3)
    problems = [f"wrong: {text}" for text in counts.wrong[:10]]
    for name in readings[0]:
        for at, (what, most) in enumerate(
            (("bytes", GROWTH_BYTES_MAX), ("descriptors", DESCRIPTORS_MAX))
        ):
            values = [reading[name][at] for reading in readings]
            grown = (sum(values[-third:]) - sum(values[:third])) / third
            sys.stdout.write(f"{name}: {grown:+,.0f} {what}\n")
            if grown > most:
                problems.append(f"{name}: {grown:,.0f} {what} more")
    return problems


async def _find_left(pod: Pod) -> list[str]:
    """Return the gauges of what is under way that do not come back to 0."""
    left = ["not asked"]
    end = time.monotonic() + 15
    while left and time.monotonic() < end:
        await asyncio.sleep(0.5)
        values = {f"{name}{labels}": pod.metric(name, labels) for name, labels in UNDER_WAY}
        left = [f"left: {name} {value}" for name, value in values.items() if value]
    return left


@contextmanager
def _world(folder: Path) -> Iterator[World]:
    with ExitStack() as stack:
        sandbox = launcher.launch(launcher.Options(name=launcher.new_name("soak")))
        stack.callback(sandbox.stop)
        cluster = Cluster(sandbox.kubeconfig, sandbox, binaries.kubectl(print))
        cluster.create_namespace(NAMESPACE)
        write_table(cluster, NAMESPACE, routes.encode(build_table(NAMESPACE, "a")))
        api = stack.enter_context(faulty_api(sandbox.kubeconfig))
        endpoints = LoopbackEndpoints(api, "a")
        kubeconfig = api.kubeconfig(folder / "kubeconfig")
        start = stack.enter_context(proxy_pods(kubeconfig, NAMESPACE, folder))
        arguments = ["--allow-loopback", "--access-log-sample", "0.001"]
        yield World(cluster, api, endpoints, start(workers=WORKERS, arguments=arguments))


async def _soak(minutes: float, world: World) -> list[str]:
    counts = Counts()
    servers = [await asyncio.start_server(_serve, "127.0.0.1", 0) for _ in range(2)]
    addresses: list[Address] = [server.sockets[0].getsockname() for server in servers]
    world.endpoints.set(*addresses)
    await asyncio.to_thread(
        eventually,
        lambda: world.pod.is_ready() and world.pod.endpoints("a") == len(addresses),
        "the pod serves",
    )
    start = time.monotonic()
    end = start + minutes * 60
    disturbing = spawn(_disturb(world, addresses, end), name="disturb")
    ask = partial(_client, world.pod.port, end)
    clients = asyncio.gather(*(ask(random.Random(seed), counts) for seed in range(CLIENTS)))
    readings = await _watch(world.pod, start, end, counts)
    await clients
    await disturbing
    left = await _find_left(world.pod)
    _tell(counts, _read(world.pod), time.monotonic() - start)
    for server in servers:
        server.close()
    restarts = world.pod.metric("nimway_proxy_worker_restarts_total")
    return [*_judge(readings, counts), *left, *(["workers restarted"] if restarts else [])]


def main(minutes: float) -> int:
    """Soak; return the exit status."""
    with tempfile.TemporaryDirectory() as folder, _world(Path(folder)) as world:
        problems = uvloop.run(_soak(minutes, world))
    sys.stdout.write("".join(f"{problem}\n" for problem in problems) or "flat\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0))
