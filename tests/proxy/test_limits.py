"""Clients that are slow, endless, too many or do not read: bounded, and harmless to others."""

import asyncio
import json
import time
from dataclasses import replace

import pytest

from tests.proxy.test_conversations import BODY, MODEL, conversation, error_of
from tests.support.proxy import TEST_SETTINGS
from tests.support.proxy_glue import feed_client
from tests.support.proxy_wire import SSE_HEAD, Call, chunk, connect, post, run_model_server, until


async def test_a_head_that_does_not_end_in_time_is_408() -> None:
    async with run_model_server() as model, conversation(model) as (proxy, client):
        await client.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n")
        await until(lambda: any(not c.is_idle for c in proxy.server.connections))
        proxy.advance(9)
        await client.send(b"X: y\r\n")
        proxy.advance(2)
        answer = await client.read()
        assert (answer.status, error_of(answer)["code"]) == (408, "request_timeout")
        assert await client.is_closed()


async def test_the_next_head_on_a_connection_has_the_same_time() -> None:
    async with run_model_server() as model, conversation(model) as (proxy, client):
        await client.ask(post(BODY))
        proxy.advance(60)
        await client.send(b"POST /v1/completions HTTP/1.1\r\n")
        await until(lambda: any(not c.is_idle for c in proxy.server.connections))
        proxy.advance(11)
        assert (await client.read()).status == 408


async def test_a_connection_that_stays_idle_is_closed_without_a_word() -> None:
    async with run_model_server() as model, conversation(model) as (proxy, client):
        await client.ask(post(BODY))
        proxy.advance(74)
        assert (await client.ask(post(BODY))).status == 200
        proxy.advance(76)
        assert await client.is_closed()


async def test_a_body_that_stops_is_408_and_holds_no_upstream() -> None:
    async with run_model_server() as model, conversation(model) as (proxy, client):
        await client.send(post(BODY)[:-5])
        await until(lambda: proxy.server.bodies_bytes > 0)
        assert not proxy.server.upstreams
        proxy.advance(31)
        assert (await client.read()).status == 408
        assert await client.is_closed()
        assert not model.calls


def test_a_head_that_comes_byte_by_byte_is_looked_at_once() -> None:
    head = b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X: %b\r\n" % (b"y" * 640) * 95 + b"\r\n"
    began_s = time.process_time()
    side = feed_client(head[at : at + 1] for at in range(len(head)))
    assert len(side.served) == 1
    assert time.process_time() - began_s < 1.0


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1", b"GET / HTTP/1.1\r\nHost: a\r"])
def test_a_bare_lf_is_refused_at_once_wherever_it_comes(start: bytes) -> None:
    for piece in (b"\n", b"X\n"):
        parts = [start[:5], start[5:], piece] if start else [b"G", piece]
        side = feed_client(parts)
        refused = not (piece == b"\n" and start.endswith(b"\r"))
        assert (side.statuses == [400]) == refused


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 70_000,
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 70_000,
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 12_000,
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 120 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    ],
)
async def test_too_large_a_head_is_431(head: bytes) -> None:
    async with run_model_server() as model, conversation(model) as (_, client):
        answer = await client.ask(head)
        assert (answer.status, error_of(answer)["code"]) == (431, "head_too_large")
        assert await client.is_closed()


@pytest.mark.parametrize("declared", [True, False])
async def test_too_large_a_body_is_413_before_it_is_all_here(*, declared: bool) -> None:
    settings = replace(TEST_SETTINGS, body_bytes_max=100_000)
    async with (
        run_model_server() as model,
        conversation(model, settings=settings) as (proxy, client),
    ):
        if declared:
            data = post(BODY + b" " * 100_000)[:1000]
        else:
            data = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            data += chunk(b" " * 60_000) * 2
        answer = await client.ask(data)
        assert (answer.status, error_of(answer)["code"]) == (413, "body_too_large")
        assert not model.calls
        assert await client.is_closed()
        await until(lambda: proxy.server.bodies_bytes == 0)


async def test_a_client_that_sends_on_still_gets_its_413() -> None:
    settings = replace(TEST_SETTINGS, body_bytes_max=100_000)
    async with conversation(settings=settings) as (_, client):
        body = BODY + b" " * 5_000_000
        sending = asyncio.gather(client.send(post(body)), return_exceptions=True)
        assert (await client.read()).status == 413
        await sending


async def test_bodies_of_all_requests_together_are_bounded() -> None:
    settings = replace(TEST_SETTINGS, bodies_bytes_max=100_000)
    async with conversation(settings=settings) as (proxy, client), connect(proxy.port) as other:
        await client.send(post(BODY + b" " * 80_000)[:-10])
        await until(lambda: proxy.server.bodies_bytes > 79_000)
        answer = await other.ask(post(BODY + b" " * 30_000)[:200])
        assert (answer.status, error_of(answer)["code"]) == (503, "overloaded")
        assert answer.field(b"retry-after")


