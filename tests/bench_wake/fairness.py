"""How far a queue kept its order. Pure."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def overtaken(arrived: Sequence[str], served: Sequence[str]) -> dict[str, int]:
    """Return, for each who was served, how many of those who came later were served earlier."""
    place = {name: number for number, name in enumerate(arrived)}
    before: list[int] = []
    found: dict[str, int] = {}
    for name in served:
        own = place[name]
        found[name] = len(before) - bisect_left(before, own)
        insort(before, own)
    return found
