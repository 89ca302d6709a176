"""`python -m tests.fuzz.soak MINUTES`: one worker under load with 5 % aborts (PX-15).

Memory, descriptors and tasks are read once the first tenth of the time has passed, and at the end;
they must be the same but for what an allocator and a histogram need. Requests, streams, clients and
model servers share one loop with the worker: what any of them keeps shows.
"""

import asyncio
import gc
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from tests.proxy.vectors import BODY, MODEL
from tests.support.proxy import ProxyHarness, Served, run_proxy
from tests.support.proxy_wire import OK, SSE_HEAD, Call, chunk, connect, post

CLIENTS = 32
REQUESTS_PER_CONNECTION = 50
ABORTS = 0.05
GROWTH_BYTES_MAX = 2 * 1024 * 1024
DESCRIPTORS_MAX = 16
PERIOD_S = 10.0


@dataclass
class Counts:
    """What the clients did and saw."""

    requests: int = 0
    streams: int = 0
    aborts: int = 0
    wrong: int = 0
    servers: set[asyncio.StreamWriter] = field(default_factory=set)


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


async def _serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counts: Counts
) -> None:
    """A model server's connection that keeps nothing of what it served."""
    counts.servers.add(writer)
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.partition(b"Content-Length: ")[2].partition(b"\r")[0])
            body = await reader.readexactly(size)
            await _answer(Call(head, body, reader, writer))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        counts.servers.discard(writer)
        writer.close()


async def _client(port: int, end: float, chance: random.Random, counts: Counts) -> None:
    streamed = BODY.replace(b"Once", b"stream")
    while time.monotonic() < end:
        async with connect(port) as client:
            for _ in range(REQUESTS_PER_CONNECTION):
                stream = chance.random() < 0.3
                await client.send(post(streamed if stream else BODY))
                counts.requests += 1
                counts.streams += stream
                if chance.random() < ABORTS:
                    counts.aborts += 1
                    await asyncio.sleep(chance.random() * 0.01)
                    client.reset()
                    break
                answer = await client.read()
                counts.wrong += answer.status != 200 or not answer.clean


def _read() -> tuple[int, int, int]:
    """Resident bytes, open descriptors, tasks."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 # /proc is no tree of files
    return pages * os.sysconf("SC_PAGE_SIZE"), descriptors, len(asyncio.all_tasks())


def _tell(counts: Counts, reading: tuple[int, int, int], since_s: float) -> None:
    resident, descriptors, tasks = reading
    sys.stdout.write(
        f"{since_s:6.0f} s  {counts.requests:9,} requests  {counts.streams:8,} streams  "
        f"{counts.aborts:7,} aborts  {counts.wrong} wrong  "
        f"{resident / 2**20:6.1f} MiB  {descriptors} fds  {tasks} tasks\n"
    )
    sys.stdout.flush()


async def _watch(start: float, end: float, counts: Counts) -> list[tuple[int, int, int]]:
    """Readings of the time after the first tenth."""
    readings = []
    while (now := time.monotonic()) < end:
        await asyncio.sleep(min(PERIOD_S, end - now))
        reading = _read()
        _tell(counts, reading, time.monotonic() - start)
        if time.monotonic() - start > (end - start) / 10:
            readings.append(reading)
    return readings


def _judge(proxy: ProxyHarness, readings: list[tuple[int, int, int]], counts: Counts) -> list[str]:
    """What is not as it must be: the means of the first and the last third are compared."""
    third = max(1, len(readings) // 3)

    def grown(at: int) -> float:
        first = sum(reading[at] for reading in readings[:third]) / third
        return sum(reading[at] for reading in readings[-third:]) / third - first

    left = {name: count for name, count in proxy.live_objects().items() if count}
    found = {
        f"memory grew by {grown(0) / 2**20:.1f} MiB": grown(0) > GROWTH_BYTES_MAX,
        f"descriptors grew by {grown(1):.0f}": grown(1) > DESCRIPTORS_MAX,
        f"tasks grew by {grown(2):.0f}": grown(2) > DESCRIPTORS_MAX,
        f"{counts.wrong} wrong answers": counts.wrong > 0,
        f"left behind: {left}": bool(left),
    }
    return [text for text, bad in found.items() if bad]


async def main(minutes: float) -> int:
    """Soak; return the exit status."""
    counts = Counts()
    server = await asyncio.start_server(
        lambda reader, writer: _serve(reader, writer, counts), "127.0.0.1", 0
    )
    address = server.sockets[0].getsockname()
    start = time.monotonic()
    end = start + minutes * 60
    async with run_proxy(Served(MODEL, [address])) as proxy:
        seeds = map(random.Random, range(CLIENTS))
        clients = asyncio.gather(*(_client(proxy.port, end, seed, counts) for seed in seeds))
        watch = await _watch(start, end, counts)
        await clients
        await asyncio.sleep(1)
        problems = _judge(proxy, watch, counts)
    server.close()
    for writer in list(counts.servers):
        writer.transport.abort()
    _tell(counts, _read(), time.monotonic() - start)
    sys.stdout.write("".join(f"{problem}\n" for problem in problems) or "flat\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(uvloop.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0)))
