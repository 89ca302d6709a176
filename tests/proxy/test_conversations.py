"""Whole conversations over sockets: a client, the proxy, a model server; who sees which bytes."""

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from nimway.proxy.settings import Settings
from nimway.tasks import spawn
from tests.support.proxy import TEST_SETTINGS, ProxyHarness, Served, run_proxy
from tests.support.proxy_wire import (
    OK_BODY,
    SSE_HEAD,
    Answer,
    Call,
    Client,
    ModelServer,
    chunk,
    connect,
    post,
    run_model_server,
    until,
)

MODEL = "meta/llama-3.1-8b-instruct"
BODY = json.dumps({"model": MODEL, "prompt": "Once upon a time"}).encode()
CREDENTIALS = ("Authorization", "x-api-key", "api-key", "Cookie")


@asynccontextmanager
async def conversation(
    *servers: ModelServer, settings: Settings = TEST_SETTINGS, aliases: tuple[str, ...] = ()
) -> AsyncIterator[tuple[ProxyHarness, Client]]:
    served = Served(MODEL, [server.address for server in servers], aliases)
    async with run_proxy(served, settings=settings) as proxy, connect(proxy.port) as client:
        yield proxy, client


def error_of(answer: Answer) -> dict[str, str | None]:
    error: dict[str, str | None] = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.field(b"content-type") == b"application/json"
    assert answer.field(b"x-request-id")
    return error


async def test_a_completion_passes_byte_for_byte() -> None:
    async with run_model_server() as model, conversation(model) as (_, client):
        answer = await client.ask(post(BODY))
        assert (answer.status, answer.body) == (200, OK_BODY)
        assert model.calls[0].body == BODY
        assert model.calls[0].head.startswith(b"POST /v1/completions HTTP/1.1\r\n")
        assert model.calls[0].field(b"x-request-id") == [answer.field(b"x-request-id")]


@pytest.mark.parametrize("size", [1, 70_000, 3_000_000])
async def test_a_body_of_any_size_arrives_unchanged_however_it_is_sent(size: int) -> None:
    body = json.dumps({"prompt": random.Random(size).randbytes(size).hex(), "model": MODEL})
    async with run_model_server() as model, conversation(model) as (_, client):
        await client.ask(post(body.encode()))
        chunks = [body.encode()[at : at + 9999] for at in range(0, len(body), 9999)]
        head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        await client.ask(head + b"".join(map(chunk, chunks)) + b"0\r\n\r\n")
        sums = [hashlib.sha256(call.body).digest() for call in model.calls]
        assert sums == [hashlib.sha256(body.encode()).digest()] * 2


async def test_a_request_may_come_byte_by_byte_and_split_anywhere() -> None:
    data = post(BODY)
    async with run_model_server() as model, conversation(model) as (_, client):
        for at in range(len(data)):
            client.writer.write(data[at : at + 1])
            await asyncio.sleep(0)
        assert (await client.read()).status == 200
        for at in range(1, len(data), 7):
            client.writer.write(data[:at])
            await asyncio.sleep(0)
            client.writer.write(data[at:])
            assert (await client.read()).status == 200
        assert {call.body for call in model.calls} == {BODY}


async def test_the_trace_s_context_passes_on_unchanged() -> None:
    """W3C Trace Context and Baggage: every line, in its order, even where `Connection` names it."""
    lines = [
        b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        b"tracestate: vendor=1,other@x=t61rcWkgMzE",
        b"tracestate: third=3",
        b"baggage: userId=alice,serverNode=DF%2028;meta=1",
    ]
    async with run_model_server() as model, conversation(model) as (_, client):
        for connection in ("", "Connection: keep-alive, traceparent\r\n"):
            fields = connection + b"".join(line + b"\r\n" for line in lines).decode()
            assert (await client.ask(post(BODY, fields=fields))).status == 200
        for call in model.calls:
            passed = call.head.split(b"\r\n")
            assert [line for line in passed if line in lines] == lines


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def echo(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(call.body))
        await call.send(call.body)

    bodies = [json.dumps({"model": MODEL, "n": number}).encode() for number in range(20)]
    async with run_model_server(echo) as model, conversation(model) as (_, client):
        listing = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
        await client.send(b"".join(post(body) + listing for body in bodies))
        for body in bodies:
            assert (await client.read()).body == body
            assert (await client.read()).body.startswith(b'{"object":"list"')


