"""A day of a fleet, in minutes: GPUs held with autoscaling against fixed replicas, same requests.

Both fleets live beside each other and get every request at the same moment, so that what this
machine is busy with meets both.
"""

import asyncio
import time
from collections import Counter
from typing import Any

from nimway.tasks import spawn
from tests.bench_control.bench import Bench, say, summary
from tests.bench_control.watching import Manifest, until
from tests.bench_wake.asking import ANSWERED, Asked, Question, Tally, ask
from tests.bench_wake.stage import INSTANCE, Stage, autoscaled, served_name
from tests.bench_wake.trace import FLEET, HOURS, SEED, Arrival, Habit, day
from tests.bench_wake.usage import Life, gpu_seconds, levels

ASLEEP, FIXED = "auto", "fixed"
TARGET = 4
SIMULATION = {"LOAD_S": "0.3", "TTFT_S": "0.05", "TOKEN_S": "0.01", "CONCURRENCY_MAX": "8"}
_STEPS = 240
_START_S = 120.0


async def measure(bench: Bench) -> None:
    """Live the day once, with both fleets."""
    day_s, share = (48.0, 5) if bench.quick else (240.0, 1)
    async with Stage.of(bench, "day") as stage:
        lives = Lives(stage)
        following = spawn(lives.follow(), name="following pods")
        await stage.create(*(_fixed(habit) for habit in FLEET))
        await stage.create(*(_autoscaled(habit, day_s) for habit in FLEET))
        fixed = sum(habit.replicas_max for habit in FLEET)
        await until(lambda: lives.ready(FIXED) == fixed, _START_S, "the fixed replicas")
        await stage.asleep(*(f"{ASLEEP}-{habit.name}" for habit in FLEET))
        arrivals = day(FLEET)[::share]
        say(f"a day of {len(arrivals)} requests to {len(FLEET)} models in {day_s:.0f} s")
        begin_s = time.perf_counter()
        asked = await _live(stage, arrivals, begin_s, day_s)
        end_s = begin_s + day_s
        await asyncio.sleep(max(0.0, end_s - time.perf_counter()))
        bench.found["day"] = _judge(arrivals, asked, lives, begin_s, end_s)
        following.cancel()
    shown = {key: value for key, value in bench.found["day"].items() if key != "levels"}
    say(f"  {shown}")


class Lives:
    """When each pod of the day had its GPU."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._begun: dict[str, tuple[str, float]] = {}
        self._ended: dict[str, float] = {}
        self._ready: dict[str, str] = {}

    async def follow(self) -> None:
        path = f"/api/v1/namespaces/{self._stage.namespace}/pods"
        async for kind, item in self._stage.bench.client.follow(path):
            if kind != "SYNCED":
                self._note(kind, item, time.perf_counter())

    def _note(self, kind: str, pod: Manifest, now_s: float) -> None:
        uid, fleet = pod["metadata"]["uid"], pod["metadata"]["labels"][INSTANCE].partition("-")[0]
        if pod["spec"].get("nodeName"):
            self._begun.setdefault(uid, (fleet, now_s))
        conditions = pod.get("status", {}).get("conditions", ())
        if any(each["type"] == "Ready" and each["status"] == "True" for each in conditions):
            self._ready[uid] = fleet
        if kind == "DELETED":
            self._ended[uid] = now_s
            self._ready.pop(uid, None)

    def ready(self, fleet: str) -> int:
        return sum(each == fleet for each in self._ready.values())

    def of(self, fleet: str, end_s: float) -> list[Life]:
        """Return the lives of a fleet's pods; who still lives, lives until `end_s`."""
        return [
            Life(begin_s, self._ended.get(uid, end_s))
            for uid, (name, begin_s) in self._begun.items()
            if name == fleet
        ]


async def _live(
    stage: Stage, arrivals: list[Arrival], begin_s: float, day_s: float
) -> list[tuple[Asked, Asked]]:
    """Send each arrival to both fleets when it is due; return the pairs."""

    async def pair(number: int, arrival: Arrival) -> tuple[Asked, Asked]:
        questions = [
            Question(
                f"day-{fleet}-{number}",
                served_name(f"{fleet}-{arrival.model}"),
                tokens=arrival.tokens,
                stream=number % 2 == 0,
            )
            for fleet in (ASLEEP, FIXED)
        ]
        slept, fixed = await asyncio.gather(*(ask(stage.choose(), each) for each in questions))
        return slept, fixed

    asking = []
    for number, arrival in enumerate(arrivals):
        await asyncio.sleep(max(0.0, begin_s + arrival.at * day_s - time.perf_counter()))
        asking.append(spawn(pair(number, arrival), name="arrival"))
    return list(await asyncio.gather(*asking))


def _judge(
    arrivals: list[Arrival],
    asked: list[tuple[Asked, Asked]],
    lives: Lives,
    begin_s: float,
    end_s: float,
) -> dict[str, Any]:
    span_s = end_s - begin_s
    held = {fleet: gpu_seconds(lives.of(fleet, end_s), begin_s, end_s) for fleet in (ASLEEP, FIXED)}
    added = [
        1000 * (slept.took_s - fixed.took_s)
        for slept, fixed in asked
        if slept.fate == fixed.fate == ANSWERED
    ]
    return {
        "seed": SEED,
        "models": len(FLEET),
        "requests": len(arrivals),
        "by_model": dict(sorted(Counter(each.model for each in arrivals).items())),
        "day_s": round(span_s, 1),
        "compressed": round(HOURS * 3600 / span_s),
        "gpu_s": {fleet: round(value, 1) for fleet, value in held.items()},
        "gpu_hours": {fleet: round(value * HOURS / span_s, 1) for fleet, value in held.items()},
        "saved": round(1 - held[ASLEEP] / held[FIXED], 3),
        "added": summary(added),
        "delayed": _delayed(added),
        "took": {
            fleet: summary([1000 * each.took_s for each in column if each.fate == ANSWERED])
            for fleet, column in zip((ASLEEP, FIXED), zip(*asked, strict=True), strict=True)
        },
        "starts": len(lives.of(ASLEEP, end_s)),
        "lost": {
            fleet: len(column) - Tally.of(column).fates[ANSWERED]
            for fleet, column in zip((ASLEEP, FIXED), zip(*asked, strict=True), strict=True)
        },
        "examples": Tally.of(each for pair in asked for each in pair).examples,
        "levels": {
            fleet: levels(lives.of(fleet, end_s), begin_s, end_s, _STEPS)
            for fleet in (ASLEEP, FIXED)
        },
    }


def _delayed(added_ms: list[float]) -> float:
    """Return the share of requests that waited for a start: more than half a second longer."""
    return round(sum(each > 500 for each in added_ms) / max(1, len(added_ms)), 3)


def _autoscaled(habit: Habit, day_s: float) -> Manifest:
    hour_s = day_s / HOURS
    rules = {
        "maxReplicas": habit.replicas_max,
        "targetConcurrency": TARGET,
        "scaleDownDelaySeconds": max(1, round(hour_s / 4)),
        "idleSeconds": max(1, round(hour_s / 2)),
    }
    return autoscaled(f"{ASLEEP}-{habit.name}", simulation=SIMULATION, autoscaling=rules)


def _fixed(habit: Habit) -> Manifest:
    manifest = autoscaled(f"{FIXED}-{habit.name}", simulation=SIMULATION, autoscaling={})
    del manifest["spec"]["autoscaling"]
    manifest["spec"]["replicas"] = habit.replicas_max
    return manifest
