"""When a request may be sent again: only if nothing of it can have been executed (pure)."""

from nimway.proxy.settings import Settings


class RetryBudget:
    """At most `retry_budget_ratio` of the requests of late are retries: both counts fade."""

    __slots__ = ("_floor", "_ratio", "requests", "retries")

    def __init__(self, settings: Settings) -> None:
        self._ratio = settings.retry_budget_ratio
        self._floor = settings.retry_budget_floor
        self.requests = 0
        self.retries = 0

    def take(self) -> bool:
        """Take one retry, if the budget has one left."""
        if self.retries >= self._floor + self._ratio * self.requests:
            return False
        self.retries += 1
        return True

    def fade(self) -> None:
        """Halve both counts; called every few seconds."""
        self.requests >>= 1
        self.retries >>= 1


def may_retry(*, bytes_sent: bool, bytes_received: bool, tries: int, retries_max: int) -> bool:
    """Return whether the model server cannot have begun, and tries are left.

    A connection that failed or that was at its end when picked took nothing. Once a byte was
    handed to a living connection, the request may run, and a second one would run twice.
    `tries` are the endpoints that failed; `retries_max` counts further ones after the first.
    """
    return not bytes_sent and not bytes_received and tries <= retries_max
