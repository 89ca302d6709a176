"""What the parent and its workers say to each other: length-prefixed MessagePack, typed.

Owns the messages and their framing. Both ends are of one version: they run from one image.
"""

from collections.abc import Iterator

import msgspec

FRAME_BYTES_MAX = 64 * 1024 * 1024
_PREFIX_BYTES = 4


class RouteEntry(msgspec.Struct, array_like=True, frozen=True):
    """One route, as in `nimway.routes.Route`."""

    key: str
    model: str
    names: tuple[str, ...]
    namespace: str
    service: str
    created_s: int


class Table(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The whole routing table: swapped at once, then acknowledged by `Serving`."""

    revision: str
    routes: list[RouteEntry]


class ServiceEndpoints(msgspec.Struct, array_like=True, frozen=True):
    """The endpoints of one Service that may get new requests: `(address, port)`."""

    namespace: str
    service: str
    ready: list[tuple[str, int]]


class Endpoints(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """New endpoints of some Services; the others stay as they are."""

    services: list[ServiceEndpoints]


class Ready(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Whether the pod as a whole is ready, for health answers on the public port."""

    ready: bool


class Drain(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """SIGTERM reached the pod: `stop` false announces it, true closes listeners and idle ones."""

    stop: bool


class Scrape(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Please send `Counters`."""

    number: int


ToWorker = Table | Endpoints | Ready | Drain | Scrape


class Serving(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The worker serves the table of this revision."""

    revision: str


class Load(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Load of the models that changed: key to (in flight, queued, demand in total)."""

    models: dict[str, tuple[int, int, int]]


class Counters(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The worker's metrics since its start: per name, label values and numbers.

    A counter or a gauge is one number, a histogram its buckets and, last, its sum.
    """

    number: int
    values: dict[str, list[tuple[tuple[str, ...], list[float]]]]


class Drained(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """No connection is left."""


ToParent = Serving | Load | Counters | Drained


class Framer:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield each whole frame.

        Raises:
            ValueError: a frame is larger than `FRAME_BYTES_MAX`.
        """
        self._buffer += data
        while len(self._buffer) >= _PREFIX_BYTES:
            size = int.from_bytes(self._buffer[:_PREFIX_BYTES], "big")
            if size > FRAME_BYTES_MAX:
                raise ValueError("frame too large")
            end = _PREFIX_BYTES + size
            if len(self._buffer) < end:
                return
            frame = bytes(self._buffer[_PREFIX_BYTES:end])
            del self._buffer[:end]
            yield frame


def encode(message: ToWorker | ToParent) -> bytes:
    """Return `message` as one frame."""
    payload = msgspec.msgpack.encode(message)
    return len(payload).to_bytes(_PREFIX_BYTES, "big") + payload


to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
to_parent: msgspec.msgpack.Decoder[ToParent] = msgspec.msgpack.Decoder(ToParent)