async def test_an_alias_reaches_the_model_under_its_own_name() -> None:
    body = b'{ "prompt":"x",\n"model" : "fast" , "n":1}'
    async with run_model_server() as model, conversation(model, aliases=("fast",)) as (_, client):
        await client.ask(post(body))
        assert model.calls[0].body == body.replace(b"fast", MODEL.encode())


async def test_the_openai_prefix_is_taken_off() -> None:
    async with run_model_server() as model, conversation(model) as (_, client):
        await client.ask(post(BODY, path="/openai/v1/chat/completions?a=b"))
        assert model.calls[0].head.startswith(b"POST /v1/chat/completions?a=b HTTP/1.1\r\n")


async def test_an_event_stream_passes_as_it_comes() -> None:
    gate = asyncio.Event()

    async def stream(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(b"event: x\ndata: 1\n\n"))
        await gate.wait()
        await call.send(chunk(b": comment\n\n") + chunk(b"data: [DONE]\n\n") + b"0\r\n")
        await call.send(b"X-Trailer: t\r\n\r\n")

    async with run_model_server(stream) as model, conversation(model) as (_, client):
        await client.send(post(BODY))
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b"text/event-stream; charset=utf-8\r\n" in head
        first = chunk(b"event: x\ndata: 1\n\n")
        assert await client.reader.readexactly(len(first)) == first
        gate.set()
        rest = chunk(b": comment\n\n") + chunk(b"data: [DONE]\n\n") + b"0\r\nX-Trailer: t\r\n\r\n"
        assert await client.reader.readexactly(len(rest)) == rest


async def test_an_http_1_0_client_gets_the_stream_without_chunks_and_an_end() -> None:
    async def stream(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(b"data: 1\n\n") + b"0\r\n\r\n")

    async with run_model_server(stream) as model, conversation(model) as (_, client):
        answer = await client.ask(
            b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
        )
        assert answer.field(b"transfer-encoding") is None
        assert answer.field(b"connection") == b"close"
        assert answer.body == b"data: 1\n\n"


async def test_http_1_0_keep_alive_is_honoured() -> None:
    async with run_model_server() as model, conversation(model) as (_, client):
        for _ in range(2):
            answer = await client.ask(
                b"POST /v1/completions HTTP/1.0\r\nConnection: keep-alive\r\n"
                b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
            )
            assert answer.field(b"connection") == b"keep-alive"


async def test_connection_close_is_honoured() -> None:
    async with run_model_server() as model, conversation(model) as (_, client):
        answer = await client.ask(post(BODY, fields="Connection: close\r\n"))
        assert answer.field(b"connection") == b"close"
        assert await client.is_closed()


