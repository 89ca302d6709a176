"""What a model's policy does to its requests: waits, tries, APIs, adapters, strategies, places."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimway.proxy.policy import resolve, share
from nimway.proxy.settings import Settings
from nimway.routes import Policy
from tests.proxy.test_conversations import error_of
from tests.support.proxy import ProxyHarness, Served, listen, run_proxy
from tests.support.proxy_wire import (
    OK,
    Answer,
    Call,
    Client,
    ModelServer,
    connect,
    post,
    run_model_server,
    until,
)

MODEL = "meta/llama"
SETTINGS = Settings()


def body(prompt: str = "x", model: str = MODEL) -> bytes:
    return json.dumps({"model": model, "prompt": prompt}).encode()


@dataclass
class Gate:
    """A model server's script: each request waits until it is let go."""

    waiting: list[tuple[Call, asyncio.Event]] = field(default_factory=list)
    ended: bool = False

    async def script(self, call: Call) -> None:
        event = asyncio.Event()
        if not self.ended:
            self.waiting.append((call, event))
            await event.wait()
        await call.send(OK)

    def open(self, at: int = 0) -> None:
        self.waiting.pop(at)[1].set()

    def open_all(self) -> None:
        while self.waiting:
            self.open()

    @property
    def prompts(self) -> list[str]:
        return [json.loads(call.body)["prompt"] for call, _ in self.waiting]


@asynccontextmanager
async def gated() -> AsyncIterator[tuple[ModelServer, Gate]]:
    gate = Gate()
    async with run_model_server(gate.script) as server:
        try:
            yield server, gate
        finally:
            gate.ended = True
            gate.open_all()


@asynccontextmanager
async def serving(
    *servers: ModelServer, policy: Policy | None = None, adapters: tuple[str, ...] = ()
) -> AsyncIterator[ProxyHarness]:
    served = Served(MODEL, [s.address for s in servers], adapters=adapters, policy=policy)
    async with run_proxy(served) as proxy:
        yield proxy


@asynccontextmanager
async def asking(proxy: ProxyHarness, *prompts: str) -> AsyncIterator[list[Client]]:
    """Clients that have sent one request each, in this order."""
    async with AsyncExitStack() as stack:
        clients = []
        for prompt in prompts:
            client = await stack.enter_async_context(connect(proxy.port))
            before = proxy.server.catalog.names[MODEL].demand_total
            await client.send(post(body(prompt)))
            await until(
                lambda before=before: proxy.server.catalog.names[MODEL].demand_total > before  # type: ignore[misc] # a default binds it
            )
            clients.append(client)
        yield clients


def load(proxy: ProxyHarness) -> tuple[int, int]:
    model = proxy.server.catalog.names[MODEL]
    return model.in_flight, model.queued


def assert_busy(answer: Answer, code: str) -> None:
    assert (answer.status, error_of(answer)["code"]) == (503, code)
    assert answer.field(b"retry-after") == b"5"
    assert answer.field(b"x-should-retry") == b"true"


# Waits and tries.


def test_a_model_s_own_waits_take_the_place_of_the_proxy_s() -> None:
    policy = Policy(timeout_connect_s=1, timeout_total_s=7, queue_wait_max_s=0)
    limits = resolve(policy, SETTINGS, pods=1, workers=1)
    assert (limits.timeout_connect_s, limits.timeout_total_s, limits.queue_wait_s) == (1, 7, 0)
    assert (limits.timeout_first_byte_s, limits.timeout_idle_s) == (600, 300)
    assert resolve(Policy(), SETTINGS, pods=1, workers=1).plain


@pytest.mark.parametrize(("pods", "workers"), [(1, 1), (1, 4), (3, 1), (3, 4)])
def test_a_model_s_limits_count_over_all_pods_and_the_proxy_s_at_each(
    pods: int, workers: int
) -> None:
    own = resolve(
        Policy(max_concurrency=24, queue_requests_max=240), SETTINGS, pods=pods, workers=workers
    )
    assert own.concurrency * pods * workers == 24
    assert own.queue_requests * pods * workers == 240
    assert resolve(Policy(), SETTINGS, pods=pods, workers=workers).queue_requests == 1000 // workers


