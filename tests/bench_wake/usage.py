"""GPU time from the lives of pods. Pure; times in seconds of any one clock."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Life:
    """A pod that had `gpus` from `begin_s` (bound to a node) to `end_s` (gone)."""

    begin_s: float
    end_s: float
    gpus: int = 1

    def within(self, begin_s: float, end_s: float) -> float:
        """Return its GPU-seconds in a span."""
        return self.gpus * max(0.0, min(self.end_s, end_s) - max(self.begin_s, begin_s))


def gpu_seconds(lives: Iterable[Life], begin_s: float, end_s: float) -> float:
    """Return the GPU-seconds that pods held in a span."""
    return sum(life.within(begin_s, end_s) for life in lives)


def levels(lives: Sequence[Life], begin_s: float, end_s: float, steps: int) -> list[float]:
    """Return the mean number of GPUs held in each of `steps` equal parts of a span."""
    width_s = (end_s - begin_s) / steps
    starts = [begin_s + step * width_s for step in range(steps)]
    return [round(gpu_seconds(lives, at_s, at_s + width_s) / width_s, 3) for at_s in starts]
