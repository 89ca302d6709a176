"""What the API server's audit log tells: who wrote what, when, and how long the server took."""

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

OPERATOR = "system:serviceaccount:nimway-system:nimway-operator"
_MUTATING = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True)
class Request:
    """One answered request; times are seconds since the epoch by the server's clock."""

    user: str
    verb: str
    resource: str
    key: str
    code: int
    received_s: float
    answered_s: float

    @property
    def is_write(self) -> bool:
        return self.verb in _MUTATING


class AuditLog:
    """The log from `mark()` on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def mark(self) -> None:
        """Begin here."""
        self._offset = self._path.stat().st_size

    def requests(self, user: str | None = None) -> Iterator[Request]:
        """Yield what has been answered since the mark, of one user or of all.

        Raises:
            RuntimeError: the API server began another file since: this one would tell of nothing.
        """
        if self._path.stat().st_size < self._offset:
            raise RuntimeError(f"{self._path} was rotated: what was written cannot be counted")
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if line.endswith(b"}\n") and (user is None or user.encode() in line):
                    request = _request(json.loads(line))
                    if request is not None and user in (None, request.user):
                        yield request

    def writes(self) -> list[Request]:
        """The operator's writes since the mark, the Lease's renewals apart."""
        return [
            each
            for each in self.requests(OPERATOR)
            if each.is_write and not each.resource.startswith("leases")
        ]

    def renewals(self) -> int:
        """How often the operator wrote its Lease since the mark."""
        return sum(
            each.is_write and each.resource.startswith("leases") for each in self.requests(OPERATOR)
        )


def count(writes: list[Request]) -> dict[str, int]:
    """Count writes by what they did; refused ones (409 and the like) stand apart."""
    counter = Counter(
        f"{each.verb} {each.resource}" + ("" if each.code < 300 else f" refused {each.code}")
        for each in writes
    )
    return dict(sorted(counter.items()))


def spacing_ms(writes: list[Request], resource: str) -> list[float]:
    """Times between successive accepted writes of one resource, measured at their arrival."""
    times = sorted(
        each.received_s for each in writes if each.resource == resource and each.code < 300
    )
    return [1000 * (after - before) for before, after in pairwise(times)]


def _request(event: dict[str, Any]) -> Request | None:
    if event["stage"] != "ResponseComplete" or "objectRef" not in event:
        return None
    target = event["objectRef"]
    resource = target.get("resource", "")
    if target.get("subresource"):
        resource += f"/{target['subresource']}"
    return Request(
        user=event["user"]["username"],
        verb=event["verb"],
        resource=resource,
        key=f"{target.get('namespace', '')}/{target.get('name', '')}",
        code=event.get("responseStatus", {}).get("code", 0),
        received_s=_seconds(event["requestReceivedTimestamp"]),
        answered_s=_seconds(event["stageTimestamp"]),
    )


def _seconds(stamp: str) -> float:
    return dt.datetime.fromisoformat(stamp).timestamp()
