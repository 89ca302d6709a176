"""What a client can make the proxy hold: bounded in bytes, however small the pieces."""

import asyncio
import json
import tracemalloc

from nimway.proxy.downstream import Downstream
from nimway.proxy.scrape import collect
from tests.proxy.test_conversations import conversation
from tests.proxy.vectors import BODY
from tests.support.faults import FULL
from tests.support.proxy_glue import Recorder, Wire
from tests.support.proxy_wire import Client, connect, post, run_model_server, until

CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def _held_by(head: bytes, part: bytes, times: int) -> tuple[int, int]:
    """Bytes of memory and bytes of the body held after `times` reads of `part`."""
    recorder, wire = Recorder(), Wire()
    downstream = Downstream(recorder)
    downstream.connection_made(wire)
    downstream.data_received(head)
    tracemalloc.start()
    for _ in range(times):
        downstream.data_received(part)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    size = recorder.bodies_bytes
    downstream.connection_lost(None)
    assert recorder.bodies_bytes == 0
    return held, size


def test_a_body_in_tiny_chunks_costs_little_more_than_its_bytes() -> None:
    for part, times in ((b"2\r\nab\r\n" * 10_000, 5), (b"2\r\nab\r\n", 20_000)):
        held, size = _held_by(CHUNKED, part, times)
        assert held < 2 * size + 50_000


def test_a_body_in_tiny_segments_costs_little_more_than_its_bytes() -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n"
    held, size = _held_by(head, b"ab", 20_000)
    assert size == 40_000
    assert held < 2 * size + 50_000


def test_pieces_of_every_size_come_out_in_order() -> None:
    body = json.dumps({"model": "m", "prompt": list(range(9000))}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    recorder = Recorder()
    downstream = Downstream(recorder)
    downstream.connection_made(Wire())
    downstream.data_received(head)
    at = 0
    for size in (1, 5000, 2, 3, 4096, 4095, 1, 20_000, len(body)):
        downstream.data_received(body[at : at + size])
        at += size
    assert [served.body for served in recorder.served] == [body]


async def test_invented_names_add_no_series_and_no_memory() -> None:
    """PX-14; 100,000 names in full."""
    share = 25_000 if FULL else 5_000
    async with run_model_server() as model, conversation(model) as (proxy, client):

        async def invent(first: int, count: int) -> None:
            async with connect(proxy.port) as other:
                for at in range(first, first + count, 100):
                    bodies = [b'{"model":"invented-%d"}' % n for n in range(at, at + 100)]
                    await other.send(b"".join(map(post, bodies)))
                    for _ in bodies:
                        await _skip(other)

        def series() -> int:
            return len(repr(next(collect(proxy.server, 0))))

        await client.ask(post(BODY))
        await invent(0, 500)
        before = series()
        proxy.server.flush_lines()
        tracemalloc.start()
        await asyncio.gather(*(invent(number * share, share) for number in range(4)))
        proxy.server.flush_lines()
        grown = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert series() - before < 200
        assert grown < 1_000_000
        await until(lambda: len(proxy.server.connections) == 1)


async def _skip(client: Client) -> None:
    """Read one answer without looking at it."""
    head = await client.reader.readuntil(b"\r\n\r\n")
    at = head.index(b"Content-Length: ") + 16
    await client.reader.readexactly(int(head[at : head.index(b"\r", at)]))
