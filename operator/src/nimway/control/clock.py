"""The operator's clocks, taken as arguments everywhere else so that tests can bring their own."""

import time
from datetime import UTC, datetime


def monotonic_s() -> float:
    """Seconds of the clock that never jumps; all waiting is measured by it."""
    return time.monotonic()


def wall() -> datetime:
    """Wall-clock time, only for timestamps that people read."""
    return datetime.fromtimestamp(time.clock_gettime(time.CLOCK_REALTIME), tz=UTC)


def timestamp(at: datetime) -> str:
    """Return `at` as meta/v1 Time: RFC 3339, UTC, whole seconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_timestamp(at: datetime) -> str:
    """Return `at` as meta/v1 MicroTime: RFC 3339, UTC, six digits."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def unix_s(text: str | None) -> int:
    """Read a meta/v1 Time as Unix seconds; 0 if there is none."""
    return int(datetime.fromisoformat(text).timestamp()) if text else 0
