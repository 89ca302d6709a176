"""Rows of the HTTP contract that no other test looks at: paths, ids, health, port 8001, the end."""

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from nimway import routes
from nimway.proxy import feed, paths
from nimway.proxy.admin import AdminServer
from nimway.proxy.settings import Settings
from nimway.state import ProxyState, decode
from tests.proxy.test_conversations import BODY, MODEL, conversation, error_of
from tests.support.cluster import Cluster, eventually
from tests.support.proxy import TEST_SETTINGS, Served, listen
from tests.support.proxy_pod import Start, build_table, write_table
from tests.support.proxy_wire import (
    OK,
    Call,
    Client,
    ModelServer,
    chunk,
    connect,
    post,
    run_model_server,
    until,
)

FORM = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\x00\xff\r\n--b--\r\n'
) % MODEL.encode()


@pytest.mark.parametrize("operation", paths._ROUTED, ids=lambda operation: str(operation.label))
async def test_every_path_of_the_list_reaches_the_model_with_and_without_the_prefix(
    operation: paths.Operation,
) -> None:
    is_form = operation.kind == "form"
    body = FORM if is_form else BODY
    kind = "multipart/form-data; boundary=b" if is_form else "application/json"
    async with run_model_server() as model, conversation(model) as (_, client):
        for prefix in ("", "/openai"):
            request = post(body, path=prefix + operation.label, fields=f"Content-Type: {kind}\r\n")
            assert (await client.ask(request)).status == 200
        starts = {call.head.partition(b"\r\n")[0] for call in model.calls}
        assert starts == {b"POST %b HTTP/1.1" % operation.path}
        assert [call.body for call in model.calls] == [body] * 2


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_an_answer_passes_byte_for_byte_and_keeps_its_fields(framing: str) -> None:
    body = random.Random(1).randbytes(1_000_000)

    async def script(call: Call) -> None:
        head = b"HTTP/1.1 200 Fine\r\nContent-Encoding: br\r\nX-Engine: a\r\nX-Engine: b\r\n"
        if framing == "length":
            await call.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            return
        await call.send(head + b"Transfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(body), 77_777):
            await call.send(chunk(body[at : at + 77_777]))
        await call.send(b"0\r\n\r\n")

    async with run_model_server(script) as model, conversation(model) as (_, client):
        answer = await client.ask(post(BODY))
        assert answer.head.startswith(b"HTTP/1.1 200 Fine\r\n")
        assert answer.body == body
        assert b"\r\nX-Engine: a\r\nX-Engine: b\r\n" in answer.head
        assert answer.field(b"content-encoding") == b"br"


async def test_one_id_goes_through_all_tries_and_back() -> None:
    with listen() as closed:
        refusing = ModelServer(address=closed.getsockname())
        async with (
            run_model_server() as model,
            conversation(refusing, model) as (proxy, client),
        ):
            proxy.server.random = lambda: 0.0  # of equals the first: the one that refuses
            answer = await client.ask(post(BODY, fields="X-Request-Id: mine-1\r\n"))
            assert (answer.status, answer.field(b"x-request-id")) == (200, b"mine-1")
            assert proxy.server.meters.retries == 1
            assert [call.field(b"x-request-id") for call in model.calls] == [[b"mine-1"]]
            refused = await client.ask(post(b"{", fields="X-Request-Id: mine-2\r\n"))
            assert refused.field(b"x-request-id") == b"mine-2"


@pytest.mark.parametrize("fault", ["refuse", "hang up", "garbage"])
async def test_an_error_tells_nothing_of_what_is_inside(fault: str) -> None:
    async def script(call: Call) -> None:
        if fault == "garbage":
            await call.send(b"HTTP/9 zzz\r\n\r\n")
        call.writer.close()

    with listen() as closed:
        refusing = ModelServer(address=closed.getsockname())
        async with (
            run_model_server(script) as model,
            conversation(refusing if fault == "refuse" else model) as (_, client),
        ):
            answer = await client.ask(post(BODY))
            error_of(answer)
            text = answer.head + answer.body
            port = refusing.address[1] if fault == "refuse" else model.address[1]
            for secret in (b"127.0.0.1", str(port).encode(), b"Traceback", b".py", b"Errno"):
                assert secret not in text


async def test_timeouts_eject_and_what_says_nothing_of_the_pod_does_not() -> None:
    status = b"503 Busy"

    async def script(call: Call) -> None:
        if status:
            await call.send(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status)
        else:
            await call.wait_closed()

    async with (
        run_model_server(script) as one,
        run_model_server(script) as two,
        conversation(one, two) as (proxy, client),
    ):
        for status in (b"503 Busy", b"400 Bad", b"401 No", b"404 None", b"429 Slowly"):  # noqa: B007 # the script reads it
            for _ in range(8):
                await client.ask(post(BODY))
        assert proxy.server.meters.ejections == 0
        status = b""
        for number in range(6):
            await client.send(post(BODY))
            await until(lambda: len(one.calls) + len(two.calls) > 40 + number)  # noqa: B023 # awaited here
            proxy.advance(601)
            assert (await client.read()).status == 504
        assert proxy.server.meters.ejections == 2


async def test_ready_says_whether_a_table_is_there_and_live_that_the_loop_turns() -> None:
    async with conversation() as (proxy, client):
        for ready in (True, False):
            proxy.server.ready = ready
            for path, expected in (
                ("/health", 200),
                ("/v1/health/live", 200),
                ("/v1/health/ready", 200 if ready else 503),
            ):
                answer = await client.ask(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                assert answer.status == expected
                assert json.loads(answer.body)["status"] == (
                    "healthy" if expected == 200 else "unhealthy"
                )


async def test_a_model_that_comes_back_is_not_reported_by_what_ran_before_it_left() -> None:
    gate = asyncio.Event()

    async def script(call: Call) -> None:
        if b"old" in call.body:
            await gate.wait()
            await call.send(OK)
        else:
            await call.wait_closed()

    async with (
        run_model_server(script) as model,
        conversation(model) as (proxy, client),
        connect(proxy.port) as other,
    ):
        served = Served(MODEL, [model.address])
        key = served.to_route().key
        await client.send(post(BODY.replace(b"Once", b"old")))
        await model.called.wait()
        assert proxy.server.take_load() == {key: (1, 0, 1)}
        proxy.serve(revision="2")
        proxy.serve(served, revision="3")
        await other.send(post(BODY))
        await until(lambda: len(model.calls) == 2)
        assert proxy.server.take_load() == {key: (1, 0, 1)}
        gate.set()
        assert (await client.read()).status == 200
        assert proxy.server.take_load() == {}


class _Source:
    """What port 8001 reports."""

    def state(self) -> ProxyState:
        return ProxyState(revision="r", ready=False, draining=False)

    async def metrics(self) -> bytes:
        return b"a 1\n"


@asynccontextmanager
async def port_8001() -> AsyncIterator[tuple[AdminServer, Client]]:
    sock = listen()
    port = sock.getsockname()[1]
    server = AdminServer(TEST_SETTINGS, _Source())
    await server.start(sock)
    try:
        async with connect(port) as client:
            yield server, client
    finally:
        server.stop()
        await until(lambda: not server.connections)


async def test_port_8001_has_metrics_state_and_health_and_nothing_else() -> None:
    async with port_8001() as (_, client):

        async def get(path: str, method: str = "GET") -> tuple[int, bytes]:
            answer = await client.ask(f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            return answer.status, answer.body

        for path in ("/metrics", "/v1/metrics"):
            assert await get(path) == (200, b"a 1\n")
        assert (await get("/health"))[0] == (await get("/v1/health/live"))[0] == 200
        assert (await get("/v1/health/ready"))[0] == 503
        for path in ("/v1/models", "/v1/completions", "/", "/debug", "/metrics/", "//metrics"):
            assert (await get(path))[0] == 404
        assert (await get("/metrics", "DELETE"))[0] == 405


async def test_the_state_is_a_stream_of_whole_lines_that_ends_with_its_client() -> None:
    async with port_8001() as (server, client):
        await client.send(b"GET /state HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.reader.readuntil(b"\r\n\r\n")
        for _ in range(2):
            size = int(await client.reader.readuntil(b"\r\n"), 16)
            assert decode((await client.reader.readexactly(size + 2))[:-2]).revision == "r"
            server.plan_report()
        client.reset()
        await until(lambda: not server.streams)


def test_the_defaults_of_waiting_and_the_time_between_two_lists_are_the_contract_s() -> None:
    settings = Settings()
    assert (settings.queue_requests_max, settings.queue_wait_max_s) == (1000, 50)
    assert feed.RELIST_PERIOD_S * 1.1 + 2 <= 60


@pytest.mark.cluster
def test_a_second_sigterm_ends_it_at_once(
    cluster: Cluster, namespace: str, start_pod: Start
) -> None:
    write_table(cluster, namespace, routes.encode(build_table(namespace, "a")))
    pod = start_pod(workers=2)
    eventually(pod.is_ready, "ready")

    async def end_twice() -> int:
        async with connect(pod.port) as client:
            await client.send(post(BODY)[:-5])  # a request under way, which a drain waits for
            eventually(lambda: pod.metric("nimway_proxy_bodies_bytes"), "the body's beginning")
            pod.process.send_signal(signal.SIGTERM)
            eventually(lambda: bool(pod.lines("draining")), "it drains")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.reader.read(1), 1.0)
            assert pod.process.poll() is None
            os.kill(pod.process.pid, signal.SIGTERM)
            return await asyncio.to_thread(pod.process.wait, 10)

    assert asyncio.run(end_twice()) == 0
