"""Model servers that come, go, slow down, fail or hang up: no request is lost or runs twice."""

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from nimway.proxy.settings import Settings
from tests.proxy.test_conversations import conversation, error_of
from tests.proxy.test_faults_clients import best_p99, many
from tests.proxy.vectors import BODY, MODEL
from tests.support.faults import FULL
from tests.support.proxy import TEST_SETTINGS, Served, listen, run_proxy
from tests.support.proxy_wire import (
    OK,
    SSE_HEAD,
    Call,
    Client,
    chunk,
    connect,
    post,
    run_model_server,
)


async def test_a_post_that_is_reset_without_an_answer_runs_exactly_once() -> None:
    """PX-6: 100 requests, three pods that reset every second one."""
    chance = random.Random(6)

    async def script(call: Call) -> None:
        if chance.random() < 0.5:
            call.reset()
        else:
            await call.send(OK)

    async with (
        run_model_server(script) as one,
        run_model_server(script) as two,
        run_model_server(script) as three,
        conversation(one, two, three) as (proxy, client),
    ):
        bodies = [BODY.replace(b"Once", b"%d" % number) for number in range(100)]
        statuses = []
        for body in bodies:
            answer = await client.ask(post(body))
            statuses.append(answer.status)
            if answer.status == 502:
                assert answer.field(b"x-should-retry") == b"false"
        calls = sorted(call.body for server in (one, two, three) for call in server.calls)
        assert calls == sorted(bodies)
        assert {200, 502} == set(statuses)
        assert proxy.server.meters.retries == 0


async def test_a_server_s_idle_limit_costs_no_request() -> None:
    """PX-7: uvicorn's 5 s against our 3 s, twenty times as fast; 10,000 requests in full."""
    idle_s, turns = 0.25, 100 if FULL else 10
    settings = replace(TEST_SETTINGS, timeout_upstream_idle_s=0.15, sweep_period_s=0.0125)
    chance = random.Random(7)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                async with asyncio.timeout(idle_s):
                    await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(len(BODY))
                writer.write(OK)
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def use(client: Client) -> None:
        for _ in range(turns):
            assert (await client.ask(post(BODY))).status == 200
            await asyncio.sleep(chance.uniform(0.05, 0.35))  # the idle time is the fault

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    async with (
        run_proxy(Served(MODEL, [address]), settings=settings) as proxy,
        many(proxy, 100) as clients,
    ):
        await asyncio.gather(*map(use, clients))
    server.close()


