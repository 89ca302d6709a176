"""A day of requests to a fleet of models: made up, bursty, the same for the same seed. Pure.

People and programs come in sessions: how many begin in an hour is the model's habit, and each asks
a random number of times with random pauses. Sessions overlap, and most hours of most models are
empty, as in the public traces of LLM services. Times are fractions of the day, so that a day can
be as short as the sandbox needs.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SEED = 6
HOURS = 24


@dataclass(frozen=True, slots=True)
class Habit:
    """One model: sessions that begin in each hour, requests of one, and the replicas it may need.

    `minutes` is the mean pause between two requests of a session.
    """

    name: str
    sessions: tuple[float, ...]
    requests: float = 12.0
    minutes: float = 2.0
    replicas_max: int = 1


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: when, as a fraction of the day, to which model, and how many tokens."""

    at: float
    model: str
    tokens: int


def office(peak: float) -> tuple[float, ...]:
    """Return a working day: little at night, two peaks with a lunch between them."""
    shape = (0, 0, 0, 0, 0, 0, 0.1, 0.3, 0.7, 1, 1, 0.9, 0.5, 0.8, 1, 1, 0.8, 0.5, 0.3, 0.2)
    return tuple(peak * each for each in (*shape, 0.1, 0.1, 0, 0))


def hours(sessions: float, *busy: int) -> tuple[float, ...]:
    """Return `sessions` in each of the `busy` hours, and none in others."""
    return tuple(sessions if hour in busy else 0.0 for hour in range(HOURS))


FLEET: tuple[Habit, ...] = (
    Habit("chat", office(4.0), replicas_max=2),
    Habit("code", office(3.0), replicas_max=2),
    Habit("batch", hours(2.0, 1, 2, 3), requests=60.0, minutes=0.7, replicas_max=2),
    Habit("search", (0.6,) * HOURS),
    Habit("vision", office(0.4)),
    Habit("legal", hours(0.5, 9, 10, 14, 15)),
    Habit("german", office(0.2)),
    Habit("old-chat", (0.12,) * HOURS),
)


def day(fleet: Sequence[Habit], seed: int = SEED) -> list[Arrival]:
    """Return all arrivals of a day, in order."""
    found = [each for habit in fleet for each in _arrivals(habit, random.Random(seed))]
    return sorted(found, key=lambda each: (each.at, each.model))


def _arrivals(habit: Habit, chance: random.Random) -> Iterator[Arrival]:
    chance = random.Random(f"{habit.name} {chance.random()}")
    for begin_h in _begins(habit.sessions, chance):
        at_h = begin_h
        for _ in range(1 + int(chance.expovariate(1 / habit.requests))):
            if at_h >= HOURS:
                break
            yield Arrival(at_h / HOURS, habit.name, chance.randint(8, 48))
            at_h += chance.expovariate(60 / habit.minutes)


def _begins(sessions: Sequence[float], chance: random.Random) -> Iterator[float]:
    """Yield the hours at which sessions begin: a Poisson process with a rate for each hour."""
    for hour, rate in enumerate(sessions):
        at = chance.expovariate(rate) if rate else 1.0
        while at < 1:
            yield hour + at
            at += chance.expovariate(rate)
