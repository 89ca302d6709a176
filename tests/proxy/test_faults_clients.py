"""Clients that attack or leave: others do not notice, and nothing of them stays behind."""

import asyncio
import math
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace

import pytest

from nimway.routes import Policy
from nimway.tasks import spawn
from tests.proxy.test_conversations import conversation, error_of
from tests.proxy.vectors import BODY, MODEL
from tests.support.faults import FULL
from tests.support.proxy import (
    TEST_SETTINGS,
    Address,
    ProxyHarness,
    Served,
    listen,
    run_proxy,
)
from tests.support.proxy_wire import (
    SSE_HEAD,
    Call,
    Client,
    ModelServer,
    chunk,
    connect,
    post,
    run_model_server,
    until,
)

HEAD_START = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
PIECE = chunk(b"data: " + b"x" * 64_000 + b"\n\n")


def p99(times: list[float]) -> float:
    return sorted(times)[math.ceil(len(times) * 0.99) - 1]


@asynccontextmanager
async def many(proxy: ProxyHarness, count: int) -> AsyncIterator[list[Client]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connect(proxy.port)) for _ in range(count)]


async def _ask_in_turn(client: Client, count: int) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        assert (await client.ask(post(BODY))).status == 200
        times.append(time.perf_counter() - start)
    return times


async def _trickle(slow: list[Client], attacking: asyncio.Event) -> None:
    """Each attacker's next byte of a head or of a body, some 10,000 bytes a second in all."""
    turn = 0
    while True:
        await attacking.wait()
        for number, attacker in enumerate(slow):
            attacker.writer.write(b"x" if turn or number % 2 else b"X")
            if number % 20 == 19:
                await asyncio.sleep(0.002)  # the pace is the fault
        turn += 1


async def test_slow_heads_and_slow_bodies_cost_good_clients_nothing() -> None:
    """PX-3: 200 attackers trickle; blocks with and without them take turns, best of five rounds.

    The attackers share the client's process: what they cost it is in the figures.
    """
    attacking = asyncio.Event()
    async with (
        run_model_server() as model,
        conversation(model) as (proxy, client),
        many(proxy, 200) as slow,
    ):
        for number, attacker in enumerate(slow):
            body = post(BODY + b" " * 5000)[:-5000]
            await attacker.send(HEAD_START + b"X: " if number % 2 else body)
        task = spawn(_trickle(slow, attacking), name="attackers")
        found = []
        for _ in range(5):
            alone: list[float] = []
            beside: list[float] = []
            for _ in range(5):
                attacking.clear()
                alone += await _ask_in_turn(client, 400)
                attacking.set()
                beside += await _ask_in_turn(client, 400)
            found.append((p99(beside) - 1.5 * p99(alone), p99(alone), p99(beside)))
            if min(found)[0] < 0.002:
                break
        over_s, alone_s, beside_s = min(found)
        sys.stdout.write(f"p99 alone {alone_s * 1e3:.2f} ms, beside {beside_s * 1e3:.2f} ms\n")
        assert over_s < 0.002
        assert len(proxy.server.upstreams) == 1
        assert len(model.calls) == 4000 * len(found)
        task.cancel()
        proxy.advance(31)
        answers = await asyncio.gather(*(attacker.read() for attacker in slow))
        assert {answer.status for answer in answers} == {408}
        assert not any(proxy.live_objects().values())


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"model":"' + b"x" * 10_000_000,
        b'{"prompt":"' + b"\\u0061" * 1_000_000 + b'"}',
        b'{"model":"a","model":"a"}',
        b'{"model":"a","mod\\u0065l":"b"}',
        b'{"Model":"a"}',
        b'{"model":["a"]}',
        b'{"model":null}',
        b'{"model":""}',
        b"\xef\xbb\xbf" + BODY,
        BODY + b"x",
        BODY + BODY,
        BODY[:-1],
        b"\x00" + BODY,
        BODY.replace(b"Once", b"\n"),
        BODY.replace(b"}", b",}"),
        BODY.replace(b'"', b"'"),
        b'{"n":NaN,' + BODY[1:],
    ],
    ids=lambda body: f"{body[:24]!r} of {len(body)}",
)
async def test_a_body_that_two_parsers_could_read_otherwise_is_400_in_bounded_time(
    body: bytes,
) -> None:
    """PX-4."""
    async with run_model_server() as model, conversation(model) as (_, client):
        start = time.process_time()
        answer = await client.ask(post(body))
        assert time.process_time() - start < 1
        assert (answer.status, error_of(answer)["param"]) == (400, "model")
        assert not model.calls
        assert (await client.ask(post(BODY))).status == 200


