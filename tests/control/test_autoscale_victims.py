"""Which pods go first: those with the fewest requests, as their servers count them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from nimway.control import victims

NIM_1 = """\
# HELP num_requests_running Requests running now.
# TYPE num_requests_running gauge
num_requests_running{model_name="a,b"} 3
num_requests_waiting{model_name="a"} 2.0
gpu_cache_usage_perc 0.5
"""
NIM_2 = 'vllm:num_requests_running{engine="0"} 1.0\nvllm:num_requests_waiting{engine="0"} 0.0\n'


@pytest.mark.parametrize(("text", "requests"), [(NIM_1, 5), (NIM_2, 1)])
def test_both_generations_of_metrics_are_read(text: str, requests: int) -> None:
    assert victims.requests_in(text) == requests


@pytest.mark.parametrize("text", ["", "up 1\n", "num_requests_running x\n", "num_requests_running"])
def test_metrics_without_the_counts_are_refused(text: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        victims.requests_in(text)


def test_who_does_not_answer_counts_as_the_busiest() -> None:
    assert victims.costs({"a": 3, "b": 0, "c": None}) == {"a": 3, "b": 0, "c": 4}


def test_where_nobody_answers_kubernetes_chooses() -> None:
    assert victims.costs({"a": None, "b": None}) == {}
    assert victims.costs({}) == {}


@asynccontextmanager
async def _server(answer: bytes, address: str, port: int = 0) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, address, port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def _ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


async def test_each_server_is_asked_and_one_that_fails_holds_up_nobody() -> None:
    async with (
        _server(_ok(NIM_1.encode()), "127.0.0.1") as port,
        _server(b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n", "127.0.0.2", port),
        _server(_ok(b"num_requests_running"), "127.0.0.4", port),
    ):
        addresses = {"a": "127.0.0.1", "b": "127.0.0.2", "c": "127.0.0.3", "d": "127.0.0.4"}
        found = await victims.count_requests(addresses, port)
    assert found == {"a": 5, "b": None, "c": None, "d": None}
