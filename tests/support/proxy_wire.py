"""Raw sockets on both sides of a proxy: a scripted model server, and a client that sees bytes."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from nimway.tasks import spawn

OK_BODY = b'{"object":"text_completion"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 28\r\n\r\n" + OK_BODY
SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def post(body: bytes, *, path: str = "/v1/completions", fields: str = "") -> bytes:
    """A whole POST."""
    head = f"POST {path} HTTP/1.1\r\nHost: proxy\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chunk(data: bytes) -> bytes:
    """One chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass
class Call:
    """One request as a model server got it, and its connection to answer on."""

    head: bytes
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def field(self, name: bytes) -> list[bytes]:
        lines = self.head.split(b"\r\n")[1:]
        pairs = (line.partition(b":") for line in lines)
        return [value.strip() for key, _, value in pairs if key.lower() == name.lower()]

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def wait_closed(self) -> None:
        """Wait until the proxy closes the connection."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass

    def reset(self) -> None:
        """Close with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


async def answer_ok(call: Call) -> None:
    await call.send(OK)


@dataclass
class ModelServer:
    """Answers by `script`; `calls` is what it got, `connections` how many were opened."""

    script: Callable[[Call], Awaitable[None]] = answer_ok
    calls: list[Call] = field(default_factory=list)
    connections: int = 0
    address: tuple[str, int] = ("", 0)
    called: asyncio.Event = field(default_factory=asyncio.Event)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                call = Call(head, b"", reader, writer)
                call.body = await reader.readexactly(
                    int((call.field(b"content-length") or [b"0"])[0])
                )
                self.calls.append(call)
                self.called.set()
                await self.script(call)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()


@contextlib.asynccontextmanager
async def run_model_server(
    script: Callable[[Call], Awaitable[None]] = answer_ok,
) -> AsyncIterator[ModelServer]:
    """Run a model server on loopback."""
    model = ModelServer(script)

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        spawn(model.serve(reader, writer), name="model server")

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=2**24)
    model.address = server.sockets[0].getsockname()
    try:
        yield model
    finally:
        server.close()
        for writer in list(model.writers):
            writer.transport.abort()
        while model.writers:  # noqa: ASYNC110 # their tasks end in the loop's next turns
            await asyncio.sleep(0)


@dataclass
class Answer:
    """One answer as the client saw it; `clean`: it ended as its framing says."""

    head: bytes
    body: bytes
    clean: bool

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    def field(self, name: bytes) -> bytes | None:
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.lower() == name.lower():
                return value.strip()
        return None


class Client:
    """A client that reads answers with a parser of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, data: bytes) -> Answer:
        await self.send(data)
        return await self.read()

    async def read(self, *, method: bytes = b"POST") -> Answer:
        """Read one answer."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        answer = Answer(head, b"", clean=False)
        if method == b"HEAD" or answer.status in (204, 304) or answer.status < 200:
            answer.clean = True
            return answer
        try:
            if answer.field(b"transfer-encoding") is not None:
                await self._read_chunks(answer)
            elif (length := answer.field(b"content-length")) is not None:
                answer.body = await self.reader.readexactly(int(length))
            else:
                answer.body = await self.reader.read(-1)
            answer.clean = True
        except asyncio.IncompleteReadError as error:
            answer.body += error.partial
        except ConnectionError:
            pass
        return answer

    async def _read_chunks(self, answer: Answer) -> None:
        pieces: list[bytes] = []
        try:
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                pieces.append((await self.reader.readexactly(size + 2))[:-2])
        finally:
            answer.body = b"".join(pieces)
        while await self.reader.readuntil(b"\r\n") != b"\r\n":
            pass

    async def is_closed(self) -> bool:
        """Wait for the proxy's end of the connection; False if bytes come instead."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def connect(port: int) -> AsyncIterator[Client]:
    """A client's connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def until(condition: Callable[[], bool], *, timeout_s: float = 5.0) -> None:
    """Let the loop turn until `condition` holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 # what is waited for sets no event
            await asyncio.sleep(0.001)
