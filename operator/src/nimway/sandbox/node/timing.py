"""Back-off and timestamps of the process node. Pure, apart from `now`."""

import datetime as dt
from typing import Final

BACKOFF_MAX_S: Final = 300.0
_RESET_AFTER_S: Final = 600.0


class BackOff:
    """A kubelet's restart back-off: at once, then `initial_s` doubling up to five minutes.

    A container that ran for ten minutes starts over.
    """

    def __init__(self, initial_s: float) -> None:
        self._initial_s = initial_s
        self._next_s = 0.0

    def next_delay_s(self, ran_for_s: float) -> float:
        """Return how long to wait after a run that lasted `ran_for_s`."""
        if ran_for_s >= _RESET_AFTER_S:
            self._next_s = 0.0
        delay = self._next_s
        self._next_s = min(BACKOFF_MAX_S, max(self._initial_s, 2 * delay))
        return delay


def now() -> dt.datetime:
    """Return the wall clock's time, for timestamps only."""
    return dt.datetime.now(dt.UTC)  # noqa: TID251 - timestamps in statuses are wall clock


def stamp(moment: dt.datetime) -> str:
    """Return the moment as Kubernetes writes it in a status: RFC 3339, whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_stamp(moment: dt.datetime) -> str:
    """Return the moment as Kubernetes writes it in a Lease: RFC 3339 with microseconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse(text: str) -> dt.datetime:
    """Read a timestamp of the API server."""
    return dt.datetime.fromisoformat(text)
