"""The proxy pods as a client sees them, each over one connection that stays open; and a model.

Every answer is read to its end; no HTTP library, so that a poll costs some 50 µs here.
"""

import asyncio
import json
import time
from collections.abc import Callable

from nimway.sandbox.config import BRIDGE_ADDRESS

PORT = 8000
POLL_S = 0.002
_DEADLINE_S = 20.0
_OK = 200


class ProxyPod:
    """One connection to one proxy pod."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, address: str) -> "ProxyPod":
        return cls(*await asyncio.open_connection(address, PORT, limit=1 << 22))

    def close(self) -> None:
        self._writer.close()

    async def models(self) -> bytes:
        """Return the body of GET /v1/models."""
        self._writer.write(b"GET /v1/models HTTP/1.1\r\nhost: bench\r\n\r\n")
        return (await self._answer())[1]

    async def complete(self, model: str) -> int:
        """Ask for a completion and return the status code."""
        body = json.dumps({"model": model, "prompt": "x", "max_tokens": 1}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(body)}\r\n"
        self._writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        return (await self._answer())[0]

    async def _answer(self) -> tuple[int, bytes]:
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        _, found, rest = head.partition(b"content-length:")
        if not found:
            raise ValueError(f"an answer without content-length: {head!r}")
        body = await self._reader.readexactly(int(rest.partition(b"\r\n")[0]))
        return int(head.split(b" ", 2)[1]), body

    async def until_listed(self, model: str, *, listed: bool = True) -> float:
        """Poll /v1/models until `model` is (not) listed, and return when that was answered."""
        name = f'"{model}"'.encode()
        return await self._poll(lambda body: (name in body) == listed)

    async def _poll(self, test: Callable[[bytes], bool]) -> float:
        deadline_s = time.perf_counter() + _DEADLINE_S
        while not test(await self.models()):
            if time.perf_counter() > deadline_s:
                raise TimeoutError("the proxy did not get there")
            await asyncio.sleep(POLL_S)
        return time.perf_counter()

    async def served(self, model: str) -> float:
        """Ask for a completion, which may have to wait, and return when it was answered."""
        if (status := await self.complete(model)) != _OK:
            raise ValueError(f"the proxy answered {status}")
        return time.perf_counter()


class Upstream:
    """A model server that answers at once, on the sandbox's bridge: what a pretended pod lacks.

    It is as `ready` as it is told: a proxy asks it itself while requests wait.
    """

    address = BRIDGE_ADDRESS
    _ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    _LOADING = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"

    def __init__(self) -> None:
        self.ready = True

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.address, PORT)

    def stop(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                writer.write(self._ANSWER if self.ready else self._LOADING)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