async def test_a_body_that_ends_with_its_connection_is_framed_anew() -> None:
    async def until_close(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhello")
        call.writer.close()

    async with run_model_server(until_close) as model, conversation(model) as (_, client):
        for _ in range(2):
            answer = await client.ask(post(BODY))
            assert (answer.body, answer.clean) == (b"hello", True)
            assert answer.field(b"transfer-encoding") == b"chunked"


async def test_a_204_has_no_body_and_the_connection_goes_on() -> None:
    async def nothing(call: Call) -> None:
        await call.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with run_model_server(nothing) as model, conversation(model) as (_, client):
        for _ in range(2):
            answer = await client.ask(post(BODY))
            assert answer.status == 204
            assert answer.field(b"transfer-encoding") is None
        assert model.connections == 1


async def test_expect_100_continue_is_answered_once_and_not_passed_on() -> None:
    async with run_model_server() as model, conversation(model) as (_, client):
        head, body = post(BODY, fields="Expect: 100-continue\r\n").split(b"\r\n\r\n")
        await client.send(head + b"\r\n\r\n")
        assert (await client.read()).status == 100
        assert (await client.ask(body)).status == 200
        assert model.calls[0].field(b"expect") == []


async def test_an_expectation_is_not_met_for_a_body_that_is_refused() -> None:
    async with run_model_server() as model, conversation(model) as (_, client):
        answer = await client.ask(
            b"POST /v1/nothing HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
            b"Content-Length: 5\r\n\r\n"
        )
        assert answer.status == 404
        assert await client.is_closed()


async def test_head_gets_the_same_head_and_no_body() -> None:
    async with run_model_server() as model, conversation(model) as (_, client):
        await client.send(b"HEAD /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = await client.read(method=b"HEAD")
        listing = await client.ask(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.field(b"content-length") == str(len(listing.body)).encode()


async def test_models_are_listed_and_found_by_plain_and_escaped_id() -> None:
    async with run_model_server() as model, conversation(model) as (_, client):
        for path in (MODEL, MODEL.replace("/", "%2F")):
            answer = await client.ask(f"GET /v1/models/{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert json.loads(answer.body)["id"] == MODEL
        answer = await client.ask(b"GET /v1/models/none HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (answer.status, error_of(answer)["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (post(b'{"model":"none"}'), 404, "model_not_found"),
        (post(b"{"), 400, "invalid_body"),
        (post(b'{"prompt":1}'), 400, "invalid_body"),
        (post(b'{"model":"a","model":"b"}'), 400, "invalid_body"),
        (post(b""), 400, "invalid_body"),
        (post(BODY, path="/v1/unload_lora_adapter"), 404, "not_found"),
        (post(BODY, path="/metrics"), 404, "not_found"),
        (b"GET /v1/completions HTTP/1.1\r\nHost: a\r\n\r\n", 405, "method_not_allowed"),
        (b"DELETE /v1/models/a HTTP/1.1\r\nHost: a\r\n\r\n", 405, "method_not_allowed"),
        (b"GET /state HTTP/1.1\r\nHost: a\r\n\r\n", 404, "not_found"),
    ],
)
async def test_a_wrong_request_gets_openai_s_error_and_the_connection_goes_on(
    request_: bytes, status: int, code: str
) -> None:
    async with run_model_server() as model, conversation(model) as (_, client):
        answer = await client.ask(request_)
        assert (answer.status, error_of(answer)["code"]) == (status, code)
        assert not model.calls
        assert (await client.ask(post(BODY))).status == 200


async def test_a_wrong_method_names_the_right_ones() -> None:
    async with run_model_server() as model, conversation(model) as (_, client):
        answer = await client.ask(b"GET /v1/completions HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.field(b"allow") == b"POST"
        answer = await client.ask(b"POST /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.field(b"allow") == b"GET, HEAD"


async def test_a_model_error_names_its_parameter() -> None:
    async with run_model_server() as model, conversation(model) as (_, client):
        for body in (b"[]", b'{"model":"none"}'):
            assert error_of(await client.ask(post(body)))["param"] == "model"


NO_WAIT = replace(TEST_SETTINGS, queue_wait_max_s=0)
"""A proxy that holds no request; what holding does: test_hold.py."""


async def test_a_model_without_ready_pods_is_503_with_retry_after() -> None:
    async with conversation(settings=NO_WAIT) as (proxy, client):
        answer = await client.ask(post(BODY))
        assert (answer.status, error_of(answer)["code"]) == (503, "model_not_ready")
        assert 0 < int(answer.field(b"retry-after") or 0) <= 60
        assert answer.field(b"x-should-retry") == b"true"
        model = proxy.server.catalog.names[MODEL]
        assert (model.demand_total, model.in_flight) == (1, 0)


async def test_a_pod_that_gets_ready_is_used_by_the_next_request() -> None:
    async with run_model_server() as model, conversation(settings=NO_WAIT) as (proxy, client):
        assert (await client.ask(post(BODY))).status == 503
        proxy.set_endpoints(Served(MODEL).name, [model.address])
        assert (await client.ask(post(BODY))).status == 200
        proxy.set_endpoints(Served(MODEL).name, [])
        assert (await client.ask(post(BODY))).status == 503


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500, 503])
async def test_a_model_server_s_own_error_passes_verbatim(status: int) -> None:
    async def fail(call: Call) -> None:
        await call.send(
            b"HTTP/1.1 %d Theirs\r\nContent-Type: application/problem+json\r\n"
            b"Retry-After: 7\r\nContent-Length: 9\r\n\r\n" % status + b'{"a":"b"}'
        )

    async with run_model_server(fail) as model, conversation(model) as (_, client):
        answer = await client.ask(post(BODY))
        assert (answer.status, answer.body) == (status, b'{"a":"b"}')
        assert answer.field(b"content-type") == b"application/problem+json"
        assert answer.field(b"retry-after") == b"7"
        assert len(model.calls) == 1


async def test_absolute_form_is_routed_by_its_path_alone() -> None:
    async with run_model_server() as model, conversation(model) as (_, client):
        data = post(BODY).replace(b"POST /", b"POST http://169.254.169.254/", 1)
        assert (await client.ask(data)).status == 200
        assert model.calls[0].head.startswith(b"POST /v1/completions HTTP/1.1\r\n")
        host = f"{model.address[0]}:{model.address[1]}".encode()
        assert model.calls[0].field(b"host") == [host]


async def test_requests_go_to_the_least_loaded_pod() -> None:
    gate = asyncio.Event()

    async def hold(call: Call) -> None:
        await gate.wait()
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with (
        run_model_server(hold) as one,
        run_model_server(hold) as two,
        conversation(one, two) as (proxy, _),
    ):
        clients = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(10)]
        for number, (_, writer) in enumerate(clients, 1):
            writer.write(post(BODY))
            await until(lambda: len(one.calls) + len(two.calls) == number)  # noqa: B023 # awaited here
        assert (len(one.calls), len(two.calls)) == (5, 5)
        gate.set()
        for reader, writer in clients:
            await reader.readuntil(b"\r\n\r\n")
            writer.close()


async def test_a_connection_to_a_model_server_is_used_again_but_not_for_long() -> None:
    async with run_model_server() as model, conversation(model) as (proxy, client):
        for _ in range(3):
            await client.ask(post(BODY))
        assert model.connections == 1
        proxy.advance(0.1)
        proxy.advance(3.1)
        await until(lambda: not proxy.server.upstreams)
        await client.ask(post(BODY))
        assert model.connections == 2


async def test_the_client_s_timeout_lowers_ours() -> None:
    async def never(call: Call) -> None:
        await call.wait_closed()

    async with run_model_server(never) as model, conversation(model) as (proxy, client):
        await client.send(post(BODY, fields="X-Nimway-Timeout: 2.5\r\n"))
        await model.called.wait()
        proxy.advance(2.6)
        answer = await client.read()
        assert (answer.status, error_of(answer)["code"]) == (504, "upstream_timeout")
        assert model.calls[0].field(b"x-nimway-timeout") == []


async def test_draining_finishes_what_runs_and_tells_the_others() -> None:
    gate = asyncio.Event()

    async def hold(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(b"data: 1\n\n"))
        await gate.wait()
        await call.send(chunk(b"data: 2\n\n") + b"0\r\n\r\n")

    async with (
        run_model_server(hold) as model,
        conversation(model) as (proxy, client),
        connect(proxy.port) as idle,
        connect(proxy.port) as other,
    ):
        await idle.ask(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.send(post(BODY))
        await model.called.wait()
        proxy.server.announce_drain()
        answer = await other.ask(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.field(b"connection") == b"close"
        assert await other.is_closed()
        drain = spawn(proxy.server.drain(30), name="drain")
        assert await idle.is_closed()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        gate.set()
        answer = await client.read()
        assert (answer.body, answer.clean) == (b"data: 1\n\ndata: 2\n\n", True)
        await drain


async def test_the_access_log_has_one_line_per_request_and_no_secret() -> None:
    lines: list[bytes] = []
    async with run_model_server() as model, conversation(model) as (proxy, client):
        proxy.server.on_lines = lines.append
        secrets = "".join(f"{name}: geheim\r\n" for name in CREDENTIALS)
        await client.ask(post(BODY, fields=secrets))
        await client.ask(post(b'{"model":"invented-\\"name"}'))
        proxy.server.flush_lines()
    text = b"".join(lines).decode()
    first, second = map(json.loads, text.splitlines())
    assert (first["model"], first["status"], first["path"]) == (MODEL, 200, "/v1/completions")
    assert (second["model"], second["status"]) == ("", 404)
    for secret in ("geheim", "Once upon", "invented"):
        assert secret not in text


@pytest.mark.parametrize("passing", [False, True])
async def test_the_model_sees_credentials_only_where_that_is_configured(*, passing: bool) -> None:
    settings = replace(TEST_SETTINGS, pass_authorization=passing)
    given = {name: f"{name} of a client" for name in CREDENTIALS}
    async with (
        run_model_server() as model,
        conversation(model, settings=settings) as (_, client),
    ):
        fields = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        assert (await client.ask(post(BODY, fields=fields))).status == 200
        for name, value in given.items():
            expected = [value.encode()] if passing else []
            assert model.calls[0].field(name.lower().encode()) == expected


async def test_invented_names_add_no_series() -> None:
    settings = replace(TEST_SETTINGS, access_log_sample=0)
    async with conversation(settings=settings) as (proxy, client):
        for number in range(200):
            await client.ask(post(b'{"model":"invented-%d"}' % number))
        counted = dict(proxy.server.meters.read())
        assert list(counted["requests"]) == [(("", "/v1/completions", "404"), [200])]
        assert "durations" not in counted
