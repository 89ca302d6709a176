"""How often a test looks again: at once at first, then ever less often.

Each look takes a few milliseconds of CPU, from what is waited for as well.
"""

FIRST_S = 0.01
PART = 0.03
MOST_S = 0.1


def pause_s(waited_s: float) -> float:
    """Return how long to wait for the next look after having waited for `waited_s`."""
    return min(max(FIRST_S, PART * waited_s), MOST_S)
