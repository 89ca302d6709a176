"""Which endpoint gets a request: a pure function of endpoints, counters and one random number.

Least outstanding requests, ties at random. An ejected endpoint is left out, unless all are: then
ejecting is no help, and one of them is tried. Which endpoint is meant for a key: `ring.py`.
"""

from collections.abc import Container, Sequence
from typing import Protocol, TypeVar

from nimway.proxy.health import Health


class Candidate(Protocol):
    """What choosing looks at: the requests under way, and how the endpoint did lately."""

    @property
    def outstanding(self) -> int:
        """Requests under way."""

    @property
    def health(self) -> Health:
        """Ejection state."""


C = TypeVar("C", bound=Candidate)


def choose_least(candidates: Sequence[C], tried: Container[C], now: float, pick: float) -> C | None:
    """Return the candidate with the least requests under way, or None if all were tried.

    `pick` is a random number, 0 <= pick < 1, that decides among equals.
    """
    if len(candidates) == 1:
        return None if candidates[0] in tried else candidates[0]
    best: list[C] = []
    least = -1
    for candidate in candidates:
        if (candidate.health.ejected_until and candidate.health.is_out(now)) or candidate in tried:
            continue
        outstanding = candidate.outstanding
        if outstanding == least:
            best.append(candidate)
        elif outstanding < least or least < 0:
            least = outstanding
            best = [candidate]
    if not best:
        best = [candidate for candidate in candidates if candidate not in tried]
        if not best:
            return None
    return best[int(pick * len(best))]


def select_fit(candidates: Sequence[C], tried: Container[C], now: float) -> list[C]:
    """Return those that were not tried and take part; if all of these are ejected, all of them."""
    left = [candidate for candidate in candidates if candidate not in tried]
    return [candidate for candidate in left if not candidate.health.is_out(now)] or left


def select_free(fit: Sequence[C], concurrency: int) -> list[C]:
    """Return those with less than `concurrency` requests under way; 0: all."""
    if not concurrency:
        return list(fit)
    return [candidate for candidate in fit if candidate.outstanding < concurrency]