async def test_pods_that_come_and_go_cost_no_request_and_cut_no_stream() -> None:
    """PX-10: other pods after every tenth request, twenty clients, half of them streams."""
    answered = 0

    async def script(call: Call) -> None:
        if b"stream" not in call.body:
            await call.send(OK)
            return
        await call.send(SSE_HEAD)
        for number in range(5):
            await call.send(chunk(b"data: %d\n\n" % number))
            await asyncio.sleep(0)
        await call.send(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    async with (
        run_model_server(script) as one,
        run_model_server(script) as two,
        run_model_server(script) as three,
        conversation(one, two, three) as (proxy, _),
        many(proxy, 20) as clients,
    ):
        pods = [one.address, two.address, three.address]
        chance = random.Random(10)

        async def use(client: Client, body: bytes) -> None:
            nonlocal answered
            for _ in range(25):
                answer = await client.ask(post(body))
                assert (answer.status, answer.clean) == (200, True)
                if b"stream" in body:
                    assert answer.body.endswith(b"data: [DONE]\n\n")
                answered += 1
                if answered % 10 == 0:
                    some = chance.sample(pods, chance.randint(1, 3))
                    proxy.set_endpoints(Served(MODEL).name, some)

        streamed = BODY.replace(b"Once", b"stream")
        bodies = [streamed if number % 2 else BODY for number in range(20)]
        await asyncio.gather(*map(use, clients, bodies))
        assert answered == 500
        assert all(len(server.calls) > 50 for server in (one, two, three))


async def test_a_drain_cuts_no_stream_and_takes_no_new_connection() -> None:
    """PX-10: SIGTERM's work in a worker, under 50 streams, 500 in full."""
    count = 500 if FULL else 50
    gate = asyncio.Event()
    started = 0

    async def script(call: Call) -> None:
        nonlocal started
        await call.send(SSE_HEAD + chunk(b"data: 1\n\n"))
        started += 1
        await gate.wait()
        await call.send(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    async with (
        run_model_server(script) as model,
        conversation(model) as (proxy, idle),
        many(proxy, count) as clients,
    ):
        for client in clients:
            await client.send(post(BODY))
            await client.reader.readuntil(b"data: 1\n\n\r\n")
        draining = asyncio.gather(proxy.server.drain(60))
        assert await idle.is_closed()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        gate.set()
        for client in clients:
            rest = await client.reader.read(-1)
            assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        await draining
        assert started == count


async def _fail(call: Call) -> None:
    await call.send(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")


async def test_half_of_the_pods_failing_fail_few_requests_and_multiply_none() -> None:
    """PX-11."""
    async with (
        run_model_server(_fail) as bad,
        run_model_server(_fail) as worse,
        run_model_server() as good,
        run_model_server() as better,
        conversation(bad, worse, good, better) as (proxy, client),
    ):
        statuses = [(await client.ask(post(BODY))).status for _ in range(200)]
        assert statuses.count(500) == 6
        calls = sum(len(server.calls) for server in (bad, worse, good, better))
        assert calls == 200
        assert proxy.server.meters.ejections == 2


async def test_a_slow_pod_gets_few_requests() -> None:
    """PX-11: one that does not answer holds at most as many requests as another has under way."""
    gate = asyncio.Event()

    async def slow(call: Call) -> None:
        await gate.wait()
        await call.send(OK)

    async with (
        run_model_server() as quick,
        run_model_server(slow) as lazy,
        conversation(quick, lazy) as (proxy, _),
        many(proxy, 4) as clients,
    ):

        async def use(client: Client) -> None:
            while len(quick.calls) < 300:
                assert (await client.ask(post(BODY))).status == 200
            gate.set()

        await asyncio.gather(*map(use, clients))
        assert 0 < len(lazy.calls) <= 3


async def test_a_pod_ten_times_as_slow_gets_a_small_share() -> None:
    """PX-11: two pods at 2 ms, one at 20 ms, twelve clients without a pause."""

    def taking(seconds: float) -> Callable[[Call], Awaitable[None]]:
        async def script(call: Call) -> None:
            await asyncio.sleep(seconds)  # the pod's pace is the fault
            await call.send(OK)

        return script

    async with (
        run_model_server(taking(0.002)) as one,
        run_model_server(taking(0.002)) as two,
        run_model_server(taking(0.02)) as lazy,
        conversation(one, two, lazy) as (proxy, _),
        many(proxy, 12) as clients,
    ):

        async def use(client: Client) -> None:
            for _ in range(50):
                assert (await client.ask(post(BODY))).status == 200

        await asyncio.gather(*map(use, clients))
        share = len(lazy.calls) / 600
        sys.stdout.write(f"share of the slow pod: {share:.1%}\n")
        assert share < 0.25
        assert proxy.server.meters.ejections == 0


async def test_all_pods_down_is_503_at_once_with_a_time_to_come_back() -> None:
    """PX-11: p99 below 50 ms, and connections in all at most 1.2 times the requests, and ten."""
    with listen() as one, listen() as two, listen() as three:
        addresses = [sock.getsockname() for sock in (one, two, three)]
        async with run_proxy(Served(MODEL, addresses)) as proxy, connect(proxy.port) as client:

            async def measure(_: int) -> float:
                start = time.perf_counter()
                answer = await client.ask(post(BODY))
                taken = time.perf_counter() - start
                assert (answer.status, error_of(answer)["code"]) == (503, "upstream_unreachable")
                assert 0 < int(answer.field(b"retry-after") or 0) <= 60
                assert answer.field(b"x-should-retry") == b"true"
                return taken

            assert await best_p99(measure, 1000, "all pods down") < 0.05
            requests = proxy.server.catalog.names[MODEL].demand_total
            attempts = sum(each.picks for each in proxy.server.catalog.endpoints())
            sys.stdout.write(f"{attempts} connections for {requests} requests\n")
            assert attempts <= 1.2 * requests + 10
            assert not any(proxy.live_objects().values())


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "127.0.0.1", "::1", "::ffff:127.0.0.1", "fd00:ec2::254", "0.0.0.0", "a.b"],
)
async def test_an_endpoint_outside_the_pods_networks_is_never_connected(address: str) -> None:
    """SEC-3."""
    async with (
        run_proxy(Served(MODEL, [(address, 1)]), settings=Settings(queue_wait_max_s=0)) as proxy,
        connect(proxy.port) as client,
    ):
        answer = await client.ask(post(BODY))
        assert (answer.status, error_of(answer)["code"]) == (503, "model_not_ready")
        assert not proxy.server.upstreams
        assert not proxy.server.catalog.endpoints()
