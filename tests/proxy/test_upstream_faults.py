"""Model servers that refuse, stall, reset, lie or vanish: what the client sees, and what runs."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from tests.proxy.test_conversations import BODY, MODEL, conversation, error_of
from tests.proxy.test_wire_chunked import REJECTED as REJECTED_CHUNKS
from tests.proxy.test_wire_responses import REJECTED as REJECTED_HEADS
from tests.support.proxy import TEST_SETTINGS, Served
from tests.support.proxy_wire import (
    OK,
    OK_BODY,
    SSE_HEAD,
    Call,
    ModelServer,
    chunk,
    connect,
    post,
    run_model_server,
    until,
)


def refused_address() -> tuple[str, int]:
    """An address where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address: tuple[str, int] = sock.getsockname()
        return address


def dead() -> ModelServer:
    return ModelServer(address=refused_address())


def sends(data: bytes, *, then: str = "close") -> Callable[[Call], Awaitable[None]]:
    """A script: send `data`, then close, reset or stay."""

    async def script(call: Call) -> None:
        if data:
            await call.send(data)
        if then == "close":
            call.writer.close()
        elif then == "reset":
            call.reset()
        else:
            await call.wait_closed()

    return script


async def test_a_refused_connection_goes_to_another_pod() -> None:
    async with run_model_server() as model, conversation(dead(), dead(), model) as (proxy, client):
        for _ in range(10):
            assert (await client.ask(post(BODY))).status == 200
        assert proxy.server.meters.retries <= 10


async def test_all_pods_refusing_is_503_at_once_and_safe_to_retry() -> None:
    async with conversation(dead(), dead()) as (_, client):
        answer = await client.ask(post(BODY))
        assert (answer.status, error_of(answer)["code"]) == (503, "upstream_unreachable")
        assert answer.field(b"retry-after")
        assert answer.field(b"x-should-retry") == b"true"


async def test_a_blackholed_pod_costs_the_connect_timeout_and_no_more() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)  # the standard library's signature
            filler.connect_ex(full.getsockname())
        settings = replace(TEST_SETTINGS, timeout_connect_s=0.1)
        hole = ModelServer(address=full.getsockname())
        async with (
            run_model_server() as model,
            conversation(hole, settings=settings) as (p, client),
        ):
            answer = await client.ask(post(BODY))
            assert answer.status == 503
            p.set_endpoints(Served(MODEL).name, [full.getsockname(), model.address])
            assert (await client.ask(post(BODY))).status == 200
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_post_without_an_answer_runs_once_and_is_502(then: str) -> None:
    async with (
        run_model_server(sends(b"", then=then)) as one,
        run_model_server(sends(b"", then=then)) as two,
        conversation(one, two) as (_, client),
    ):
        answer = await client.ask(post(BODY))
        assert (answer.status, error_of(answer)["code"]) == (502, "upstream_failed")
        assert answer.field(b"x-should-retry") == b"false"
        assert len(one.calls) + len(two.calls) == 1


@pytest.mark.parametrize("name", REJECTED_HEADS)
async def test_a_malformed_answer_is_502_and_its_connection_is_not_used_again(name: str) -> None:
    async with (
        run_model_server(sends(REJECTED_HEADS[name], then="stay")) as model,
        conversation(model) as (_, client),
    ):
        answer = await client.ask(post(BODY))
        assert (answer.status, error_of(answer)["code"]) == (502, "upstream_malformed")
        assert answer.field(b"x-should-retry") == b"false"
        model.script = sends(OK, then="stay")
        assert (await client.ask(post(BODY))).body == OK_BODY
        assert model.connections == 2