class Aborts:
    """A model server that never ends an answer, and when it learned that nobody wants it."""

    def __init__(self) -> None:
        self.streaming = False
        self.ends: asyncio.Queue[float] = asyncio.Queue()

    async def script(self, call: Call) -> None:
        if self.streaming:
            await call.send(SSE_HEAD + chunk(b"data: 1\n\n"))
        await call.wait_closed()
        self.ends.put_nowait(time.perf_counter())

    async def time_one(self, model: ModelServer, port: int) -> float:
        """Seconds from a client's abort to its request's end at the model server."""
        model.called.clear()
        async with connect(port) as client:
            await client.send(post(BODY))
            await model.called.wait()
            if self.streaming:
                await client.reader.readuntil(b"data: 1")
            start = time.perf_counter()
            client.reset()
            return await self.ends.get() - start


async def best_p99(measure: Callable[[int], Awaitable[float]], count: int, what: str) -> float:
    """The p99 of `count` measurements; a busy machine may spoil a round, not three."""
    worst: list[float] = []
    while len(worst) < 3 and min(worst, default=1.0) >= 0.05:
        worst.append(p99([await measure(number) for number in range(count)]))
    sys.stdout.write(f"{what}: p99 {min(worst) * 1e3:.1f} ms, n={count}\n")
    return min(worst)


async def test_an_abort_reaches_the_model_server_at_once() -> None:
    """PX-8: before the first byte and mid-stream in turn."""
    aborts = Aborts()
    async with run_model_server(aborts.script) as model, conversation(model) as (proxy, _):

        async def measure(number: int) -> float:
            aborts.streaming = number % 2 == 1
            return await aborts.time_one(model, proxy.port)

        assert await best_p99(measure, 200, "upstream closed") < 0.05
        await until(lambda: not any(proxy.live_objects().values()))
        assert not proxy.server.upstreams
        assert proxy.server.meters.cancels == len(model.calls)


RETRYING = replace(TEST_SETTINGS, ejection_failures=1_000_000, retry_budget_ratio=1.0)


async def test_an_abort_after_a_retry_reaches_the_second_server_at_once() -> None:
    """PX-8: the first endpoint refuses each request, the second one has it."""
    aborts = Aborts()
    with listen() as closed:
        refusing = ModelServer(address=closed.getsockname())
        async with (
            run_model_server(aborts.script) as model,
            conversation(refusing, model, settings=RETRYING) as (proxy, _),
        ):
            proxy.server.random = lambda: 0.0  # of equals the first: the one that refuses
            assert await best_p99(lambda _: aborts.time_one(model, proxy.port), 100, "retried") < (
                0.05
            )
            assert proxy.server.meters.retries == len(model.calls)
            await until(lambda: not any(proxy.live_objects().values()))


async def test_an_abort_while_connecting_frees_everything_at_once() -> None:
    """PX-8: the first endpoint refuses, the second never takes the connection."""
    settings = replace(RETRYING, timeout_connect_s=0.2)
    with listen() as closed, black_hole() as hole:
        refusing, blind = ModelServer(address=closed.getsockname()), ModelServer(address=hole)
        async with conversation(refusing, blind, settings=settings) as (proxy, _):
            proxy.server.random = lambda: 0.0

            async def measure(_: int) -> float:
                before = proxy.server.meters.retries
                async with connect(proxy.port) as client:
                    await client.send(post(BODY))
                    await until(lambda: proxy.server.meters.retries > before)
                    return await _time_release(proxy, client)

            assert await best_p99(measure, 50, "connecting") < 0.05
            await until(lambda: not running_tasks("connect"))
            assert not proxy.server.upstreams


