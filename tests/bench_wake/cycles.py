"""Sleep/wake cycles under random load while the operator and the proxies restart or are killed."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from nimway.tasks import spawn
from tests.bench_control.bench import Bench, say, summary
from tests.bench_wake import executions
from tests.bench_wake.asking import ANSWERED, Address, Asked, Question, Tally, ask
from tests.bench_wake.grounds import Killed, Restarted
from tests.bench_wake.plan import PROXY, Cycle, cycles
from tests.bench_wake.stage import Stage, autoscaled, served_name

SIMULATION = {"LOAD_S": "0.5", "TTFT_S": "0.02", "TOKEN_S": "0.01"}
SLOW = SIMULATION | {"LOAD_S": "12"}
DRAIN = {"seconds": 10}
SEED = 20


class Ground(Protocol):
    """Where cycles run: the bench's sandbox, or a test's."""

    def choose(self) -> Address | None:
        """Return the address of a proxy to ask."""

    async def asleep(self, *, gone: bool) -> None:
        """Wait until the model sleeps, with `gone` until its pods have ended."""

    async def restart(self, kind: str) -> None:
        """Restart one of what the plan names."""


async def run(ground: Ground, planned: Sequence[Cycle]) -> list[Asked]:
    """Run cycles one after the other; return every request of them."""
    asked: list[Asked] = []
    for cycle in planned:
        await ground.asleep(gone=cycle.gone)
        began_s = time.perf_counter()
        restarts = [
            spawn(_at(began_s + at_s, ground.restart, kind), name=f"restart of the {kind}")
            for at_s, kind in cycle.restarts
        ]
        asking = [
            spawn(_ask_at(began_s + at_s, ground, each), name="client")
            for at_s, each in cycle.questions
        ]
        asked += await asyncio.gather(*asking)
        await asyncio.gather(*restarts)
    return asked


async def _at(due_s: float, act: Callable[[str], Awaitable[None]], kind: str) -> None:
    await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
    await act(kind)


async def _ask_at(due_s: float, ground: Ground, question: Question) -> Asked:
    await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
    return await ask(ground.choose(), question)


def judge(asked: list[Asked], ran: list[executions.Execution]) -> dict[str, Any]:
    """Return what became of all requests, as the clients and the model servers saw it."""
    tally = Tally.of(asked)
    ids = {each.request_id for each in ran}
    answered = {each.question.request_id for each in asked if each.fate == ANSWERED}
    refused = {each.question.request_id for each in asked if each.status == 503}
    return {
        "requests": len(asked),
        "fates": dict(sorted(tally.fates.items())),
        "lost": tally.lost,
        "not_found": tally.fates["404"],
        "examples": tally.examples,
        "executed": len(ids),
        "executed_twice": len(executions.repeated(ran)),
        "answered_unexecuted": len(answered - ids),
        "refused_executed": len(refused & ids),
        "retry_after_max_s": max((each.retry_after_s or 0 for each in asked), default=0),
        "waited": summary([1000 * each.took_s for each in asked if each.fate == ANSWERED]),
    }


async def measure(bench: Bench) -> None:
    """Twenty cycles with restarts by SIGTERM, then some with kills, which are counted apart.

    Three of the twenty start so slowly that a proxy must give its waiters back before it ends.
    """
    quick, slow, kills = (3, 1, 4) if bench.quick else (17, 3, 8)
    async with Stage.of(bench, "cycles") as stage:
        say(f"{quick + slow} times asleep and awake, restarts by SIGTERM")
        await _measure(
            bench,
            "cycles",
            (Restarted(stage, "cycling"), quick, SIMULATION),
            (Restarted(stage, "slow", kinds=(PROXY,)), slow, SLOW),
        )
        say(f"{kills} times asleep and awake, with kills")
        await _measure(bench, "kills", (Killed(stage, "killed"), kills, SIMULATION))


async def _measure(
    bench: Bench, name: str, *grounds: tuple[Restarted | Killed, int, dict[str, str]]
) -> None:
    """Run cycles of several models one after the other, and judge them together."""
    asked: list[Asked] = []
    ran: list[executions.Execution] = []
    counts: Counter[str] = Counter()
    for ground, number, simulation in grounds:
        stage, model = ground.stage, ground.model
        manifest = autoscaled(model, simulation=simulation, autoscaling={}, drain=DRAIN)
        await stage.create(manifest)
        planned = cycles(number, served_name(model), seed=SEED, kinds=ground.kinds)
        asked += await run(ground, planned)
        ran += executions.read(bench.sandbox.config.pods, f"{stage.namespace}_{model}")
        counts += ground.counts
    cycled = sum(number for _, number, _ in grounds)
    found = {"cycles": cycled, "restarts": dict(counts), **judge(asked, ran)}
    bench.found[name] = found
    say(f"  {found}")
