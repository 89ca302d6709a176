"""Thousands of waiters on a cold model at one proxy: none lost, none twice, in order, in bounds."""

import asyncio
import time
from typing import Any

import aiohttp

from nimway.state import STATE_PATH, STATE_PORT, decode
from nimway.tasks import spawn
from tests.bench_control import processes
from tests.bench_control.bench import Bench, say, summary
from tests.bench_wake import executions
from tests.bench_wake.asking import ANSWERED, Asked, Question, Tally, ask
from tests.bench_wake.fairness import overtaken
from tests.bench_wake.held import scale_writes
from tests.bench_wake.stage import PROXY_PODS, Stage, autoscaled, served_name

KIB = 1024
WAITER_BYTES = 16 * KIB
PROMPT_BYTES = 1 * KIB
AT_ONCE = 32
NAME = "crowded"


async def measure(bench: Bench) -> None:
    """Ask one sleeping model through one proxy, all before it is ready; then look at the order."""
    count, load_s = (300, 4) if bench.quick else (2000, 10)
    simulation = {"LOAD_S": str(load_s), "TTFT_S": "0.02", "TOKEN_S": "0"}
    async with Stage.of(bench, "crowd") as stage:
        await stage.set_proxies(1)
        manifest = autoscaled(
            NAME,
            simulation=simulation,
            autoscaling={"targetConcurrency": 100_000, "idleSeconds": 60},
            routing={
                "maxConcurrency": AT_ONCE,
                "queue": {"maxRequests": count, "maxWaitSeconds": 120},
            },
        )
        await stage.create(manifest)
        say(f"{count} waiters on one sleeping model, {AT_ONCE} at once at its pod")
        bench.audit.mark()
        start_mb = _memory_mb(bench)
        asking = [spawn(ask(stage.choose(), each), name="waiter") for each in _questions(count)]
        waiting_s = time.perf_counter()
        queued = await _until_queued(bench, stage, count)
        held_mb = _memory_mb(bench)
        asked = await asyncio.gather(*asking)
        bench.found["waiters"] = {
            "waiters": count,
            "queued": queued,
            "queued_after_s": round(time.perf_counter() - waiting_s, 2),
            **_order(bench, stage, asked),
            "memory": _memory(start_mb, held_mb, _memory_mb(bench), count),
            "scale_writes": len(scale_writes(bench, stage.namespace)),
        }
        await stage.set_proxies(2)
    say(f"  {bench.found['waiters']}")


def _order(bench: Bench, stage: Stage, asked: list[Asked]) -> dict[str, Any]:
    """Judge order and completeness: as the clients sent, and as the model server received."""
    ran = executions.read(bench.sandbox.config.pods, stage.namespace)
    arrived = [each.question.request_id for each in sorted(asked, key=lambda each: each.sent_s)]
    first = list(dict.fromkeys(each.request_id for each in ran))
    by = sorted(overtaken(arrived, first).values())
    tally = Tally.of(asked)
    answered = {each.question.request_id for each in asked if each.fate == ANSWERED}
    return {
        "fates": dict(tally.fates),
        "lost": len(asked) - tally.fates[ANSWERED],
        "examples": tally.examples,
        "executed_twice": len(executions.repeated(ran)),
        "not_executed": len(answered - set(first)),
        "overtaken_by": summary(by),
        "waited": summary([1000 * each.took_s for each in asked]),
    }


def _questions(count: int) -> list[Question]:
    prompt = "word " * (PROMPT_BYTES // 5)
    return [Question(f"waiter-{n:04}", served_name(NAME), prompt=prompt) for n in range(count)]


async def _until_queued(bench: Bench, stage: Stage, count: int) -> int:
    """Wait until the proxy says that all wait, or that the first go; return how many waited."""
    (pod,) = await bench.pods(PROXY_PODS)
    url = f"http://{pod['status']['podIP']}:{STATE_PORT}{STATE_PATH}"
    most = 0
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        async for line in answer.content:
            load = decode(line).models.get(f"{stage.namespace}/{NAME}")
            if load is None:
                continue
            if load.queued >= count or load.queued < most:
                return max(most, load.queued)
            most = load.queued
    return most


def _memory_mb(bench: Bench) -> dict[str, float]:
    """Return the resident memory of the proxy's processes in MB (10^6), by role."""
    found = bench.processes()
    roles = {"parent": found.parents, "worker": found.workers}
    return {
        role: round(sum(processes.memory_mb(pid)["rss"] for pid in pids), 1)
        for role, pids in roles.items()
    }


def _memory(
    start: dict[str, float], held: dict[str, float], after: dict[str, float], count: int
) -> dict[str, Any]:
    body_bytes = len(Question("waiter-0000", served_name(NAME), prompt="x" * PROMPT_BYTES).body())
    allowed_mb = count * (WAITER_BYTES + body_bytes) / 1e6
    grown_mb = sum(held.values()) - sum(start.values())
    return {
        "start_mb": start,
        "held_mb": held,
        "after_mb": after,
        "grown_mb": round(grown_mb, 1),
        "allowed_mb": round(allowed_mb, 1),
        "bytes_per_waiter": round(1e6 * grown_mb / count),
    }
