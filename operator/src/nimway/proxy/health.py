"""Passive ejection: an endpoint that fails in a row is left out for a while (pure).

Failures are connect errors, resets before the first byte, timeouts and 5xx but 503; never a 4xx and
never a client's own cancel. The time and the jitter come in as arguments.
"""

from typing import Final

from nimway.proxy.settings import Settings

_DOUBLINGS_MAX: Final = 10
_SERVER_ERROR: Final = 500
_BUSY: Final = 503


class Health:
    """How one endpoint did lately; `ejected_until` is 0 while it takes part.

    `probe` is the one request that it gets after its time, None while there is none.
    """

    __slots__ = ("ejected_until", "ejections", "failures", "probe")

    def __init__(self) -> None:
        self.failures = 0
        self.ejections = 0
        self.ejected_until = 0.0
        self.probe: object | None = None

    def is_out(self, now: float) -> bool:
        """Return whether a request must go elsewhere: ejected, or waiting for its one probe."""
        return self.ejected_until > 0.0 and (self.probe is not None or now < self.ejected_until)

    def begin(self, now: float, request: object) -> None:
        """`request` was sent: after the time is up, the first one is the probe."""
        if self.probe is None and 0.0 < self.ejected_until <= now:
            self.probe = request

    def succeed(self) -> None:
        """An answer came that speaks for the endpoint."""
        self.failures = 0
        self.ejections = 0
        self.ejected_until = 0.0
        self.probe = None

    def release(self) -> None:
        """The probe ended without saying anything about the endpoint."""
        self.probe = None

    def fail(self, now: float, jitter: float, settings: Settings) -> bool:
        """Count a failure; return whether it ejects. `jitter` is between 0 and 1."""
        self.failures += 1
        if self.probe is None and self.failures < settings.ejection_failures:
            return False
        if self.probe is None and self.ejected_until > now:
            return False
        self.probe = None
        span_s = settings.ejection_base_s * 2 ** min(self.ejections, _DOUBLINGS_MAX)
        self.ejections += 1
        self.ejected_until = now + min(span_s, settings.ejection_max_s) * (1.0 + 0.25 * jitter)
        return True


def is_failure(status: int) -> bool:
    """Return whether an answer speaks against its endpoint; 503 means busy, not broken."""
    return status >= _SERVER_ERROR and status != _BUSY
