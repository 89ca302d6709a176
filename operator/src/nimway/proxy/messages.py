"""What the parent and its workers say to each other: length-prefixed MessagePack, typed.

Owns the messages and their framing. Both ends are of one version: they run from one image.
"""

from collections.abc import Iterator

import msgspec

from nimway.routes import Policy

FRAME_BYTES_MAX = 64 * 1024 * 1024
PART_ROUTES = 200
PART_SERVICES = 100
_PREFIX_BYTES = 4


class RouteEntry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One route, as in `nimway.routes.Route`; no policy is the default one."""

    key: str
    model: str
    names: tuple[str, ...]
    namespace: str
    service: str
    created_s: int
    adapters: tuple[str, ...] = ()
    policy: Policy | None = None
    cold_start_s: int = 0


class Table(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """A part of the routing table; with the last one (`more` is false) the worker swaps.

    The swap is acknowledged by `Serving`.
    """

    revision: str
    routes: list[RouteEntry]
    more: bool = False


class ServiceEndpoints(msgspec.Struct, array_like=True, frozen=True):
    """The endpoints of one Service, as `(address, port)`: `ready` may get new requests.

    `starting` have an address and are not ready; the parent alone needs to know them.
    """

    namespace: str
    service: str
    ready: list[tuple[str, int]]
    starting: list[tuple[str, int]] = []


class Endpoints(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """New endpoints of some Services; the others stay as they are."""

    services: list[ServiceEndpoints]


class Sharing(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Over how many workers limits are divided: `workers` in each of `pods` ready proxy pods."""

    pods: int
    workers: int


class Ready(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Whether the pod as a whole is ready, for health answers on the public port."""

    ready: bool


class Drain(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """SIGTERM reached the pod: `stop` false announces it, true closes listeners and idle ones."""

    stop: bool


class Scrape(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Please send `Counters`."""

    number: int


class Ping(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Is the loop turning? The worker sends it back."""


ToWorker = Table | Endpoints | Sharing | Ready | Drain | Scrape | Ping


class Serving(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The worker serves the table of this revision."""

    revision: str


class Load(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Load of the models that changed: key to (in flight, queued, demand in total).

    `urgent`: a model without endpoints is asked for, report it without delay.
    """

    models: dict[str, tuple[int, int, int]]
    urgent: bool = False


class Counters(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The worker's metrics since its start: per name, label values and numbers.

    A counter or a gauge is one number, a histogram its buckets and, last, its sum. They come in
    parts, all of one number; the last one completes them (`more` is false).
    """

    number: int
    values: dict[str, list[tuple[tuple[str, ...], list[float]]]]
    more: bool = False


class Drained(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """No connection is left."""


ToParent = Serving | Load | Counters | Drained | Ping


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


def split(message: Table | Endpoints) -> Iterator[Table | Endpoints]:
    """Yield `message` in parts that a worker takes without a pause; the last one completes it."""
    if isinstance(message, Table):
        routes = message.routes
        for at in range(0, max(1, len(routes)), PART_ROUTES):
            more = at + PART_ROUTES < len(routes)
            yield Table(message.revision, routes[at : at + PART_ROUTES], more=more)
    else:
        for at in range(0, len(message.services), PART_SERVICES):
            yield Endpoints(message.services[at : at + PART_SERVICES])


def encode(message: ToWorker | ToParent) -> bytes:
    """Return `message` as one frame."""
    payload = msgspec.msgpack.encode(message)
    return len(payload).to_bytes(_PREFIX_BYTES, "big") + payload


to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
to_parent: msgspec.msgpack.Decoder[ToParent] = msgspec.msgpack.Decoder(ToParent)