@pytest.mark.parametrize("name", REJECTED_CHUNKS)
async def test_a_malformed_chunk_never_looks_complete(name: str) -> None:
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    async with (
        run_model_server(sends(head + b"1\r\n{\r\n")) as model,
        conversation(model) as (_, client),
    ):

        async def script(call: Call) -> None:
            await call.send(head + b"1\r\n{\r\n")
            await call.send(REJECTED_CHUNKS[name])
            call.writer.close()

        model.script = script
        answer = await client.ask(post(BODY))
        assert not answer.clean or answer.status == 502


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_stream_that_breaks_off_ends_with_an_error_event_and_no_last_chunk(
    then: str,
) -> None:
    part = SSE_HEAD + chunk(b"data: 1\n\n") + b"20\r\nhalf a ch"
    async with (
        run_model_server(sends(part, then="stay")) as model,
        conversation(model) as (_, client),
    ):
        gate = asyncio.Event()

        async def script(call: Call) -> None:
            await call.send(part)
            await gate.wait()
            await sends(b"", then=then)(call)

        model.script = script
        await client.send(post(BODY))
        seen = await client.reader.readuntil(b"half a ch\r\n")
        gate.set()
        seen += await client.reader.read(-1)
        assert not seen.endswith(b"0\r\n\r\n")
        frame = seen.partition(b"event: error\ndata: ")[2].partition(b"\n\n")[0]
        error = json.loads(frame)["error"]
        assert (error["type"], error["code"]) == ("server_error", "upstream_failed")
        assert b"[DONE]" not in seen


@pytest.mark.parametrize(
    "part",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        SSE_HEAD[:-2] + b"Content-Encoding: gzip\r\n\r\n1\r\n\x1f\r\n",
    ],
    ids=["length", "chunked", "coded events"],
)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_short_answer_without_room_for_an_event_never_looks_complete(
    part: bytes, version: bytes
) -> None:
    async def script(call: Call) -> None:
        await call.send(part)
        await gate.wait()
        call.writer.close()

    gate = asyncio.Event()
    async with run_model_server(script) as model, conversation(model) as (_, client):
        await client.send(post(BODY).replace(b"HTTP/1.1", b"HTTP/" + version))
        await client.reader.readuntil(b"\r\n\r\n")
        gate.set()
        with pytest.raises(ConnectionResetError):
            await client.reader.read(-1)


async def test_bytes_behind_an_answer_reach_nobody() -> None:
    async with (
        run_model_server(sends(OK + OK.replace(b"text_completion", b"text_smuggled_!"))) as model,
        conversation(model) as (_, client),
    ):
        for _ in range(3):
            assert (await client.ask(post(BODY))).body == OK_BODY
        assert model.connections == 3


async def test_bytes_that_nobody_asked_for_close_an_idle_connection() -> None:
    async with run_model_server() as model, conversation(model) as (proxy, client):
        await client.ask(post(BODY))
        await model.calls[0].send(OK)
        await until(lambda: not proxy.server.upstreams)
        assert (await client.ask(post(BODY))).body == OK_BODY
        assert model.connections == 2


