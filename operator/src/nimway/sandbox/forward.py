"""The way in from the host: listening sockets of the host, served from inside the sandbox.

A listening socket belongs to the network namespace that made it, so the host opens it and hands
over the descriptor; inside, each accepted connection is joined to the API server or to a ready pod
of a Service. Owns copying bytes and following EndpointSlices; never looks into what it copies.
"""

import asyncio
import itertools
import json
import socket
from collections.abc import Callable
from typing import Any, Final

from nimway.sandbox.client import Client
from nimway.sandbox.config import SandboxConfig
from nimway.tasks import spawn

Address = tuple[str, int]
_CHUNK_BYTES: Final = 256 * 1024
_REQUEST_BYTES_MAX: Final = 4096


class Forwarder:
    """Every forwarding of one sandbox, and the unix socket on which the host asks for more."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._servers: list[asyncio.Server] = []

    async def serve(self, listener: socket.socket, choose: Callable[[], Address | None]) -> None:
        """Join each connection accepted on `listener` to the address that `choose` returns."""

        async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _join(reader, writer, choose())

        listener.setblocking(False)
        self._servers.append(await asyncio.start_server(joined, sock=listener))

    async def listen(self, config: SandboxConfig) -> None:
        """Take requests `{"namespace", "service", "port"}` or `{"address", "port"}` for ever."""
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.bind(str(config.control_socket))
        control.listen(16)
        control.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(control)
            spawn(self._answer(connection), name="forward-request")

    async def _answer(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(connection.fileno(), readable.set)
        try:
            await readable.wait()
            message, descriptors, _, _ = socket.recv_fds(connection, _REQUEST_BYTES_MAX, 1)
        finally:
            loop.remove_reader(connection.fileno())
        with connection:
            if message and descriptors:
                listener = socket.socket(fileno=descriptors[0])
                await self.serve(listener, await self._chooser(json.loads(message)))
                await loop.sock_sendall(connection, b"{}")

    async def _chooser(self, request: dict[str, Any]) -> Callable[[], Address | None]:
        if "address" in request:
            fixed = (request["address"], request["port"])
            return lambda: fixed
        service = ServiceEndpoints(request["port"])
        spawn(
            service.follow(self._client, request["namespace"], request["service"]),
            name=f"forward-{request['service']}",
        )
        await service.listed.wait()
        return service.choose


class ServiceEndpoints:
    """The ready pods behind one named port of a Service, taken in turn."""

    def __init__(self, port_name: str) -> None:
        self._port_name = port_name
        self._slices: dict[str, list[Address]] = {}
        self._turn = itertools.count()
        self.listed = asyncio.Event()
        """Set once the addresses are known."""

    def choose(self) -> Address | None:
        """Return the next ready address, None when there is none."""
        ready = [address for slice_ in self._slices.values() for address in slice_]
        return ready[next(self._turn) % len(ready)] if ready else None

    async def follow(self, client: Client, namespace: str, service: str) -> None:
        """Keep the addresses current for ever."""
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        selector = f"kubernetes.io/service-name={service}"
        async for kind, item in client.follow(path, labelSelector=selector):
            if kind == "SYNCED":
                self._slices = {
                    each["metadata"]["name"]: self.ready(each) for each in item["items"]
                }
                self.listed.set()
            elif kind == "DELETED":
                self._slices.pop(item["metadata"]["name"], None)
            else:
                self._slices[item["metadata"]["name"]] = self.ready(item)

    def ready(self, slice_: dict[str, Any]) -> list[Address]:
        """Return the addresses of an EndpointSlice's ready endpoints."""
        ports = [
            port["port"]
            for port in slice_.get("ports") or []
            if port.get("name", "") == self._port_name
        ]
        return [
            (address, ports[0])
            for endpoint in slice_.get("endpoints") or []
            if ports and endpoint.get("conditions", {}).get("ready")
            for address in endpoint["addresses"]
        ]


async def _join(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: Address | None
) -> None:
    """Copy bytes both ways until both sides have ended; without an address, hang up."""
    try:
        if address is None:
            writer.transport.abort()
            return
        inner_reader, inner_writer = await asyncio.open_connection(*address)
        try:
            await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))
        finally:
            inner_writer.transport.abort()
    except OSError:
        pass
    finally:
        writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
