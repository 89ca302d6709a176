"""Signs of life for streams that are held: comments, then the server's events, or an error."""

import json

import pytest

from nimway.proxy import answers, hold
from nimway.proxy.heartbeat import COMMENT
from nimway.routes import Policy
from tests.proxy.test_conversations import error_of
from tests.proxy.test_hold import sleeping, wake
from tests.proxy.test_policy import MODEL, load
from tests.support.proxy import ProxyHarness
from tests.support.proxy_wire import (
    OK,
    SSE_HEAD,
    Answer,
    Call,
    Client,
    chunk,
    connect,
    post,
    run_model_server,
    until,
)

STREAM = json.dumps({"model": MODEL, "stream": True}).encode()
ASKED = post(STREAM, fields="x-nimway-heartbeat: 10\r\n")


async def hold_request(proxy: ProxyHarness, client: Client, request: bytes = ASKED) -> None:
    await client.send(request)
    await until(lambda: load(proxy) == (0, 1))


async def read_head(client: Client) -> bytes:
    return await client.reader.readuntil(b"\r\n\r\n")


async def read_rest(client: Client, head: bytes) -> Answer:
    """Read chunks to their end, or to the end of the connection."""
    answer = Answer(head, b"", clean=False)
    pieces = b""
    while line := await client.reader.readline():
        if not (size := int(line, 16)):
            answer.clean = True
            break
        pieces += (await client.reader.readexactly(size + 2))[:-2]
    answer.body = pieces
    return answer


def event_of(answer: Answer) -> dict[str, object]:
    """Return the error that a stream ends with."""
    assert not answer.clean
    event = answer.body.removeprefix(COMMENT)
    assert event.startswith(b"event: error\ndata: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 3
    error: dict[str, object] = json.loads(event.splitlines()[1].removeprefix(b"data: "))["error"]
    return error


async def test_a_held_stream_gets_comments_and_then_its_events() -> None:
    async def stream(call: Call) -> None:
        events = chunk(b"data: 1\n\n") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        await call.send(SSE_HEAD + events)

    async with (
        run_model_server(stream) as model,
        sleeping() as proxy,
        connect(proxy.port) as client,
    ):
        coded = post(STREAM, fields="x-nimway-heartbeat: 10\r\nAccept-Encoding: gzip\r\nX-A: b\r\n")
        await hold_request(proxy, client, coded)
        proxy.advance(10.1)
        head = await read_head(client)
        assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        assert b"\r\nX-Request-Id: " in head
        proxy.advance(5)
        proxy.advance(5.1)
        assert load(proxy) == (0, 1)
        wake(proxy, model)
        answer = await read_rest(client, head)
        assert answer.clean
        assert answer.body == COMMENT * 2 + b"data: 1\n\ndata: [DONE]\n\n"
        assert b"x-nimway-heartbeat" not in model.calls[0].head.lower()
        assert not model.calls[0].field(b"accept-encoding")
        assert model.calls[0].field(b"x-a") == [b"b"]
        assert (await client.reader.read(2)) == b"\r\n"  # the empty trailers; nothing else follows
        # The connection is as good as any.
        assert (await client.ask(post(STREAM))).status == 200


async def test_a_stream_of_a_declared_length_joins_whole() -> None:
    async def stream(call: Call) -> None:
        await call.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\n"
            b"data: 1\n\n"
        )

    async with (
        run_model_server(stream) as model,
        sleeping() as proxy,
        connect(proxy.port) as client,
    ):
        await hold_request(proxy, client)
        proxy.advance(10.1)
        wake(proxy, model)
        answer = await client.read()
        assert (answer.clean, answer.body) == (True, COMMENT + b"data: 1\n\n")


async def test_a_short_hold_is_answered_with_the_real_status() -> None:
    async def refuse(call: Call) -> None:
        await call.send(b"HTTP/1.1 422 No\r\nContent-Length: 2\r\n\r\n{}")

    async with (
        run_model_server(refuse) as model,
        sleeping() as proxy,
        connect(proxy.port) as client,
    ):
        await hold_request(proxy, client)
        proxy.advance(9)
        wake(proxy, model)
        assert (await client.read()).status == 422


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (
            b"HTTP/1.1 400 No\r\nContent-Length: 47\r\n\r\n"
            b'{"error":\n{"message":"too long","code":"ctx"} } ',
            "ctx",
            "too long",
        ),
        (
            b"HTTP/1.1 429 No\r\nContent-Length: 4\r\n\r\nbusy",
            "upstream_error",
            "The model server answered with status 429 and no stream.",
        ),
        (OK, "upstream_error", "The model server answered with status 200 and no stream."),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n"
            b"Content-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
            "upstream_error",
            "The model server answered with status 200 and no stream.",
        ),
    ],
)
async def test_what_is_no_stream_becomes_the_last_event(
    answer: bytes, code: str, message: str
) -> None:
    async def script(call: Call) -> None:
        at = answer.index(b"\r\n\r\n") + 6
        await call.send(answer[:at])
        await call.send(answer[at:])

    async with run_model_server(script) as model, sleeping() as proxy:
        for _ in range(2):
            async with connect(proxy.port) as client:
                await hold_request(proxy, client)
                proxy.advance(10.1)
                wake(proxy, model)
                error = event_of(await client.read())
                assert (error["code"], error["message"]) == (code, message)
                wake(proxy)
        wake(proxy, model)
        async with connect(proxy.port) as client:
            assert (await client.ask(post(STREAM))).status == int(answer[9:12])


