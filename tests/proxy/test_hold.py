"""Requests for a model without a ready pod: held, let go in order, bounded, never left hanging."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from nimway.proxy import hold
from nimway.proxy.catalog import Endpoint, Model
from nimway.proxy.exchange import Exchange
from nimway.proxy.policy import resolve
from nimway.proxy.scrape import collect
from nimway.proxy.settings import Settings
from nimway.routes import DEFAULT_POLICY, Policy
from nimway.tasks import spawn
from tests.proxy.test_conversations import error_of
from tests.proxy.test_policy import MODEL, asking, body, gated, load
from tests.support.proxy import TEST_SETTINGS, ProxyHarness, Served, listen, run_proxy
from tests.support.proxy_wire import (
    Answer,
    ModelServer,
    connect,
    post,
    run_model_server,
    until,
)

NAME = Served(MODEL).name


@asynccontextmanager
async def sleeping(
    policy: Policy = DEFAULT_POLICY, *, cold_start_s: int = 0, settings: Settings = TEST_SETTINGS
) -> AsyncIterator[ProxyHarness]:
    """A proxy whose one model has no pod."""
    served = Served(MODEL, policy=policy, cold_start_s=cold_start_s)
    async with run_proxy(served, settings=settings) as proxy:
        yield proxy


def wake(proxy: ProxyHarness, *servers: ModelServer) -> None:
    proxy.set_endpoints(NAME, [server.address for server in servers])


def record_order(proxy: ProxyHarness) -> list[str]:
    """Return a list of the prompts, growing as connections to a pod are opened for them."""
    order: list[str] = []
    connect_to = proxy.server.connect

    def note(endpoint: Endpoint, exchange: Exchange) -> None:
        order.append(exchange._body.decode().partition('"prompt": "')[2].rstrip('"}'))
        connect_to(endpoint, exchange)

    proxy.server.connect = note
    return order


def keep_connecting(proxy: ProxyHarness) -> list[Exchange]:
    """Return those that want a connection: the test says what becomes of it."""
    wanting: list[Exchange] = []

    def note(endpoint: Endpoint, exchange: Exchange) -> None:
        del endpoint
        wanting.append(exchange)

    proxy.server.connect = note
    return wanting


def assert_told(answer: Answer, code: str, retry_after_s: int) -> None:
    assert (answer.status, error_of(answer)["code"]) == (503, code)
    assert answer.field(b"retry-after") == b"%d" % retry_after_s
    assert answer.field(b"x-should-retry") == b"true"


def outcomes(proxy: ProxyHarness) -> dict[tuple[str, ...], float]:
    """Return the waits that ended: (cause, outcome) and how many."""
    holds = next(collect(proxy.server, 0)).values["holds"]
    return {labels[1:]: numbers[0] for labels, numbers in holds}


# Held, and let go.


async def test_a_held_request_is_answered_by_the_first_pod_that_gets_ready() -> None:
    async with (
        run_model_server() as model,
        sleeping() as proxy,
        asking(proxy, "a") as [client],
    ):
        assert load(proxy) == (0, 1)
        values = next(collect(proxy.server, 0)).values
        assert values["held"] == values["queued"] == [((MODEL,), [1])]
        wake(proxy, model)
        assert (await client.read()).status == 200
        assert [call.body for call in model.calls] == [body("a")]
        assert outcomes(proxy) == {("not_ready", "released"): 1}


async def test_a_model_whose_pods_are_briefly_gone_holds_too() -> None:
    async with (
        run_model_server() as model,
        sleeping() as proxy,
        connect(proxy.port) as client,
    ):
        wake(proxy, model)
        for _ in range(3):
            assert (await client.ask(post(body()))).status == 200
            wake(proxy)
            async with asking(proxy, "gone") as [other]:
                wake(proxy, model)
                assert (await other.read()).status == 200


async def test_no_waiter_is_overtaken_neither_by_another_nor_by_a_newcomer() -> None:
    prompts = [f"{number:03}" for number in range(150)]
    async with gated() as (model, gate), sleeping() as proxy:
        order = record_order(proxy)
        async with asking(proxy, *prompts), connect(proxy.port) as late:
            wake(proxy, model)
            assert load(proxy) == (32, 118)
            await late.send(post(body("newcomer")))
            await until(lambda: len(gate.waiting) == 151)
            assert order == [*prompts, "newcomer"]
            gate.open_all()
            await until(lambda: load(proxy) == (0, 0))


async def test_a_second_pod_that_comes_right_after_the_first_gets_its_part() -> None:
    async with (
        gated() as (one, gate),
        gated() as (two, other),
        sleeping(Policy(queue_requests_max=2000)) as proxy,
        asking(proxy, *map(str, range(400))),
    ):
        wake(proxy, one)
        assert load(proxy) == (32, 368)
        wake(proxy, one, two)
        await until(lambda: len(gate.waiting) + len(other.waiting) == 400)
        assert 190 <= len(other.waiting) <= 210
        gate.ended = other.ended = True
        gate.open_all()
        other.open_all()
        await until(lambda: load(proxy) == (0, 0))


async def test_as_many_go_to_a_pod_as_it_has_places() -> None:
    async with (
        gated() as (model, gate),
        sleeping(Policy(max_concurrency=3)) as proxy,
        asking(proxy, *"abcdefgh"),
    ):
        assert load(proxy) == (0, 8)
        wake(proxy, model)
        await until(lambda: len(gate.waiting) == 3)
        assert load(proxy) == (3, 5)
        assert next(collect(proxy.server, 0)).values["held"] == [((MODEL,), [0])]
        gate.open()
        await until(lambda: len(model.calls) == 4)
        gate.ended = True
        gate.open_all()
        await until(lambda: load(proxy) == (0, 0))
        assert sorted(call.body for call in model.calls) == [body(name) for name in "abcdefgh"]


async def test_a_retry_waits_before_all_others_for_the_next_pod() -> None:
    """Their pod is gone before it took them: all three were let go, and keep their order."""
    async with run_model_server() as model, sleeping() as proxy:
        connect_to = proxy.server.connect
        connects = keep_connecting(proxy)
        async with asking(proxy, *"abc") as clients:
            with listen() as refusing:
                proxy.set_endpoints(NAME, [refusing.getsockname()])
            assert load(proxy) == (3, 0)
            wake(proxy)
            async with asking(proxy, *"de") as others:
                for exchange in connects:
                    exchange.on_connect_failed()
                assert load(proxy) == (0, 5)
                proxy.server.connect = connect_to
                order = record_order(proxy)
                wake(proxy, model)
                for client in (*clients, *others):
                    assert (await client.read()).status == 200
                assert order == list("abcde")


async def test_who_tried_all_pods_that_are_left_does_not_block_the_others() -> None:
    async with gated() as (model, gate), sleeping(Policy(max_concurrency=1)) as proxy:
        with listen() as closed:
            refusing = closed.getsockname()
            async with asking(proxy, "a") as [first]:
                wake(proxy, model)
                await until(lambda: len(gate.waiting) == 1)
                async with asking(proxy, *"bc") as clients:
                    proxy.set_endpoints(NAME, [model.address, refusing])
                    await until(lambda: load(proxy) == (1, 2) and bool(proxy.server.meters.retries))
                    proxy.set_endpoints(NAME, [refusing])
                    for client in clients:
                        assert_told(await client.read(), "upstream_unreachable", 5)
                gate.open()
                assert (await first.read()).status == 200


async def test_two_thousand_waiters_are_answered_each_once_and_in_order() -> None:
    policy = Policy(max_concurrency=8, queue_requests_max=2000)
    async with run_model_server() as model, sleeping(policy) as proxy, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(proxy.port)) for _ in range(2000)]
        await until(lambda: len(proxy.server.connections) == 2000)
        for number, client in enumerate(clients):
            request_id = f"x-request-id: r{number}\r\n"
            await client.send(post(body("x" * 100), fields=request_id))
            await until(lambda number=number: load(proxy)[1] == number + 1)  # type: ignore[misc] # a default binds it
        wake(proxy, model)
        for client in clients:
            assert (await client.read()).status == 200
        ids = [call.field(b"x-request-id")[0].decode() for call in model.calls]
        assert len(ids) == len(set(ids)) == 2000
        overtaken = max(abs(at - int(name[1:])) for at, name in enumerate(ids))
        assert overtaken <= 8  # the eight under way end in any order
        assert model.connections <= 8


# Bounds.


async def test_who_waits_too_long_is_told_when_to_come_back() -> None:
    async with (
        sleeping(cold_start_s=90) as proxy,
        asking(proxy, "a") as [client],
    ):
        proxy.advance(49.5)
        assert load(proxy) == (0, 1)
        proxy.advance(0.6)
        assert_told(await client.read(), "model_not_ready", 40)
        assert outcomes(proxy) == {("not_ready", "expired"): 1}


async def test_who_was_let_go_and_came_back_waits_no_longer_in_all() -> None:
    async with sleeping() as proxy, asking(proxy, "a") as [client]:
        connects = keep_connecting(proxy)
        proxy.advance(40)
        proxy.set_endpoints(NAME, [("127.0.0.1", 1)])
        wake(proxy)
        connects[0].on_connect_failed()
        assert load(proxy) == (0, 1)
        proxy.advance(11)
        assert_told(await client.read(), "model_not_ready", 5)


async def test_a_client_s_own_time_ends_its_wait() -> None:
    async with sleeping() as proxy, connect(proxy.port) as client:
        await client.send(post(body(), fields="x-nimway-timeout: 3\r\n"))
        await until(lambda: load(proxy) == (0, 1))
        proxy.advance(3.1)
        assert_told(await client.read(), "model_not_ready", 5)


@pytest.mark.parametrize("policy", [Policy(queue_wait_max_s=0), Policy(queue_requests_max=0)])
async def test_a_model_that_nobody_may_wait_for_refuses_at_once_and_counts_the_demand(
    policy: Policy,
) -> None:
    async with sleeping(policy, cold_start_s=30) as proxy, connect(proxy.port) as client:
        assert_told(await client.ask(post(body())), "model_not_ready", 30)
        proxy.advance(12)
        assert_told(await client.ask(post(body())), "model_not_ready", 18)
        assert proxy.server.catalog.names[MODEL].demand_total == 2
        assert outcomes(proxy) == {("not_ready", "refused"): 2}


async def test_the_queue_is_bounded_by_count_and_by_bytes() -> None:
    settings = replace(TEST_SETTINGS, queue_bytes_max=300)
    async with (
        sleeping(Policy(queue_requests_max=2), cold_start_s=7, settings=settings) as proxy,
        asking(proxy, "a", "b" * 300, "c", "d") as clients,
    ):
        assert_told(await clients[1].read(), "queue_full", 7)  # bytes
        assert_told(await clients[3].read(), "queue_full", 7)  # count
        assert load(proxy) == (0, 2)


async def test_sleeping_models_together_leave_room_for_the_bodies_of_others() -> None:
    settings = replace(TEST_SETTINGS, held_bytes_max=300, bodies_bytes_max=1000)
    asleep, other = Served("org/asleep"), Served("org/other")
    async with (
        run_model_server() as model,
        run_proxy(asleep, other, Served(MODEL, [model.address]), settings=settings) as proxy,
        connect(proxy.port) as first,
        connect(proxy.port) as second,
        connect(proxy.port) as third,
    ):
        await first.send(post(body("a" * 200, asleep.model)))
        await until(lambda: proxy.server.held_bytes > 200)
        assert_told(await second.ask(post(body("b" * 200, other.model))), "queue_full", 5)
        assert (await third.ask(post(body("c" * 400)))).status == 200


async def test_a_client_that_leaves_frees_its_place_for_another_one() -> None:
    async with (
        run_model_server() as model,
        sleeping(Policy(queue_requests_max=2)) as proxy,
        asking(proxy, *"ab") as clients,
    ):
        clients[0].reset()
        await until(lambda: load(proxy) == (0, 1))
        clients[1].writer.write_eof()  # a FIN is leaving, too
        await until(lambda: load(proxy) == (0, 0))
        assert proxy.live_objects()["bodies_bytes"] == 0
        async with asking(proxy, *"cd") as others:
            wake(proxy, model)
            for client in others:
                assert (await client.read()).status == 200
        assert len(model.calls) == 2
        assert outcomes(proxy)["not_ready", "left"] == 2


async def test_who_waits_for_a_model_that_leaves_the_table_gets_404() -> None:
    async with sleeping() as proxy, asking(proxy, *"ab") as clients:
        proxy.serve(revision="2")
        for client in clients:
            answer = await client.read()
            assert (answer.status, error_of(answer)["code"]) == (404, "model_not_found")


async def test_a_policy_that_ends_waiting_ends_it_for_those_who_wait() -> None:
    async with sleeping() as proxy, asking(proxy, "a") as [client]:
        proxy.serve(Served(MODEL, policy=Policy(queue_wait_max_s=0)), revision="2")
        assert_told(await client.read(), "model_not_ready", 5)


# Retry-After.


@pytest.mark.parametrize(
    ("cold_start_s", "waited_s", "expected"),
    [
        (0, 0, 5),  # nobody knows
        (30, 0, 30),
        (30, 10.2, 20),
        (30, 29.9, 1),
        (30, 31, 5),  # it should be here
        (900, 1, 60),
        (900, 899, 1),
    ],
)
def test_retry_after_is_what_is_left_of_the_usual_cold_start(
    cold_start_s: int, waited_s: float, expected: int
) -> None:
    settings = Settings()
    route = Served(MODEL, cold_start_s=cold_start_s).to_route()
    model = Model(route, resolve(DEFAULT_POLICY, settings, pods=1, workers=1), [])
    model.wake(1000.0)
    assert hold.find_retry_after(model, settings, 1000.0 + waited_s) == expected
    model.set_endpoints([Endpoint("192.0.2.1", 8000)])
    assert hold.find_retry_after(model, settings, 1000.0 + waited_s) == 5


async def test_a_model_that_was_awake_meanwhile_begins_a_new_cold_start() -> None:
    async with run_model_server() as model, sleeping(cold_start_s=40) as proxy:
        async with asking(proxy, "a") as [client]:
            proxy.advance(30)
            wake(proxy, model)
            assert (await client.read()).status == 200
        proxy.serve(Served(MODEL, policy=Policy(queue_wait_max_s=0), cold_start_s=40), revision="2")
        async with connect(proxy.port) as client:
            assert_told(await client.ask(post(body())), "model_not_ready", 40)


# Demand.


async def test_the_first_who_asks_is_reported_at_once_and_the_others_soon() -> None:
    async with sleeping() as proxy:
        reports: list[dict[str, tuple[int, int, int]]] = []
        proxy.server.on_urgent = lambda: reports.append(proxy.server.take_load())
        async with asking(proxy, *"abc"):
            assert reports == [{f"models/{NAME}": (0, 1, 1)}]
            assert proxy.server.take_load() == {f"models/{NAME}": (0, 3, 3)}
        await until(lambda: load(proxy) == (0, 0))
        async with asking(proxy, "d"):
            assert len(reports) == 1  # within a second of the last
        await until(lambda: load(proxy) == (0, 0))
        proxy.advance(1.1)
        async with asking(proxy, "e"):
            assert reports[1:] == [{f"models/{NAME}": (0, 1, 5)}]


async def test_a_refused_request_is_reported_at_once_too() -> None:
    async with sleeping(Policy(queue_wait_max_s=0)) as proxy, connect(proxy.port) as client:
        reports: list[dict[str, tuple[int, int, int]]] = []
        proxy.server.on_urgent = lambda: reports.append(proxy.server.take_load())
        for _ in range(3):
            await client.ask(post(body()))
        assert reports == [{f"models/{NAME}": (0, 0, 1)}]
        assert proxy.server.take_load() == {f"models/{NAME}": (0, 0, 3)}


async def test_a_model_with_pods_is_never_urgent() -> None:
    async with (
        gated() as (model, gate),
        sleeping(Policy(max_concurrency=1)) as proxy,
    ):
        wake(proxy, model)
        reports: list[None] = []
        proxy.server.on_urgent = lambda: reports.append(None)
        async with asking(proxy, *"ab") as clients:
            gate.ended = True
            await until(lambda: len(gate.waiting) == 1)
            gate.open_all()
            for client in clients:
                assert (await client.read()).status == 200
        assert not reports


# The proxy's end.


async def test_a_proxy_that_ends_sends_its_waiters_elsewhere_at_once() -> None:
    async with sleeping() as proxy, asking(proxy, *"ab") as clients:
        proxy.server.announce_drain()
        proxy.server.sweep()
        assert load(proxy) == (0, 2)  # Kubernetes still sends requests here: no use to ask again
        start = time.monotonic()
        await proxy.server.drain(30)
        assert time.monotonic() - start < 5
        for client in clients:
            answer = await client.read()
            assert_told(answer, "draining", 1)
            assert answer.field(b"connection") == b"close"
        assert outcomes(proxy) == {("not_ready", "drained"): 2}


async def test_who_waits_for_a_place_is_served_while_the_proxy_ends_but_never_cut() -> None:
    async with (
        gated() as (model, gate),
        sleeping(Policy(max_concurrency=1)) as proxy,
        asking(proxy, *"abc") as clients,
    ):
        wake(proxy, model)
        await until(lambda: len(gate.waiting) == 1)
        draining = spawn(proxy.server.drain(20), name="drain")
        await until(lambda: proxy.server.stopping)
        gate.open()
        assert (await clients[0].read()).status == 200
        await until(lambda: len(gate.waiting) == 1)
        proxy.advance(19.1)  # the last second: b runs, c cannot any more
        assert_told(await clients[2].read(), "draining", 1)
        gate.open()
        assert (await clients[1].read()).status == 200
        await asyncio.wait_for(draining, 5)
