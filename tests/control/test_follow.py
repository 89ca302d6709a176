"""A collection is followed over real sockets, to a server that answers as each test tells it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import parse_qsl, urlsplit

import pytest
from kubernetes.aio import client as kubernetes_client

from nimway.control import client as client_module
from nimway.control.client import ApiError, ExpiredError, KubeClient, ServerError, TransientError
from nimway.control.follow import BACKOFF_FIRST_S, BACKOFF_MAX_S, Follower
from nimway.control.kinds import SERVICE, Manifest
from nimway.tasks import spawn

Seen = list[tuple[str, str]]


def _event(kind: str, version: str, name: str = "a") -> bytes:
    item = {"metadata": {"name": name, "namespace": "n", "resourceVersion": version}}
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def _error(code: int) -> bytes:
    status = {"kind": "Status", "code": code, "reason": "Expired", "message": "too old"}
    return json.dumps({"type": "ERROR", "object": status}).encode() + b"\n"


class Server:
    """Answers each request with the next of `answers`: a status and pieces of a body.

    `b""` as a piece keeps the connection open for ever; without more answers every one hangs.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[int, list[bytes]]] = []
        self.queries: list[dict[str, str]] = []
        self.idle = asyncio.Event()
        self.port = 0
        self.open = 0
        self.all_closed = asyncio.Event()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.all_closed.clear()
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            target = head.split(b" ", 2)[1].decode()
            self.queries.append(dict(parse_qsl(urlsplit(target).query)))
            status, pieces = self.answers.pop(0) if self.answers else (200, [b""])
            if not self.answers and pieces[-1:] == [b""]:
                self.idle.set()
            writer.write(f"HTTP/1.1 {status} X\r\nConnection: close\r\n\r\n".encode())
            for piece in pieces:
                if not piece:
                    await reader.read()
                writer.write(piece)
                await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self.open -= 1
        if not self.open:
            self.all_closed.set()


@asynccontextmanager
async def _serving() -> AsyncIterator[tuple[Server, KubeClient]]:
    server = Server()
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    client = KubeClient(kubernetes_client.Configuration(host=f"http://127.0.0.1:{server.port}"))
    try:
        async with asyncio.timeout(10):
            yield server, client
    finally:
        await client.close()
        listener.close()
        await server.all_closed.wait()


async def _watched(client: KubeClient) -> Seen:
    events = client.watch(SERVICE, "n", selector="a=b", version="5", duration_s=30)
    return [(event, item["metadata"]["resourceVersion"]) async for event, item in events]


@pytest.mark.parametrize("step", [1, 7, 64, 10_000])
async def test_events_arrive_however_the_stream_is_cut(step: int) -> None:
    stream = _event("ADDED", "6") + _event("BOOKMARK", "8") + _event("DELETED", "9")
    pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
    async with _serving() as (server, client):
        server.answers = [(200, pieces)]
        assert await _watched(client) == [("ADDED", "6"), ("BOOKMARK", "8"), ("DELETED", "9")]
    assert server.queries == [
        {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": "5",
            "timeoutSeconds": "30",
            "labelSelector": "a=b",
        }
    ]


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, _error(410), ExpiredError),
        (200, _error(500), ExpiredError),
        (200, b'{"type": "MODIFIED", "object": {"me', ExpiredError),
        (200, b"not json\n", ExpiredError),
        (200, b"x" * 2000, ExpiredError),
        (410, b"{}", ExpiredError),
        (503, b"{}", TransientError),
        (500, b'{"reason": "InternalError"}', ServerError),
        (403, b'{"reason": "Forbidden"}', ApiError),
    ],
    ids=["410", "500", "truncated", "not json", "endless", "refused 410", "503", "webhook", "403"],
)
async def test_a_watch_that_breaks_says_whether_only_a_list_helps(
    status: int, body: bytes, error: type[ApiError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "LINE_BYTES_MAX", 1000)
    async with _serving() as (server, client):
        server.answers = [(status, [body])]
        with pytest.raises(error):
            await _watched(client)


async def test_a_frozen_watch_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FROZEN_S", 0.05)
    async with _serving() as (server, client):
        server.answers = [(200, [_event("ADDED", "6"), b""])]
        with pytest.raises(TransientError):
            async for _ in client.watch(SERVICE, "n", version="5", duration_s=0.05):
                pass


class Life:
    """A follower's life until the server has nothing more to say."""

    def __init__(self) -> None:
        self.seen: Seen = []
        self.lists = 0
        self.waits_s: list[float] = []
        self.now_s = 0.0

    async def relist(self) -> str:
        self.lists += 1
        return f"{100 * self.lists}"

    def take(self, event: str, manifest: Manifest) -> None:
        self.seen.append((event, manifest["metadata"]["resourceVersion"]))

    async def sleep(self, delay_s: float) -> None:
        self.waits_s.append(delay_s)
        self.now_s += delay_s

    async def lead(self, *answers: tuple[int, list[bytes]]) -> list[str]:
        """Answer so, and return the versions from which was watched."""
        async with _serving() as (server, client):
            server.answers = [*answers, (200, [b""])]
            follower = Follower(
                client,
                (SERVICE, "n", ""),
                relist=self.relist,
                take=self.take,
                clock=lambda: self.now_s,
                jitter=lambda: 0.5,
                sleep=self.sleep,
            )
            task = spawn(follower.run("5"), name="follower")
            await server.idle.wait()
            task.cancel()
            await asyncio.wait({task})
        return [query["resourceVersion"] for query in server.queries]


async def test_a_broken_watch_goes_on_from_the_last_version_bookmarks_included() -> None:
    life = Life()
    versions = await life.lead(
        (200, [_event("ADDED", "6"), _event("BOOKMARK", "8")]), (503, [b"{}"])
    )
    assert versions == ["5", "8", "8"]
    assert life.lists == 0
    assert life.seen == [("ADDED", "6"), ("BOOKMARK", "8")]


@pytest.mark.parametrize(
    "answer",
    [(200, [_error(410)]), (410, [b"{}"]), (403, [b"{}"]), (200, [b"not json\n"])],
    ids=["expired", "410", "403", "broken"],
)
async def test_where_the_version_is_of_no_use_a_list_says_what_is(
    answer: tuple[int, list[bytes]],
) -> None:
    life = Life()
    assert await life.lead(answer) == ["5", "100"]
    assert life.lists == 1


async def test_a_server_that_refuses_is_asked_ever_less_often() -> None:
    life = Life()
    await life.lead(*[(503, [b"{}"])] * 8)
    assert life.waits_s[0] == BACKOFF_FIRST_S
    assert life.waits_s == sorted(life.waits_s)
    assert life.waits_s[-1] == BACKOFF_MAX_S


async def test_a_server_that_ends_watches_at_once_is_not_asked_at_once() -> None:
    life = Life()
    await life.lead(*[(200, list[bytes]())] * 3)
    assert len(life.waits_s) == 3
    assert life.lists == 0


async def test_an_unforeseen_error_ends_the_follower() -> None:
    def take(event: str, manifest: Manifest) -> None:
        raise RuntimeError(event, manifest)

    life = Life()
    async with _serving() as (server, client):
        server.answers = [(200, [_event("ADDED", "6")])]
        follower = Follower(
            client,
            (SERVICE, "n", ""),
            relist=life.relist,
            take=take,
            clock=lambda: 0.0,
            jitter=lambda: 0.5,
        )
        with pytest.raises(RuntimeError):
            await follower.run("5")