async def test_a_large_error_is_cut_and_its_connection_closed() -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 500 No\r\nContent-Length: 900000\r\n\r\n" + b"x" * 100_000)
        await call.wait_closed()

    async with (
        run_model_server(script) as model,
        sleeping() as proxy,
        connect(proxy.port) as client,
    ):
        await hold_request(proxy, client)
        proxy.advance(10.1)
        wake(proxy, model)
        assert event_of(await client.read())["code"] == "upstream_error"
        await until(lambda: not proxy.server.upstreams)


async def test_a_server_that_dies_or_a_time_that_ends_is_an_event_too() -> None:
    async def die(call: Call) -> None:
        call.reset()

    async with run_model_server(die) as model, sleeping(Policy(queue_wait_max_s=30)) as proxy:
        async with connect(proxy.port) as client:
            await hold_request(proxy, client)
            proxy.advance(10.1)
            wake(proxy, model)
            assert event_of(await client.read())["code"] == "upstream_failed"
        wake(proxy)
        async with connect(proxy.port) as client:
            await hold_request(proxy, client)
            proxy.advance(10.1)
            proxy.advance(20.1)
            assert event_of(await client.read())["code"] == "model_not_ready"
        async with connect(proxy.port) as client:
            await hold_request(proxy, client)
            proxy.advance(10.1)
            proxy.serve(revision="2")
            assert event_of(await client.read())["code"] == "model_not_found"


@pytest.mark.parametrize(
    "request_",
    [
        post(STREAM),
        post(json.dumps({"model": MODEL}).encode(), fields="x-nimway-heartbeat: 10\r\n"),
        post(
            json.dumps({"model": MODEL, "stream": False}).encode(),
            fields="x-nimway-heartbeat: 10\r\n",
        ),
    ],
    ids=["not asked for", "no stream", "stream false"],
)
async def test_without_the_header_or_a_stream_there_is_no_heartbeat(request_: bytes) -> None:
    async with sleeping() as proxy, connect(proxy.port) as client:
        await hold_request(proxy, client, request_)
        proxy.advance(49)
        proxy.advance(2)
        answer = await client.read()
        assert (answer.status, error_of(answer)["code"]) == (503, "model_not_ready")


@pytest.mark.parametrize("value", ["0", "0.5", "61", "-1", "ten", "1e1", ""])
async def test_a_bad_heartbeat_is_400_and_names_the_header(value: str) -> None:
    async with sleeping() as proxy, connect(proxy.port) as client:
        answer = await client.ask(post(STREAM, fields=f"x-nimway-heartbeat: {value}\r\n"))
        assert answer.status == 400
        assert "x-nimway-heartbeat" in str(error_of(answer)["message"])


async def test_a_client_that_leaves_between_two_comments_frees_its_place() -> None:
    async with sleeping() as proxy, connect(proxy.port) as client:
        await hold_request(proxy, client)
        proxy.advance(10.1)
        await read_head(client)
        client.reset()
        await until(lambda: load(proxy) == (0, 0))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"stream":true}', True),
        (b'{"stream":false}', False),
        (b'{"stream":null}', False),
        (b'{"stream":1}', False),
        (b"{}", False),
        (b"[true]", False),
        (b"--form\r\n", False),
        (b"[" * 100_000, False),
    ],
)
def test_only_a_true_stream_is_one(body: bytes, expected: bool) -> None:  # noqa: FBT001 # a table
    assert hold.is_streaming(body) is expected


def test_an_error_of_the_model_server_fits_on_one_line() -> None:
    kept = answers.relay_error(400, b'{"error": {"message": "a\\nb"},\n "more": 1}')
    assert kept.body == b'{"error":{"message":"a\\nb"},"more":1}'
    for body in (b"", b"[]", b'{"detail":"x"}', b"\xff", b"[" * 100_000):
        assert b"upstream_error" in answers.relay_error(500, body).body
