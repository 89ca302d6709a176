"""Sleep/wake cycles under random load while the operator and the proxies restart or are killed."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from nimway.tasks import spawn
from tests.bench_control.bench import Bench, say, summary
from tests.bench_wake import executions
from tests.bench_wake.asking import ANSWERED, Address, Asked, Question, Tally, ask
from tests.bench_wake.grounds import Killed, Restarted
from tests.bench_wake.plan import Cycle, cycles
from tests.bench_wake.stage import Stage, autoscaled, served_name

SIMULATION = {"LOAD_S": "0.5", "TTFT_S": "0.02", "TOKEN_S": "0.01"}
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
        "waited": summary([1000 * each.took_s for each in asked if each.fate == ANSWERED]),
    }


async def measure(bench: Bench) -> None:
    """Twenty cycles with restarts by SIGTERM, then some with kills, which are counted apart."""
    count, kills = (4, 4) if bench.quick else (20, 8)
    async with Stage.of(bench, "cycles") as stage:
        ground: Restarted | Killed
        for name, ground, number in (
            ("cycles", Restarted(stage, "cycling"), count),
            ("kills", Killed(stage, "killed"), kills),
        ):
            await stage.create(
                autoscaled(ground.model, simulation=SIMULATION, autoscaling={}, drain=DRAIN)
            )
            say(f"{name}: {number} times asleep and awake, {', '.join(ground.kinds)} restarted")
            model = served_name(ground.model)
            asked = await run(ground, cycles(number, model, seed=SEED, kinds=ground.kinds))
            ran = executions.read(bench.sandbox.config.pods, f"{stage.namespace}_{ground.model}")
            bench.found[name] = {
                "cycles": number,
                "restarts": dict(ground.counts),
                **judge(asked, ran),
            }
            say(f"  {bench.found[name]}")
