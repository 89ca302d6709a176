"""A proxy in front of a real API server that breaks what passes through it, as a test says.

`FaultyApi` listens on plain HTTP on the loopback, forwards everything with the administrator's
certificate (or with the caller's own token, if it sends one), and records each call. Rules break
requests; `Watch` objects break streams that are open. It runs in a thread of its own, so that a
test may block; rules and records are plain lists that either side only appends to or replaces.
"""

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config

from tests.support.background import in_background

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_LINE_BYTES_MAX = 8 << 20
_HOP_BY_HOP = frozenset({"host", "connection", "content-length", "transfer-encoding"})


@dataclass
class Call:
    """One request: `status` is 0 until it was answered, `at_s` and `took_s` are monotonic."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes
    at_s: float
    status: int = 0

    @property
    def parts(self) -> list[str]:
        """What follows the group and version, `namespaces/<name>` left out."""
        parts = self.path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        return parts[2:] if parts[:1] == ["namespaces"] and len(parts) > 2 else parts

    @property
    def plural(self) -> str:
        return self.parts[0] if self.parts else ""

    @property
    def name(self) -> str:
        return self.parts[1] if len(self.parts) > 1 else ""

    @property
    def subresource(self) -> str:
        return self.parts[2] if len(self.parts) > 2 else ""

    @property
    def is_watch(self) -> bool:
        return self.query.get("watch") == "true"

    @property
    def is_write(self) -> bool:
        return self.method in WRITES

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def __str__(self) -> str:
        return f"{self.method} {'/'.join(self.parts)}"


class Exchange:
    """One call in the hands of a rule: forward it, answer it, or cut it."""

    def __init__(self, api: "FaultyApi", request: web.BaseRequest, call: Call) -> None:
        self.call = call
        self._api = api
        self._request = request

    async def forward(self) -> tuple[int, bytes, str]:
        """Let the API server do it; return status, body and content type."""
        async with self._api.send(self._request, self.call) as answer:
            content = await answer.read()
            return answer.status, content, answer.headers.get("Content-Type", "")

    async def relay(self) -> web.StreamResponse:
        """Forward it and give the answer back."""
        status, content, kind = await self.forward()
        self.call.status = status
        return web.Response(status=status, body=content, headers={"Content-Type": kind})

    def answer(
        self, status: int, reason: str, message: str, causes: tuple[str, ...] = ()
    ) -> web.StreamResponse:
        """Answer in the API server's form, without asking it."""
        self.call.status = status
        body: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
        body |= {"code": status, "reason": reason, "message": message}
        if causes:
            body["details"] = {"causes": [{"reason": cause} for cause in causes]}
        headers = {"Retry-After": "1"} if status == 429 else {}
        return web.json_response(body, status=status, headers=headers)

    def cut(self) -> web.StreamResponse:
        """Reset the connection."""
        if self._request.transport is not None:
            self._request.transport.abort()
        return web.Response(status=500)


Act = Callable[[Exchange], Awaitable[web.StreamResponse]]
Match = Callable[[Call], bool]


@dataclass(eq=False)
class Rule:
    """What to do with calls that match, at most `times`; `hits` are the calls it was done to."""

    match: Match
    act: Act
    times: int | None = None
    hits: list[Call] = field(default_factory=list)

    def takes(self, call: Call) -> bool:
        if (self.times is not None and len(self.hits) >= self.times) or not self.match(call):
            return False
        self.hits.append(call)
        return True


@dataclass(eq=False)
class Watch:
    """An open watch. What is put into `commands` happens to it."""

    call: Call
    commands: "asyncio.Queue[tuple[str, bytes]]" = field(default_factory=asyncio.Queue)
    is_frozen: bool = False


