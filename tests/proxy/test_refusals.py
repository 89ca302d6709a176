"""Requests that are refused before they are read: counted and logged once each, as others are."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from nimway.proxy.scrape import collect
from nimway.proxy.settings import Settings
from tests.proxy.test_conversations import MODEL
from tests.support.proxy import TEST_SETTINGS, ProxyHarness, Served, run_proxy
from tests.support.proxy_wire import Answer, connect, until

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@dataclass
class Seen:
    """A proxy and what it logs."""

    proxy: ProxyHarness
    written: list[bytes] = field(default_factory=list)

    def log(self) -> list[dict[str, Any]]:
        self.proxy.server.flush_lines()
        return [json.loads(line) for line in b"".join(self.written).splitlines()]

    def requests(self) -> list[tuple[tuple[str, ...], list[float]]]:
        return next(collect(self.proxy.server, 0)).values["requests"]

    def assert_accounted(self, answer: Answer, *, method: str, path: str = "") -> None:
        """Assert that `answer` is the one that was counted and logged."""
        assert self.requests() == [(("", path, str(answer.status)), [1])]
        [line] = self.log()
        assert line["request_id"].encode() == answer.field(b"x-request-id")
        assert (line["model"], line["path"], line["status"]) == ("", path, answer.status)
        assert (line["method"], line["bytes_out"]) == (method, len(answer.body))


@asynccontextmanager
async def watched(settings: Settings = TEST_SETTINGS) -> AsyncIterator[Seen]:
    async with run_proxy(Served(MODEL), settings=settings) as proxy:
        seen = Seen(proxy)
        proxy.server.on_lines = seen.written.append
        yield seen


@pytest.mark.parametrize(
    ("status", "method", "data"),
    [
        (400, "POST", HEAD + b"Host: b\r\n\r\n"),
        (400, "POST", HEAD + CHUNKED + b"Content-Length: 4\r\n\r\n0\r\n\r\n"),
        (400, "POST", HEAD + b"X-Request-Id: mine\r\n" + b"Content-Length: +4\r\n\r\n"),
        (400, "GET", b"GET / HTTP/1.1\nHost: a\n\n"),
        (400, "", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"),
        (400, "", b'G"\\\xff / HTTP/1.1\r\nHost: a\r\n\r\n'),
        (400, "", b"A" * 60_000 + b" / HTTP/1.1\r\nHost: a\nX"),
        (417, "POST", HEAD + b"Expect: wonders\r\n\r\n"),
        (431, "POST", HEAD + b"X: " + b"y" * 20_000 + b"\r\n\r\n"),
        (431, "GET", b"GET /" + b"a" * 70_000),
    ],
    ids=lambda value: f"{value[:24]!r} of {len(value)}" if isinstance(value, bytes) else None,
)
async def test_a_head_that_is_refused_is_counted_and_logged_once(
    status: int, method: str, data: bytes
) -> None:
    async with watched() as seen, connect(seen.proxy.port) as client:
        answer = await client.ask(data)
        assert answer.status == status
        assert await client.is_closed()
        seen.assert_accounted(answer, method=method)


async def test_a_head_that_never_ends_is_counted_and_logged_when_it_is_given_up() -> None:
    async with watched() as seen, connect(seen.proxy.port) as client:
        await client.send(HEAD)
        await until(lambda: any(not each.is_idle for each in seen.proxy.server.connections))
        assert not seen.requests()
        seen.proxy.advance(11)
        answer = await client.read()
        assert answer.status == 408
        seen.assert_accounted(answer, method="POST")


async def test_one_connection_too_many_is_counted_and_logged() -> None:
    async with (
        watched(replace(TEST_SETTINGS, connections_max=1)) as seen,
        connect(seen.proxy.port),
    ):
        await until(lambda: len(seen.proxy.server.connections) == 1)
        async with connect(seen.proxy.port) as other:
            answer = await other.read()
            assert answer.status == 503
            seen.assert_accounted(answer, method="")


async def test_a_malformed_body_is_counted_once_and_under_its_path() -> None:
    async with watched() as seen, connect(seen.proxy.port) as client:
        answer = await client.ask(HEAD + CHUNKED + b"\r\n-1\r\n")
        assert answer.status == 400
        seen.assert_accounted(answer, method="POST", path="/v1/completions")


@pytest.mark.parametrize("data", [b"", b"\r\n", b"GET / HT"])
async def test_a_client_that_leaves_before_any_answer_asked_for_nothing(data: bytes) -> None:
    async with watched() as seen:
        async with connect(seen.proxy.port) as client:
            await client.send(data)
            await until(lambda: len(seen.proxy.server.connections) == 1)
        await until(lambda: not seen.proxy.server.connections)
        assert not seen.requests()
        assert not seen.log()
