"""What an autoscaled model's status says of its sleep, and what is read from it again. Pure.

Two figures must outlive the operator: since when a model is idle, and how long it takes to start.
Both are coarse on purpose. A status is written when a model's rest begins and when it ends for
good, so that neither a sleeping nor a steadily busy system causes a write.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nimway.control.clock import unix_s
from nimway.control.kinds import Manifest

GRAIN_MAX_S = 60.0
NOTED_MAX_S = 600.0

_STEPS_S = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1200, 1800, 3600)
"""What a cold start is rounded to where a change makes every proxy read its table again."""

LATE = 2
"""So many times the usual is worth a word."""


@dataclass(frozen=True, slots=True)
class Waking:
    """A model on its way from zero: since when (RFC 3339), and whether longer than usual."""

    since: str
    late: bool = False


@dataclass(frozen=True, slots=True)
class Autoscaled:
    """What conditions need of a model with `autoscaling`; `usual_s` is 0 while unknown."""

    usual_s: int = 0
    waking: Waking | None = None


def grain_s(idle_s: float) -> float:
    """Return how coarse a noted rest is: work this soon after it changes nothing."""
    return min(GRAIN_MAX_S, idle_s / 8)


def noted_after_s(idle_s: float) -> float:
    """Return how long a rest lasts before it is noted."""
    return min(NOTED_MAX_S, idle_s / 4)


def idle_since_s(stored_s: int, used_s: float, now_s: float, *, idle_s: float) -> int:
    """Return what to note as the begin of a model's rest; Unix seconds, 0 for "in use".

    `stored_s` is what is noted, `used_s` when it was last used. What is near enough is left.
    """
    if stored_s and used_s - stored_s <= 2 * grain_s(idle_s):
        return stored_s
    return int(used_s) if now_s - used_s >= noted_after_s(idle_s) else 0


def assumed_used_s(stored_s: int, now_s: float, *, idle_s: float) -> float:
    """Return when a model was last used, as who starts anew may assume; Unix seconds.

    Requests that came while nobody listened are unknown: it listens for a while itself first.
    """
    if not stored_s:
        return now_s
    grain = grain_s(idle_s)
    return min(now_s, max(stored_s + 2 * grain, now_s - idle_s + grain))


def averaged_s(known_s: int, took_s: float) -> int:
    """Return the usual cold start after another one: half of it is the latest; at least 1."""
    return max(1, round((known_s + took_s) / 2 if known_s else took_s))


def rounded_s(cold_start_s: int) -> int:
    """Return the step nearest to a cold start; 0 stays 0."""
    return min(_STEPS_S, key=lambda step: abs(step - cold_start_s)) if cold_start_s else 0


def autoscaling_status(live: Mapping[str, Any]) -> Manifest:
    """Return `status.autoscaling` of a NIMModel, {} if it has none."""
    found: Manifest = (live.get("status") or {}).get("autoscaling") or {}
    return found


def usual_s(live: Mapping[str, Any]) -> int:
    """Return how long a NIMModel's cold starts lately took, 0 if nobody knows."""
    seconds = autoscaling_status(live).get("coldStartSeconds", 0)
    return seconds if isinstance(seconds, int) and seconds > 0 else 0


def stored_idle_s(live: Mapping[str, Any]) -> int:
    """Return the begin of its rest as noted in a NIMModel's status; Unix seconds, 0 for none."""
    return unix_s(autoscaling_status(live).get("idleSince"))


def asleep_text(scaled: Autoscaled) -> str:
    """Say what a sleeping model does."""
    usual = f", which usually takes {_seconds(scaled.usual_s)}" if scaled.usual_s else ""
    return f"asleep: the first request wakes it{usual}"


def waking_text(scaled: Autoscaled, waking: Waking, obstacle: str) -> str:
    """Say since when a model wakes, how long it usually takes, and what it waits for."""
    usual = f", usually ready after {_seconds(scaled.usual_s)}" if scaled.usual_s else ""
    late = f"; by now more than {LATE} times that" if waking.late else ""
    return f"waking since {waking.since}{usual}{late}; {obstacle}"


def _seconds(value: int) -> str:
    return "1 second" if value == 1 else f"{value} seconds"