async def test_one_model_s_limit_does_not_change_how_many_requests_of_another_may_wait() -> None:
    limited = Served("limited", policy=Policy(max_concurrency=8, queue_requests_max=90))
    other, slow = Served("other"), Served("slow", policy=Policy(timeout_total_s=9))
    async with run_proxy(limited, other, slow) as proxy:
        proxy.server.share_among(3, 2)  # its limit has the pods counted
        for revision in ("as they were", "again"):
            models = proxy.server.catalog.names
            limits = models["limited"].limits
            assert (limits.concurrency, limits.queue_requests) == (1, 15), revision
            assert [models[name].limits.queue_requests for name in ("other", "slow")] == [500] * 2
            slow = Served("slow", policy=Policy(timeout_total_s=8))
            proxy.serve(limited, other, slow, revision=revision)


@pytest.mark.parametrize(
    ("limit", "workers", "expected"), [(0, 4, 0), (1, 4, 1), (7, 2, 3), (8, 2, 4), (5, 1, 5)]
)
def test_a_share_is_rounded_down_and_at_least_one(limit: int, workers: int, expected: int) -> None:
    assert share(limit, workers) == expected


@given(st.integers(1, 1000), st.integers(1, 64))
def test_all_shares_together_exceed_a_limit_only_where_it_is_below_the_workers(
    limit: int, workers: int
) -> None:
    together = share(limit, workers) * workers
    assert together <= max(limit, workers)
    assert together > limit - workers


@pytest.mark.parametrize(
    ("policy", "fields", "seconds"),
    [
        (Policy(timeout_first_byte_s=20), "", 20),
        (Policy(timeout_total_s=20), "", 20),
        (Policy(timeout_total_s=20), "x-nimway-timeout: 5\r\n", 5),
        (Policy(timeout_total_s=20), "x-nimway-timeout: 500\r\n", 20),
        (Policy(timeout_first_byte_s=700, timeout_total_s=7200), "", 700),
    ],
)
async def test_a_silent_answer_ends_at_the_model_s_own_time(
    policy: Policy, fields: str, seconds: int
) -> None:
    async with (
        gated() as (model, gate),
        serving(model, policy=policy) as proxy,
        connect(proxy.port) as client,
    ):
        await client.send(post(body(), fields=fields))
        await until(lambda: bool(gate.waiting))
        proxy.advance(seconds - 1)
        assert load(proxy) == (1, 0)
        proxy.advance(2)
        answer = await client.read()
        assert (answer.status, error_of(answer)["code"]) == (504, "upstream_timeout")
        gate.open()


@pytest.mark.parametrize(("retries", "status"), [(0, 503), (1, 503), (2, 200)])
async def test_a_model_s_retries_bound_the_endpoints_that_are_tried(
    retries: int, status: int
) -> None:
    with listen() as one, listen() as two:
        refusing = [ModelServer(address=sock.getsockname()) for sock in (one, two)]
        async with (
            run_model_server() as model,
            serving(*refusing, model, policy=Policy(retries=retries)) as proxy,
            connect(proxy.port) as client,
        ):
            proxy.server.random = lambda: 0.0
            endpoints = proxy.server.catalog.names[MODEL].endpoints
            endpoints.sort(key=lambda endpoint: endpoint.port == model.address[1])
            assert (await client.ask(post(body()))).status == status


# APIs and adapters.


async def test_an_api_that_the_model_does_not_have_is_404_and_says_which_it_has() -> None:
    policy = Policy(apis=("embeddings", "chat"))
    async with (
        run_model_server() as model,
        serving(model, policy=policy) as proxy,
        connect(proxy.port) as client,
    ):
        answer = await client.ask(post(body()))
        assert (answer.status, error_of(answer)["code"]) == (404, "api_not_allowed")
        assert "it has: chat, embeddings." in str(error_of(answer)["message"])
        assert (await client.ask(post(body(), path="/v1/embeddings"))).status == 200
        assert (await client.ask(post(body(), path="/openai/v1/chat/completions"))).status == 200
        assert len(model.calls) == 2