class FaultyApi:
    """See the module; `start` makes one."""

    def __init__(self, host: str, context: ssl.SSLContext) -> None:
        self._host = host
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._session: aiohttp.ClientSession | None = None
        self._transports: set[asyncio.Transport] = set()
        self._upstreams: set[asyncio.Transport] = set()
        self.port = 0
        self.calls: list[Call] = []
        self.rules: list[Rule] = []
        self.watches: list[Watch] = []
        self.drops_event: Callable[[dict[str, Any]], bool] = lambda _: False
        self.is_down = False

    # What tests call, from their own thread.

    def on(self, match: Match, act: Act, *, times: int | None = None) -> Rule:
        """Add a rule; the first that takes a call decides."""
        rule = Rule(match, act, times)
        self.rules = [*self.rules, rule]
        return rule

    def heal(self) -> None:
        """Drop all rules."""
        self.rules, self.is_down, self.drops_event = [], False, lambda _: False

    def go_down(self) -> None:
        """Reset every connection, and each new one, until `heal`."""
        self.is_down = True
        self._loop.call_soon_threadsafe(self._abort_all)

    def open_watches(self, plural: str) -> list[Watch]:
        """Return the open watches of a kind, or of all kinds if it is empty."""
        return [each for each in self.watches if plural in {"", each.call.plural}]

    def cut_watches(self, plural: str = "") -> int:
        """End watches as a closed connection does."""
        return self._command(plural, "cut", b"")

    def freeze_watches(self, plural: str = "") -> int:
        """Pass nothing more on, and close nothing."""
        return self._command(plural, "freeze", b"")

    def send_to_watches(self, plural: str, line: bytes, *, end: bool = True) -> int:
        """Put bytes into watches, and end them."""
        return self._command(plural, "end" if end else "send", line)

    def writes(self, *plurals: str) -> list[Call]:
        """Return the recorded writes, Lease renewals apart."""
        return [
            call
            for call in self.calls
            if call.is_write and call.plural != "leases" and (not plurals or call.plural in plurals)
        ]

    def kubeconfig(self, path: Path, token: str = "") -> Path:
        """Write a kubeconfig that leads here."""
        user = {"token": token} if token else {}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "faulty",
            "contexts": [{"name": "faulty", "context": {"cluster": "faulty", "user": "faulty"}}],
            "clusters": [
                {"name": "faulty", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
            ],
            "users": [{"name": "faulty", "user": user}],
        }
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return path

    # The proxy itself, in its own thread.

    def _command(self, plural: str, what: str, line: bytes) -> int:
        chosen = self.open_watches(plural)
        for watch in chosen:
            self._loop.call_soon_threadsafe(watch.commands.put_nowait, (what, line))
        return len(chosen)

    def _abort_all(self) -> None:
        for transport in list(self._transports):
            transport.abort()

    @contextlib.asynccontextmanager
    async def serve(self) -> "AsyncIterator[FaultyApi]":
        connector = aiohttp.TCPConnector(ssl=self._context, limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, read_bufsize=_LINE_BYTES_MAX, auto_decompress=True
        ) as session:
            self._session = session
            server = web.Server(self._handle, handler_cancellation=True, access_log=None)
            runner = web.ServerRunner(server, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.port = runner.addresses[0][1]
            try:
                yield self
            finally:
                self._abort_all()
                await runner.cleanup()
                # A watch that was cut says goodbye by TLS, for as long as its server takes.
                for transport in self._upstreams:
                    transport.abort()

    @contextlib.asynccontextmanager
    async def send(
        self, request: web.BaseRequest, call: Call
    ) -> "AsyncIterator[aiohttp.ClientResponse]":
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in _HOP_BY_HOP | {"accept-encoding"}
        }
        assert self._session is not None
        asking = self._session.request(
            call.method,
            f"{self._host}{request.raw_path if hasattr(request, 'raw_path') else request.path_qs}",
            data=call.body or None,
            headers=headers,
        )
        async with asking as answer:
            if answer.connection is not None and answer.connection.transport is not None:
                self._upstreams.add(answer.connection.transport)
            yield answer

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        call = Call(
            method=request.method,
            path=request.path,
            query=dict(request.query),
            body=await request.read(),
            at_s=time.monotonic(),
        )
        self.calls.append(call)
        exchange = Exchange(self, request, call)
        if self.is_down:
            return exchange.cut()
        transport = request.transport
        if transport is not None:
            self._transports.add(transport)
        for rule in self.rules:
            if rule.takes(call):
                return await rule.act(exchange)
        if call.is_watch:
            return await self._watch(request, call)
        return await exchange.relay()

    async def _watch(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        watch = Watch(call)
        async with self.send(request, call) as upstream:
            call.status = upstream.status
            answer = web.StreamResponse(status=upstream.status)
            answer.content_type = "application/json"
            await answer.prepare(request)
            self.watches.append(watch)
            try:
                await self._pump(upstream, answer, watch)
            finally:
                self.watches.remove(watch)
        return answer

    async def _pump(
        self, upstream: aiohttp.ClientResponse, answer: web.StreamResponse, watch: Watch
    ) -> None:
        line = asyncio.ensure_future(upstream.content.readline())  # noqa: TID251 - waited for below
        command = asyncio.ensure_future(watch.commands.get())  # noqa: TID251 - waited for below
        try:
            while True:
                await asyncio.wait({line, command}, return_when=asyncio.FIRST_COMPLETED)
                if command.done():
                    what, content = command.result()
                    command = asyncio.ensure_future(watch.commands.get())  # noqa: TID251 - as above
                    watch.is_frozen = watch.is_frozen or what == "freeze"
                    if what in {"end", "send"}:
                        await answer.write(content)
                    if what in {"end", "cut"}:
                        return
                    continue
                event = line.result()
                if not event:
                    return
                if not watch.is_frozen and not self.drops_event(json.loads(event)):
                    await answer.write(event)
                line = asyncio.ensure_future(upstream.content.readline())  # noqa: TID251 - as above
        finally:
            line.cancel()
            command.cancel()


# What a rule can do.


async def reset(exchange: Exchange) -> web.StreamResponse:
    """Reset the connection before the API server hears of it."""
    return exchange.cut()


async def lose_reply(exchange: Exchange) -> web.StreamResponse:
    """Let the API server do it, and reset the connection instead of answering."""
    await exchange.forward()
    return exchange.cut()


async def hang(exchange: Exchange) -> web.StreamResponse:
    """Neither forward nor answer, for longer than any client waits."""
    await asyncio.Event().wait()
    return exchange.cut()


def refuse(
    status: int, reason: str, message: str = "injected", *, causes: tuple[str, ...] = ()
) -> Act:
    """Answer with a failure, and with the reasons of its causes."""

    async def act(exchange: Exchange) -> web.StreamResponse:
        return exchange.answer(status, reason, message, causes)

    return act


def slow(delay_s: float) -> Act:
    """Take `delay_s` before the API server hears of it."""

    async def act(exchange: Exchange) -> web.StreamResponse:
        await asyncio.sleep(delay_s)
        return await exchange.relay()

    return act


def instead(what: Callable[[], None]) -> Act:
    """Do `what` before the API server hears of it; it never does."""

    async def act(exchange: Exchange) -> web.StreamResponse:
        what()
        return exchange.cut()

    return act


def afterwards(what: Callable[[], None]) -> Act:
    """Let the API server do it, then do `what` instead of answering."""

    async def act(exchange: Exchange) -> web.StreamResponse:
        await exchange.forward()
        what()
        return exchange.cut()

    return act


def every(count: int, match: Match) -> Match:
    """Match every `count`-th call that `match` matches, the first one included."""
    seen = [0]

    def chosen(call: Call) -> bool:
        if not match(call):
            return False
        seen[0] += 1
        return seen[0] % count == 1 or count == 1

    return chosen


@contextlib.contextmanager
def faulty_api(kubeconfig: Path) -> Iterator[FaultyApi]:
    """Start a proxy in front of the cluster that a kubeconfig names."""
    with in_background(_serve(kubeconfig)) as api:
        yield api


@contextlib.asynccontextmanager
async def _serve(kubeconfig: Path) -> AsyncIterator[FaultyApi]:
    configuration = kubernetes_client.Configuration()
    await kubernetes_config.load_kube_config(str(kubeconfig), client_configuration=configuration)
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    context.load_cert_chain(str(configuration.cert_file), configuration.key_file)
    async with FaultyApi(configuration.host.rstrip("/"), context).serve() as api:
        yield api
