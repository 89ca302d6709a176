"""Every vector of a request, in every split, and over a socket: refused ones reach no model."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.proxy import vectors_chunks, vectors_heads
from tests.proxy.vectors import BODY, MODEL, SMUGGLED, flatten, splits
from tests.proxy.vectors_accepted import ACCEPTED
from tests.support.proxy import Served, run_proxy
from tests.support.proxy_glue import feed_client
from tests.support.proxy_wire import Client, ModelServer, connect, run_model_server

CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
REJECTED = {
    **flatten(vectors_heads.BY_SOURCE),
    **{
        f"chunks: {name}": CHUNKED + data
        for name, data in flatten(vectors_chunks.REJECTED_BY_SOURCE).items()
    },
}
SENTINEL = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-Last: 1\r\nContent-Length: 2\r\n\r\n{}"


def test_the_table_is_as_large_as_was_asked_for() -> None:
    assert len(REJECTED) >= 120
    assert len(ACCEPTED) >= 60


@pytest.mark.parametrize("name", REJECTED)
def test_a_refused_request_is_refused_in_every_split_and_nothing_behind_it_is_read(
    name: str,
) -> None:
    for parts in splits(REJECTED[name] + SMUGGLED):
        side = feed_client(parts)
        assert not side.served
        assert side.statuses in ([400], [417])
        assert b"\r\nConnection: close\r\n" in side.sent
        assert (side.closed, side.held_bytes) == (True, 0)


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_accepted_request_means_the_same_in_every_split(name: str) -> None:
    vector = ACCEPTED[name]
    expected = [served.facts() for served in feed_client([vector.data]).served]
    assert len(expected) == 1
    assert expected[0][1][1] == vector.body
    for parts in splits(vector.data):
        side = feed_client(parts)
        assert [served.facts() for served in side.served] == expected
        assert [status for status in side.statuses if status != 100] == [200]
        assert side.held_bytes == 0


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_request_behind_an_accepted_one_is_read_or_the_connection_ends(name: str) -> None:
    side = feed_client([ACCEPTED[name].data, SENTINEL])
    if side.served[0].head.keep_alive:
        assert [served.body for served in side.served] == [BODY, b"{}"]
    else:
        assert (len(side.served), side.closed) == (1, True)


@asynccontextmanager
async def recording() -> AsyncIterator[tuple[ModelServer, Client]]:
    async with (
        run_model_server() as model,
        run_proxy(Served(MODEL, [model.address])) as proxy,
        connect(proxy.port) as client,
    ):
        yield model, client


@pytest.mark.parametrize("name", REJECTED)
async def test_a_refused_request_reaches_no_model_server(name: str) -> None:
    async with recording() as (model, client):
        answer = await client.ask(REJECTED[name] + SMUGGLED)
        assert answer.status in (400, 417)
        assert answer.field(b"connection") == b"close"
        assert await client.is_closed()
        assert model.connections == 0


@pytest.mark.parametrize("name", ACCEPTED)
async def test_an_accepted_request_reaches_its_model_server_unchanged(name: str) -> None:
    vector = ACCEPTED[name]
    async with recording() as (model, client):
        answer = await client.ask(vector.data)
        if answer.status == 100:
            answer = await client.read()
        assert answer.status == 200
        (call,) = model.calls
        start = b"POST /v1/completions%b HTTP/1.1" % vector.query
        assert call.head.partition(b"\r\n")[0] == start
        assert call.body == vector.body
        host = f"{model.address[0]}:{model.address[1]}".encode()
        assert call.field(b"host") == [host]
        assert call.field(b"content-length") == [str(len(vector.body)).encode()]
        for field, value in vector.fields:
            assert value in call.field(field)
        for field in {name for name, _ in vector.fields}:
            values = [value for name, value in vector.fields if name == field]
            assert call.field(field) == values
        for field in (*vector.absent, b"transfer-encoding", b"connection"):
            assert call.field(field) == []