async def test_an_adapter_reaches_the_base_model_s_endpoint_under_its_own_name() -> None:
    async with (
        run_model_server() as model,
        serving(model, adapters=("poet",)) as proxy,
        connect(proxy.port) as client,
    ):
        await client.ask(post(body(model="poet")))
        assert model.calls[0].body == body(model="poet")
        assert proxy.server.catalog.names[MODEL].demand_total == 1
        cards = json.loads((await client.ask(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")).body)[
            "data"
        ]
        assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
            (MODEL, MODEL, None),
            ("poet", "poet", MODEL),
        ]
        card = await client.ask(b"GET /v1/models/poet HTTP/1.1\r\nHost: a\r\n\r\n")
        assert json.loads(card.body) == cards[1]


# Strategies.


@pytest.mark.parametrize("strategy", ["PrefixHash", "SessionHash"])
async def test_every_replica_sends_a_session_to_the_same_endpoint(strategy: str) -> None:
    policy = Policy(strategy=strategy)
    async with (
        run_model_server() as one,
        run_model_server() as two,
        run_model_server() as three,
        serving(one, two, three, policy=policy) as first,
        serving(three, one, two, policy=policy) as second,
        connect(first.port) as client,
        connect(second.port) as other,
    ):
        servers = (one, two, three)
        for session in range(12):
            request = post(body(f"{session}"), fields=f"x-session-id: {session}\r\n")
            before = [len(server.calls) for server in servers]
            assert (await client.ask(request)).status == 200
            assert (await other.ask(request)).status == 200
            grown = [len(s.calls) - b for s, b in zip(servers, before, strict=True)]
            assert sorted(grown) == [0, 0, 2]
        assert sum(bool(server.calls) for server in servers) > 1


async def test_adapters_count_to_their_base_model_s_load() -> None:
    policy = Policy(strategy="PrefixHash")
    async with (
        gated() as (one, gate),
        run_model_server(gate.script) as two,
        serving(one, two, policy=policy, adapters=("poet",)) as proxy,
        AsyncExitStack() as stack,
    ):
        for number in range(6):
            client = await stack.enter_async_context(connect(proxy.port))
            name = "poet" if number % 2 else MODEL
            await client.send(post(body(model=name), fields="x-session-id: hot\r\n"))
            await until(lambda number=number: len(gate.waiting) > number)  # type: ignore[misc] # a default binds it
        endpoints = proxy.server.catalog.names[MODEL].endpoints
        assert sorted(endpoint.outstanding for endpoint in endpoints) == [2, 4]
        gate.open_all()
        await until(lambda: load(proxy) == (0, 0))


# Places, and waiting for them.


async def test_requests_wait_for_a_place_in_the_order_they_came() -> None:
    async with (
        gated() as (model, gate),
        serving(model, policy=Policy(max_concurrency=1)) as proxy,
        asking(proxy, *"abcde") as clients,
    ):
        assert load(proxy) == (1, 4)
        for prompt, client in zip("abcde", clients, strict=True):
            await until(lambda: len(gate.waiting) == 1)
            assert gate.prompts == [prompt]
            gate.open()
            assert (await client.read()).status == 200
        assert proxy.server.take_load() == {f"models/{proxy_name()}": (0, 0, 5)}


def proxy_name() -> str:
    return Served(MODEL).name


async def test_a_full_queue_refuses_at_once_by_count_and_by_bytes() -> None:
    async with (
        gated() as (model, gate),
        serving(model, policy=Policy(max_concurrency=1, queue_requests_max=1)) as proxy,
        asking(proxy, *"abc") as clients,
    ):
        assert_busy(await clients[2].read(), "queue_full")
        assert load(proxy) == (1, 1)
        gate.open()
        await until(lambda: len(gate.waiting) == 1)
        gate.open()
        assert (await clients[1].read()).status == 200


async def test_the_bodies_that_wait_are_bounded() -> None:
    settings = Settings(allow_loopback=True, queue_bytes_max=100)
    async with gated() as (model, gate):
        served = Served(MODEL, [model.address], policy=Policy(max_concurrency=1))
        async with (
            run_proxy(served, settings=settings) as proxy,
            asking(proxy, "a", "b" * 50, "c" * 50) as clients,
        ):
            assert_busy(await clients[2].read(), "queue_full")
            gate.open()
            await until(lambda: len(gate.waiting) == 1)
            gate.open()


async def test_without_a_queue_a_busy_model_refuses_at_once() -> None:
    async with (
        gated() as (model, gate),
        serving(model, policy=Policy(max_concurrency=1, queue_requests_max=0)) as proxy,
        asking(proxy, *"ab") as clients,
    ):
        assert_busy(await clients[1].read(), "queue_full")
        gate.open()
        assert (await clients[0].read()).status == 200


async def test_who_waits_too_long_is_told_so_and_nothing_of_it_ran() -> None:
    async with (
        gated() as (model, gate),
        serving(model, policy=Policy(max_concurrency=1, queue_wait_max_s=30)) as proxy,
        asking(proxy, *"ab") as clients,
    ):
        proxy.advance(29)
        assert load(proxy) == (1, 1)
        proxy.advance(2)
        assert_busy(await clients[1].read(), "queue_timeout")
        gate.open()
        assert (await clients[0].read()).status == 200
        assert len(model.calls) == 1


async def test_a_client_that_leaves_frees_its_place_in_the_queue_and_at_the_endpoint() -> None:
    async with (
        gated() as (model, gate),
        serving(model, policy=Policy(max_concurrency=1, queue_requests_max=2)) as proxy,
        asking(proxy, *"abc") as clients,
    ):
        await until(lambda: len(gate.waiting) == 1)
        clients[1].reset()
        await until(lambda: load(proxy) == (1, 1))
        clients[0].reset()
        await until(lambda: len(gate.waiting) == 2)
        assert gate.prompts == ["a", "c"]
        assert load(proxy) == (1, 0)
        gate.open(1)
        assert (await clients[2].read()).status == 200
        gate.open()


async def test_an_endpoint_that_comes_lets_as_many_go_as_it_has_places() -> None:
    async with (
        gated() as (one, gate),
        gated() as (two, other),
        serving(one, policy=Policy(max_concurrency=2)) as proxy,
        asking(proxy, *"abcdef"),
    ):
        await until(lambda: len(gate.waiting) == 2)
        proxy.set_endpoints(proxy_name(), [one.address, two.address])
        await until(lambda: len(other.waiting) == 2)
        assert sorted(other.prompts) == ["c", "d"]
        assert load(proxy) == (4, 2)
        gate.open_all()
        await until(lambda: sorted(gate.prompts) == ["e", "f"])
        gate.open_all()
        other.open_all()
        await until(lambda: load(proxy) == (0, 0))


async def test_a_share_that_grows_and_a_limit_that_goes_let_requests_go() -> None:
    async with (
        gated() as (model, gate),
        serving(model, policy=Policy(max_concurrency=4)) as proxy,
    ):
        proxy.server.share_among(4, 1)
        async with asking(proxy, *"abcdef"):
            await until(lambda: len(gate.waiting) == 1)
            proxy.server.share_among(1, 2)
            await until(lambda: len(gate.waiting) == 2)
            proxy.serve(Served(MODEL, [model.address]), revision="2")
            await until(lambda: len(gate.waiting) == 6)
            assert sorted(gate.prompts) == list("abcdef")
            gate.open_all()
            await until(lambda: load(proxy) == (0, 0))


async def test_who_waits_for_a_model_that_leaves_the_table_is_told_so() -> None:
    async with (
        gated() as (model, gate),
        serving(model, policy=Policy(max_concurrency=1)) as proxy,
        asking(proxy, *"abc") as clients,
    ):
        gone = proxy.server.catalog.names[MODEL]
        proxy.serve(revision="2")
        for client in clients[1:]:
            answer = await client.read()
            assert (answer.status, error_of(answer)["code"]) == (404, "model_not_found")
        gate.open()
        assert (await clients[0].read()).status == 200
        assert (gone.in_flight, gone.queued) == (0, 0)


async def test_a_retry_waits_at_the_front_for_a_place_elsewhere() -> None:
    with listen() as closed:
        async with (
            gated() as (model, gate),
            serving(model, policy=Policy(max_concurrency=1)) as proxy,
            asking(proxy, *"ab") as clients,
        ):
            await until(lambda: len(gate.waiting) == 1)
            refusing = closed.getsockname()
            proxy.set_endpoints(proxy_name(), [model.address, refusing])
            await until(lambda: load(proxy) == (1, 1))  # b was refused there and is back
            gate.open()
            await until(lambda: gate.prompts == ["b"])
            gate.open()
            assert (await clients[1].read()).status == 200


async def test_a_thousand_that_wait_go_one_by_one_and_none_is_lost() -> None:
    async with (
        run_model_server() as model,
        serving(model, policy=Policy(max_concurrency=3)) as proxy,
        AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(connect(proxy.port)) for _ in range(300)]
        for number, client in enumerate(clients):
            client.writer.write(post(body(f"{number}")))
        for client in clients:
            assert (await client.read()).status == 200
        assert len(model.calls) == len({call.body for call in model.calls}) == 300
        assert model.connections <= 3