async def test_one_connection_too_many_is_503() -> None:
    settings = replace(TEST_SETTINGS, connections_max=1)
    async with (
        run_model_server() as model,
        conversation(model, settings=settings) as (proxy, client),
    ):
        await client.ask(post(BODY))
        async with connect(proxy.port) as other:
            assert (await other.read()).status == 503
            assert await other.is_closed()
        assert (await client.ask(post(BODY))).status == 200


async def test_a_slow_reader_stops_the_model_and_holds_little() -> None:
    """PX-9, short."""
    piece = b"data: " + b"x" * 32_000 + b"\n\n"
    sent = 0

    async def flood(call: Call) -> None:
        nonlocal sent
        await call.send(SSE_HEAD)
        for _ in range(1000):
            await call.send(chunk(piece))
            sent += len(piece)
        await call.send(b"0\r\n\r\n")

    async with run_model_server(flood) as model, conversation(model) as (proxy, client):
        client.writer.transport.pause_reading()  # type: ignore[attr-defined] # a transport has it
        await client.send(post(BODY))
        before = -1
        async with asyncio.timeout(20):
            while before != sent or not sent:
                before = sent
                for _ in range(50):
                    await asyncio.sleep(0.001)
        assert sent < 1000 * len(piece)
        held = [
            connection._transport.get_write_buffer_size() for connection in proxy.server.connections
        ]
        assert 0 < max(held) < 256 * 1024
        async with connect(proxy.port) as other:
            await other.ask(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        client.writer.transport.resume_reading()  # type: ignore[attr-defined] # as above
        answer = await client.read()
        assert answer.clean
        assert len(answer.body) == 1000 * len(piece)


async def test_a_slow_reader_leaves_no_connection_to_the_model_that_nobody_reads() -> None:
    """Its last answer came whole while it was paused; the next request takes that connection."""

    async def answer(call: Call) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        await call.send(head + chunk(b"x" * 60_000) + b"0\r\n\r\n")

    async with run_model_server(answer) as model, conversation(model) as (proxy, slow):
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined] # it reads, too
        await slow.send(post(BODY) * 400)
        await until(lambda: any(each.paused for each in proxy.server.connections))
        await until(lambda: not proxy.server.exchanges)
        async with connect(proxy.port) as client, asyncio.timeout(5):
            assert (await client.ask(post(BODY))).status == 200


async def test_a_client_that_never_reads_is_cut_off() -> None:
    async def flood(call: Call) -> None:
        await call.send(SSE_HEAD)
        for _ in range(1000):
            await call.send(chunk(b"x" * 32_000))

    async with run_model_server(flood) as model, conversation(model) as (proxy, client):
        client.writer.transport.pause_reading()  # type: ignore[attr-defined] # a transport has it
        await client.send(post(BODY))
        await until(lambda: any(connection.paused for connection in proxy.server.connections))
        proxy.advance(1)
        proxy.advance(301)
        proxy.advance(301)
        await until(lambda: not any(proxy.live_objects().values()))


async def test_pipelined_bytes_are_bounded() -> None:
    gate = asyncio.Event()

    async def hold(call: Call) -> None:
        await gate.wait()
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with run_model_server(hold) as model, conversation(model) as (proxy, client):
        await client.send(post(BODY))
        await model.called.wait()
        body = json.dumps({"model": MODEL, "prompt": "x" * 10_000}).encode()
        client.writer.write(post(body) * 600)
        await until(lambda: any(not c._reading for c in proxy.server.connections))
        held = max(len(connection._buffer) for connection in proxy.server.connections)
        assert held < 64 * 1024 + 256_000
        gate.set()
        for _ in range(601):
            assert (await client.read()).status == 200
        assert model.calls[-1].body == body


@pytest.mark.parametrize(("field", "total_s"), [("", 100), ("X-Nimway-Timeout: 60\r\n", 60)])
async def test_a_body_that_trickles_ends_with_the_request_s_total_time(
    field: str, total_s: int
) -> None:
    settings = replace(TEST_SETTINGS, timeout_total_s=100)
    async with (
        run_model_server() as model,
        conversation(model, settings=settings) as (proxy, client),
    ):
        await client.send(post(BODY, fields=field)[: -len(BODY)])
        passed_s, sent = 0, 0
        while passed_s + 20 < total_s:
            sent += 1
            await client.send(BODY[sent - 1 : sent])
            await until(lambda: proxy.server.bodies_bytes == sent)  # noqa: B023 # awaited here
            proxy.advance(20)
            passed_s += 20
        assert proxy.live_objects()["exchanges"] == 1
        await client.send(BODY[sent : sent + 1])
        await until(lambda: proxy.server.bodies_bytes == sent + 1)
        proxy.advance(21)
        answer = await client.read()
        assert (answer.status, error_of(answer)["code"]) == (408, "request_timeout")
        assert await client.is_closed()
        assert not any(proxy.live_objects().values())
        assert not model.calls
