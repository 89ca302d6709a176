"""What a simulated NIM received: the evidence for tests about retries, cancels and bytes.

Owns one entry per request, the newest `ENTRIES_MAX` of them. Values of `authorization` and the like
are never kept.
"""

import hashlib
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

ENTRIES_MAX = 10_000
_HIDDEN = frozenset({"authorization", "x-api-key", "cookie", "proxy-authorization"})


@dataclass(slots=True)
class Entry:
    """One received request and what became of it.

    `outcome` is `open`, `answered`, `cancelled` (the client left), or `fault:<kind>`. `executed`
    says that the engine ran it. `headers` are name and value as received, secrets replaced.
    """

    number: int
    method: str
    path: str
    request_id: str
    headers: list[tuple[str, str]]
    model: str = ""
    body_bytes: int = 0
    body_sha256: str = ""
    executed: bool = False
    status: int = 0
    chunks: int = 0
    outcome: str = "open"


@dataclass(slots=True)
class Ledger:
    """The entries, oldest first, and how many there ever were."""

    entries: deque[Entry] = field(default_factory=lambda: deque(maxlen=ENTRIES_MAX))
    received: int = 0

    def open(self, method: str, path: str, headers: Iterable[tuple[str, str]]) -> Entry:
        """Add a request whose head has been read."""
        self.received += 1
        seen = [
            (str(name), "(hidden)" if name.lower() in _HIDDEN else _printable(value))
            for name, value in headers
        ]
        request_id = next((value for name, value in seen if name.lower() == "x-request-id"), "")
        entry = Entry(self.received, method, _printable(path), request_id, seen)
        self.entries.append(entry)
        return entry

    def clear(self) -> None:
        """Forget all entries; the numbering goes on."""
        self.entries.clear()

    def executions(self) -> dict[str, Any]:
        """Return per x-request-id how often it was received, run, answered and cancelled."""
        ids: dict[str, dict[str, int]] = {}
        for entry in self.entries:
            counts = ids.setdefault(
                entry.request_id, {"received": 0, "executed": 0, "answered": 0, "cancelled": 0}
            )
            counts["received"] += 1
            counts["executed"] += entry.executed
            if entry.outcome in counts:
                counts[entry.outcome] += 1
        return {
            "received": len(self.entries),
            "executed": sum(entry.executed for entry in self.entries),
            "by_request_id": ids,
        }

    def last(self) -> dict[str, Any] | None:
        """Return the newest entry, None if there is none."""
        return asdict(self.entries[-1]) if self.entries else None


def _printable(text: str) -> str:
    """Replace the surrogates that stand for bytes which are no UTF-8."""
    return text.encode("utf-8", "replace").decode()


def digest(body: bytes) -> str:
    """Return the SHA-256 of a body in hexadecimal."""
    return hashlib.sha256(body).hexdigest()