async def test_interim_answers_are_left_out_and_bounded() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    async with (
        run_model_server(sends(b"HTTP/1.1 100 Continue\r\n\r\n" + interim * 3 + OK)) as model,
        conversation(model) as (_, client),
    ):
        assert (await client.ask(post(BODY))).body == OK_BODY
        model.script = sends(interim * 20 + OK)
        assert (await client.ask(post(BODY))).status == 502
        model.script = sends(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
        assert (await client.ask(post(BODY))).status == 502


async def test_an_endless_head_is_502() -> None:
    async with (
        run_model_server(
            sends(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 12_000, then="stay")
        ) as model,
        conversation(model) as (_, client),
    ):
        assert (await client.ask(post(BODY))).status == 502


async def test_an_early_answer_to_a_large_body_passes_and_closes() -> None:
    answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig"
    body = json.dumps({"model": MODEL, "prompt": "x" * 20_000_000}).encode()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        await gone.wait()
        writer.close()

    gone = asyncio.Event()
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    model = ModelServer(address=server.sockets[0].getsockname())
    async with conversation(model) as (proxy, client):
        got = await client.ask(post(body))
        assert (got.status, got.body) == (413, b"big")
        assert not proxy.server.catalog.endpoints()[0].idle
        gone.set()
    server.close()


async def test_no_first_byte_in_time_is_504() -> None:
    settings = replace(TEST_SETTINGS, timeout_first_byte_s=20)
    async with (
        run_model_server(sends(b"", then="stay")) as model,
        conversation(model, settings=settings) as (proxy, client),
    ):
        await client.send(post(BODY))
        await model.called.wait()
        proxy.advance(19)
        assert proxy.live_objects()["exchanges"] == 1
        proxy.advance(2)
        answer = await client.read()
        assert (answer.status, error_of(answer)["code"]) == (504, "upstream_timeout")
        assert answer.field(b"x-should-retry") == b"false"
        await until(lambda: not proxy.server.upstreams)


async def test_a_stream_that_falls_silent_is_ended_with_an_error_event() -> None:
    async with (
        run_model_server(sends(SSE_HEAD + chunk(b"data: 1\n\n"), then="stay")) as model,
        conversation(model) as (proxy, client),
    ):
        await client.send(post(BODY))
        await client.reader.readuntil(b"data: 1\n\n\r\n")
        proxy.advance(1)
        proxy.advance(299)
        assert proxy.live_objects()["exchanges"] == 1
        proxy.advance(2)
        rest = await client.reader.read(-1)
        assert b"event: error\ndata: " in rest
        assert b"upstream_timeout" in rest
        assert not rest.endswith(b"0\r\n\r\n")


async def test_a_server_that_closes_idle_connections_costs_no_request() -> None:
    """PX-7: it closes after every answer, without saying so."""

    async def answer_and_close(call: Call) -> None:
        await call.send(OK)
        call.writer.close()

    async with run_model_server(answer_and_close) as model, conversation(model) as (_, client):
        for number in range(300):
            assert (await client.ask(post(BODY))).status == 200
            assert len(model.calls) == number + 1
            await asyncio.sleep(0)


@pytest.mark.parametrize("moment", ["before the first byte", "mid-stream"])
async def test_a_client_that_leaves_takes_its_request_along(moment: str) -> None:
    """PX-8."""
    streamed = SSE_HEAD + chunk(b"data: 1\n\n")
    closed = asyncio.Event()

    async def script(call: Call) -> None:
        if moment == "mid-stream":
            await call.send(streamed)
        await call.wait_closed()
        closed.set()

    async with run_model_server(script) as model, conversation(model) as (proxy, _):
        for way in ("close", "reset"):
            closed.clear()
            model.called.clear()
            async with connect(proxy.port) as client:
                await client.send(post(BODY))
                await model.called.wait()
                if moment == "mid-stream":
                    await client.reader.readuntil(b"data: 1")
                if way == "reset":
                    client.reset()
                else:
                    client.writer.close()
                async with asyncio.timeout(1):
                    await closed.wait()
            await until(lambda: not any(proxy.live_objects().values()))
        assert proxy.server.meters.cancels == 2
        assert not proxy.server.catalog.endpoints()[0].health.failures


async def test_a_client_that_leaves_while_connecting_leaves_nothing() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)  # the standard library's signature
            filler.connect_ex(full.getsockname())
        settings = replace(TEST_SETTINGS, timeout_connect_s=0.3)
        hole = ModelServer(address=full.getsockname())
        async with conversation(hole, settings=settings) as (proxy, client):
            await client.send(post(BODY))
            await until(lambda: proxy.live_objects()["outstanding"] == 1)
            client.writer.close()
            await until(lambda: not any(proxy.live_objects().values()))
        for filler in fillers:
            filler.close()


async def test_three_failures_eject_a_pod_and_the_others_serve() -> None:
    """PX-11, short."""

    async def fail(call: Call) -> None:
        await call.send(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")

    async with (
        run_model_server(fail) as bad,
        run_model_server() as good,
        conversation(bad, good) as (proxy, client),
    ):
        statuses = [(await client.ask(post(BODY))).status for _ in range(60)]
        assert statuses.count(500) == 3
        assert proxy.server.meters.ejections == 1
        bad.script = good.script
        proxy.advance(7)
        for _ in range(20):
            await client.ask(post(BODY))
        assert len(bad.calls) > 3


async def test_the_last_pod_is_never_ejected_from_service() -> None:
    async def fail(call: Call) -> None:
        await call.send(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")

    async with run_model_server(fail) as bad, conversation(bad) as (_, client):
        assert {(await client.ask(post(BODY))).status for _ in range(10)} == {500}
        assert len(bad.calls) == 10


async def test_a_pod_that_leaves_finishes_its_stream() -> None:
    gate = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(b"data: 1\n\n"))
        await gate.wait()
        await call.send(b"0\r\n\r\n")

    async with run_model_server(script) as model, conversation(model) as (proxy, client):
        await client.send(post(BODY))
        await model.called.wait()
        proxy.set_endpoints(Served(MODEL).name, [])
        gate.set()
        assert (await client.read()).clean
        await until(lambda: not proxy.server.upstreams)
