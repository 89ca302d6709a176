"""Faults: which one hits the next request, and how each breaks a connection.

Owns the list that is set at start or on the control path, and the ways of sending that misbehave.
It does not know what is sent.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, Iterable, Iterator

import msgspec
from aiohttp import web

from nimway.sandbox.nim.settings import Fault

MID_STREAM = frozenset({"reset_mid_stream", "fin_mid_stream", "stall", "slow"})
_PIECES_OF_A_BODY = 8
_GARBAGE = b"HTTP/1.1 2OO Garbage\r\nContent-Length: minus one\r\n\r\n"


class Faults:
    """The faults in force, first match wins; one with `times` disappears when it is used up."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._faults = list(faults)

    def __iter__(self) -> Iterator[Fault]:
        return iter(self._faults)

    @property
    def refusing(self) -> bool:
        """Whether the listener should be closed."""
        return any(fault.kind == "refuse" for fault in self._faults)

    def replace(self, faults: Iterable[Fault]) -> None:
        """Put `faults` in the place of all others."""
        self._faults = list(faults)

    def take(self, method: str, path: str) -> Fault | None:
        """Return the fault that hits this request, and count it."""
        for place, fault in enumerate(self._faults):
            hit = fault.path == path if fault.path else method == "POST"
            if fault.kind == "refuse" or not hit:
                continue
            if fault.times == 1:
                del self._faults[place]
            elif fault.times is not None:
                self._faults[place] = msgspec.structs.replace(fault, times=fault.times - 1)
            return fault
        return None


async def halves(body: bytes) -> AsyncGenerator[bytes, None]:
    """Cut a body that is no stream into a few chunks, so that it can be broken off too."""
    size = max(1, -(-len(body) // _PIECES_OF_A_BODY))
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def break_connection(request: web.BaseRequest, fault: Fault) -> None:
    """End the connection as `fault` wants it, and wait until aiohttp cancels the handler."""
    transport = request.transport
    if transport is not None:
        if fault.kind == "fin_mid_stream":
            transport.close()
        elif fault.kind == "garbage":
            transport.write(_GARBAGE)
            transport.close()
        else:
            await asyncio.sleep(0)  # lets written bytes leave first
            _linger_zero(transport)
            transport.abort()
    await asyncio.Event().wait()


def _linger_zero(transport: asyncio.Transport) -> None:
    """Make the coming close a TCP reset."""
    sock = transport.get_extra_info("socket")
    with socket.socket(fileno=socket.dup(sock.fileno())) as twin:
        twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