async def test_an_abort_while_queued_frees_the_place_at_once() -> None:
    """PX-8."""
    async with run_model_server(Aborts().script) as model:
        served = Served(MODEL, [model.address], policy=Policy(max_concurrency=1))
        async with run_proxy(served, settings=TEST_SETTINGS) as proxy, connect(proxy.port) as first:
            await first.send(post(BODY))
            await model.called.wait()

            async def measure(_: int) -> float:
                async with connect(proxy.port) as client:
                    await client.send(post(BODY))
                    await until(lambda: proxy.live_objects()["queued"] > 0)
                    return await _time_release(proxy, client, left=1)

            assert await best_p99(measure, 100, "queued") < 0.05
            assert len(model.calls) == 1


async def test_an_abort_while_held_frees_the_place_at_once() -> None:
    """PX-8: of a model without a pod, each in the one place that the one before had."""
    served = Served(MODEL, policy=Policy(queue_requests_max=1))
    async with run_proxy(served, settings=TEST_SETTINGS) as proxy:

        async def measure(_: int) -> float:
            async with connect(proxy.port) as client:
                await client.send(post(BODY))
                await until(lambda: proxy.live_objects()["queued"] > 0)
                return await _time_release(proxy, client)

        assert await best_p99(measure, 100, "held") < 0.05
        assert not any(proxy.live_objects().values())
        assert proxy.server.meters.cancels == proxy.server.catalog.names[MODEL].demand_total


async def _time_release(proxy: ProxyHarness, client: Client, *, left: int = 0) -> float:
    """Seconds from a client's abort until only `left` exchanges, and nothing queued, are left."""
    start = time.perf_counter()
    client.reset()
    await until(lambda: proxy.server.exchanges == left)
    taken = time.perf_counter() - start
    assert proxy.live_objects()["queued"] == 0
    return taken


@contextmanager
def black_hole() -> Iterator[Address]:
    """An address that takes no connection and refuses none: its backlog is full."""
    with socket.socket() as full, ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)  # the standard library's signature
            filler.connect_ex(full.getsockname())
        yield full.getsockname()


def running_tasks(name: str) -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == name]


@pytest.mark.timeout(300)
async def test_slow_readers_hold_little_each_and_nobody_else_up() -> None:
    """PX-9: 50 of them, 500 in full."""
    count = 500 if FULL else 50

    async def flood(call: Call) -> None:
        if b"Once" not in call.body:
            await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            return
        await call.send(SSE_HEAD)
        while not call.writer.is_closing():
            await call.send(PIECE)

    quick = post(BODY.replace(b"Once", b"Now"))
    async with run_model_server(flood) as model, conversation(model) as (proxy, _):
        with reading_nothing(proxy.port, count):
            streams = proxy.server.connections
            await until(lambda: sum(c.paused for c in streams) == count, timeout_s=240)
            async with connect(proxy.port) as client:
                for _ in range(50):
                    assert (await client.ask(quick)).status == 200
            held = [c._transport.get_write_buffer_size() for c in streams]
            sys.stdout.write(f"{count} slow readers hold {max(held) / 1024:.0f} KiB each at most\n")
            assert max(held) < 256 * 1024
            assert sum(c.paused for c in streams) == count
        await until(lambda: not any(proxy.live_objects().values()), timeout_s=60)


@contextmanager
def reading_nothing(port: int, count: int) -> Iterator[None]:
    """So many clients that ask and do not read; when they go, they reset."""
    with ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            # What the kernel holds is the kernel's: megabytes each would take minutes to fill.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
            sock.connect(("127.0.0.1", port))
            sock.sendall(post(BODY))
        yield


