"""Which endpoint is meant for a key: consistent hashing with bounded load (pure).

A ring follows from the endpoints' addresses alone, so every worker of every proxy has the same, and
an endpoint that comes or goes moves only the keys next to it. The load bound is local: an endpoint
takes a request only below `LOAD_FACTOR` times the mean of requests under way, else the next on the
ring does (Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads, 2016).
"""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from functools import lru_cache
from hashlib import blake2b
from math import ceil
from typing import Generic, Protocol, TypeVar

LOAD_FACTOR = 1.25
_DIGESTS = 16
_POINT_BYTES = 8
_POINTS = _DIGESTS * 64 // _POINT_BYTES
"""Points of one endpoint on the ring: 128 keep the shares of endpoints within about a fifth."""


class Node(Protocol):
    """What stands on the ring."""

    @property
    def authority(self) -> bytes:
        """Address and port: where the node stands."""

    @property
    def outstanding(self) -> int:
        """Requests under way."""


N = TypeVar("N", bound=Node)


class Ring(Generic[N]):
    """The nodes, each at `_POINTS` places of a circle of 64 bits."""

    __slots__ = ("_owners", "_points", "size")

    def __init__(self, nodes: Sequence[N]) -> None:
        places = sorted(
            (point, node.authority, at)
            for at, node in enumerate(nodes)
            for point in _points_of(node.authority)
        )
        self.size = len(nodes)
        self._points = [point for point, _, _ in places]
        self._owners = [nodes[at] for _, _, at in places]

    def choose(self, key: bytes, fit: Collection[N]) -> N | None:
        """Return the first node from `key` on that is fit and below the bound, or None.

        The bound is `LOAD_FACTOR` times the mean load of the fit, this request included, rounded
        up: at least one of them is below it.
        """
        if not fit:
            return None
        load = 1 + sum(node.outstanding for node in fit)
        bound = ceil(LOAD_FACTOR * load / len(fit))
        owners = self._owners
        start = bisect_left(self._points, _hash(key))
        passed: set[int] = set()
        for at in range(start, start + len(owners)):
            node = owners[at % len(owners)]
            if id(node) in passed:
                continue
            if node.outstanding < bound and node in fit:
                return node
            passed.add(id(node))
            if len(passed) == self.size:
                break
        return None


def _hash(key: bytes) -> int:
    return int.from_bytes(blake2b(key, digest_size=_POINT_BYTES).digest(), "big")


@lru_cache(maxsize=4096)
def _points_of(authority: bytes) -> tuple[int, ...]:
    digests = b"".join(
        blake2b(authority, salt=number.to_bytes(2, "big")).digest() for number in range(_DIGESTS)
    )
    return tuple(
        int.from_bytes(digests[at : at + _POINT_BYTES], "big")
        for at in range(0, len(digests), _POINT_BYTES)
    )
