"""The pipe between the parent and one worker: frames in both directions, on either side.

Owns framing and the end of the pipe; what a frame says is its owner's business.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from nimway.proxy.messages import Framer, ToParent, ToWorker, encode


class Channel(asyncio.Protocol):
    """One end of the pipe: calls `handle` with each frame, `ended` once when the pipe ends."""

    def __init__(self, handle: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        self._handle = handle
        self._ended = ended
        self._framer = Framer()
        self._transport: asyncio.Transport | None = None

    def send(self, message: ToWorker | ToParent) -> None:
        """Send a message, or drop it if the other side is gone."""
        self.send_frame(encode(message))

    def send_frame(self, frame: bytes) -> None:
        """Send an encoded message."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def close(self) -> None:
        """End the pipe."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the pipe."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand on whole frames."""
        for frame in self._framer.feed(data):
            self._handle(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side is gone."""
        del exc
        self._transport = None
        self._ended()
