"""What happens in each sleep/wake cycle: random, seeded, decided beforehand. Pure."""

import random
from dataclasses import dataclass
from typing import Final

from tests.bench_wake.asking import Question

OPERATOR: Final = "operator"
PROXY: Final = "proxy"
CYCLE_S = 4.0
"""Within so many seconds of its begin everything of a cycle begins."""

LEAVE_SHARE = 0.08
STREAM_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Cycle:
    """Requests and restarts by the second after the cycle's begin, each in order.

    `gone` tells whether the cycle waits for the end of the last pods, or meets them on their way
    out.
    """

    questions: tuple[tuple[float, Question], ...]
    restarts: tuple[tuple[float, str], ...]
    gone: bool


def cycles(
    count: int, model: str, *, seed: int, requests_max: int = 60, kinds: tuple[str, ...]
) -> list[Cycle]:
    """Return `count` cycles; each restarts one of `kinds` in turn, some all of them."""
    chance = random.Random(seed)
    return [
        _cycle(number, model, chance, requests_max=requests_max, kinds=kinds)
        for number in range(count)
    ]


def _cycle(
    number: int, model: str, chance: random.Random, *, requests_max: int, kinds: tuple[str, ...]
) -> Cycle:
    # The first one wakes. Most follow soon, in one burst; some come when it falls asleep again.
    burst_s = chance.uniform(0.1, 2.5)
    times = [0.0, *(chance.uniform(0.0, burst_s) for _ in range(chance.randint(2, requests_max)))]
    times += [chance.uniform(burst_s, CYCLE_S) for _ in range(chance.randint(0, 4))]
    questions = tuple(
        (at_s, _question(f"{model}-{number}-{place}", model, chance))
        for place, at_s in enumerate(sorted(times))
    )
    restarted = kinds if chance.random() < 0.25 else (kinds[number % len(kinds)],)
    restarts = sorted((chance.uniform(0.0, CYCLE_S), kind) for kind in restarted)
    return Cycle(questions, tuple(restarts), gone=chance.random() < 0.5)


def _question(name: str, model: str, chance: random.Random) -> Question:
    leaves = chance.random() < LEAVE_SHARE
    return Question(
        name,
        model,
        tokens=chance.randint(1, 40),
        stream=chance.random() < STREAM_SHARE,
        leave_after_s=chance.uniform(0.05, 1.5) if leaves else None,
    )