async def test_pipelined_garbage_behind_a_good_request_ends_the_connection_only() -> None:
    async with run_model_server() as model, conversation(model) as (proxy, client):
        await client.send(post(BODY) + b"\x16\x03\x01\x02\x00garbage\r\n\r\n" + post(BODY))
        assert (await client.read()).status == 200
        assert (await client.read()).status == 400
        assert await client.is_closed()
        assert len(model.calls) == 1
        async with connect(proxy.port) as other:
            assert (await other.ask(post(BODY))).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/v1/metrics",
        "/state",
        "/debug/pprof",
        "/debug",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/sleep",
        "/wake_up",
        "/reset_prefix_cache",
        "/collective_rpc",
        "/start_profile",
        "/server_info",
        "/docs",
        "/openapi.json",
        "/invocations",
        "/v1/manifest",
        "/v1/license",
        "/v1/completions/",
        "//v1/completions",
        "/v1//completions",
        "/v1/./completions",
        "/v1/completions/../completions",
        "/v1/%63ompletions",
        "/v1/completions;x",
        "/v1/completions%2f",
        "/V1/completions",
        "/openai/metrics",
        "/openai/openai/v1/completions",
        "/v1/models/../metrics",
    ],
)
async def test_no_path_outside_the_list_exists_on_the_public_port(path: str) -> None:
    """SEC-5, PX-2."""
    async with run_model_server() as model, conversation(model) as (_, client):
        for method in ("GET", "POST"):
            answer = await client.ask(post(BODY, path=path).replace(b"POST", method.encode(), 1))
            assert answer.status in ((404, 405) if "models" in path else (404,))
            error_of(answer)
        assert not model.calls


async def test_what_a_request_says_of_addresses_is_not_where_it_goes() -> None:
    """SEC-3: absolute-form, Host, X-Forwarded-Host, api_base."""
    body = BODY.replace(b"}", b', "api_base": "http://127.0.0.1:1", "base_url": "http://[::1]/"}')
    async with run_model_server() as model, conversation(model) as (_, client):
        for target, host in (
            (b"/v1/completions", b"169.254.169.254"),
            (b"http://169.254.169.254/v1/completions", b"kubernetes.default"),
            (b"http://[fd00:ec2::254]:80/v1/completions", b"127.0.0.1:1"),
        ):
            answer = await client.ask(
                b"POST %b HTTP/1.1\r\nHost: %b\r\nX-Forwarded-Host: 127.0.0.1:1\r\n"
                b"Forwarded: host=127.0.0.1:1\r\nX-Original-URL: /metrics\r\n"
                b"X-HTTP-Method-Override: DELETE\r\nContent-Length: %d\r\n\r\n%b"
                % (target, host, len(body), body)
            )
            assert answer.status == 200
        assert [call.body for call in model.calls] == [body] * 3
        address = f"{model.address[0]}:{model.address[1]}".encode()
        assert {call.field(b"host")[0] for call in model.calls} == {address}
        starts = {call.head.partition(b"\r\n")[0] for call in model.calls}
        assert starts == {b"POST /v1/completions HTTP/1.1"}


@pytest.mark.parametrize(
    "name",
    ['a"b', "a\r\nX-Evil: 1", "$(reboot)", "--help", "a\\", "\u2028", "<b>", "../../etc", "%0d%0a"],
)
async def test_a_name_is_data_in_answers_and_log_lines(name: str) -> None:
    """SEC-2, the proxy's part: a name is encoded, never pasted."""
    lines: list[bytes] = []
    async with run_model_server() as model, conversation(model) as (proxy, client):
        proxy.server.on_lines = lines.append
        encoded = "".join(f"\\u{ord(char):04x}" for char in name).encode()
        answer = await client.ask(post(b'{"model":"%b"}' % encoded))
        assert answer.status == 404
        assert name in (error_of(answer)["message"] or "")
        assert b"X-Evil" not in answer.head
        proxy.server.flush_lines()
        assert b"".join(lines).count(b"\n") == 1
        assert not model.calls
