"""What is measured of one running contender: CPU, latency, events, memory, workers.

Owns the loads and their windows. A window starts when the load is steady and ends before it ends:
CPU time and finished requests are read at the same two moments, so neither starts nor stops count.
"""

import functools
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.bench import running
from tests.bench.contenders import MODEL
from tests.bench.install import HERE
from tests.bench.running import BenchError, Cpus, Instant

SETTLE_S = 0.4
RATE_MAX = 1000.0
BUSY_MAX = 0.25
"""Paced requests take at most this part of the contender's CPU, so that none of them queues."""

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request: `key` names its metrics; large ones use fewer connections.

    `model` stands behind the messages, where nemo-microservices and openai 1.x put it, or first,
    as openai 3.x has it: a router that reads up to `model` alone is then much cheaper.
    """

    key: str
    title: str
    body_bytes: int
    connections: int
    model_first: bool = False


PROMPTS = (
    Prompt("json_188b", "188 B", 188, 64),
    Prompt("json_64k", "64 KiB", 64 * 1024, 64),
    Prompt("json_1m", "1 MiB", 1024 * 1024, 16),
    Prompt("json_64k_first", "64 KiB, `model` first", 64 * 1024, 64, model_first=True),
    Prompt("json_1m_first", "1 MiB, `model` first", 1024 * 1024, 16, model_first=True),
)


@dataclass(frozen=True, slots=True)
class Bench:
    """What all scenarios need: load program, model server and its count, CPUs, window, streams."""

    goload: Path
    upstream: int
    counter: Path
    cpus: Cpus
    window_s: float
    streams: int = 64
    idle_streams: int = 400


@dataclass(frozen=True, slots=True)
class Target:
    """A running contender, or, without a process, the model server itself."""

    name: str
    port: int
    root: int | None = None

    @property
    def tree(self) -> list[int]:
        return [] if self.root is None else running.process_tree(self.root)


def measure_json(bench: Bench, target: Target, prompt: Prompt) -> Metrics:
    """CPU microseconds per request of wrk's closed loop, and the requests a second.

    Where several processes hold connections: the largest one's part of them, too.
    """
    load = _start_wrk(bench, target, prompt)
    try:
        time.sleep(SETTLE_S)
        tree = target.tree
        held = [number for number in running.connections(tree, target.port) if number]
        begin, end = _take_window(bench, tree)
    finally:
        load.send_signal(signal.SIGINT)
        report = load.communicate(timeout=30)[0]
    _refuse_errors(target, report)
    count = end.answered - begin.answered
    if count == 0:
        raise BenchError(f"{target.name}: no request of {prompt.title} was answered")
    metrics = {
        f"{prompt.key}_cpu_us": (end.cpu_s - begin.cpu_s) / count * 1e6,
        f"{prompt.key}_rps": count / (end.unix_ns - begin.unix_ns) * 1e9,
    }
    if len(held) > 1:
        metrics[f"{prompt.key}_share"] = max(held) / sum(held)
    return metrics


def _start_wrk(bench: Bench, target: Target, prompt: Prompt) -> subprocess.Popen[str]:
    duration_s = int(SETTLE_S + bench.window_s) + 10
    flags = ["-t1", f"-c{prompt.connections}", f"-d{duration_s}s", "--timeout=10s"]
    script = ["-s", str(HERE / "configs" / "post.lua")]
    url = f"http://127.0.0.1:{target.port}/v1/chat/completions"
    order = ["model-first"] if prompt.model_first else []
    command = ["wrk", *flags, *script, url, "--", str(prompt.body_bytes), *order]
    return subprocess.Popen(
        [*_pin(bench), *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _refuse_errors(target: Target, report: str) -> None:
    """A contender that answers errors is not measured: errors are cheap."""
    for pattern in (r"Non-2xx or 3xx responses: \d+", r"Socket errors: .*"):
        if found := re.search(pattern, report):
            raise BenchError(f"{target.name}: wrk reports {found[0]}")


def _measure_latency(bench: Bench, target: Target, before: Metrics) -> Metrics:
    """p50 and p99 of single requests at a rate that leaves the contender mostly idle."""
    cpu_us = before.get(f"{PROMPTS[0].key}_cpu_us", 1.0)
    rate = min(RATE_MAX, BUSY_MAX * 1e6 / cpu_us)
    flags = [f"-rate={rate}", "-connections=32"]
    with _goload(bench, "paced", target, flags) as load:
        _begun(load, target)
        result = _result(load, target, *_take_window(bench, []))
    return {"latency_p50_us": result["p50_us"], "latency_p99_us": result["p99_us"]}


def _measure_stream(bench: Bench, target: Target, _: Metrics) -> Metrics:
    """CPU microseconds per event, and the time from the model server's write to the client."""
    with _goload(bench, "stream", target, [f"-connections={bench.streams}"]) as load:
        _begun(load, target)
        begin, end = _take_window(bench, target.tree)
        result = _result(load, target, begin, end)
    latency = {"sse_p50_us": result["p50_us"], "sse_p99_us": result["p99_us"]}
    if target.root is None:
        return latency
    return {"sse_cpu_us": (end.cpu_s - begin.cpu_s) / result["count"] * 1e6, **latency}


def _measure_memory(bench: Bench, target: Target, _: Metrics) -> Metrics:
    """Resident memory of main process and worker at start, and what a silent stream adds."""
    start = running.resident_bytes(target.tree)
    _warm_up(bench, target)
    warm = sum(running.resident_bytes(target.tree))
    count = bench.idle_streams
    with _goload(bench, "idle", target, [f"-connections={count}"]) as load:
        _begun(load, target)
        held = sum(running.resident_bytes(target.tree))
    metrics = {
        "memory_main_mb": start[0] / 1e6,
        "memory_stream_kb": (held - warm) / count / 1e3,
    }
    if len(start) > 1:
        metrics["memory_worker_mb"] = max(start[1:]) / 1e6
    return metrics


def _warm_up(bench: Bench, target: Target) -> None:
    load = _start_wrk(bench, target, PROMPTS[0])
    time.sleep(SETTLE_S)
    load.send_signal(signal.SIGINT)
    _refuse_errors(target, load.communicate(timeout=30)[0])


def _measure_pair(bench: Bench, target: Target, _: Metrics) -> Metrics:
    """The small requests again, for a contender that runs two workers."""
    metrics = measure_json(bench, target, PROMPTS[0])
    return {key.replace(PROMPTS[0].key, "pair"): value for key, value in metrics.items()}


def _pin(bench: Bench) -> list[str]:
    return ["taskset", "--cpu-list", str(bench.cpus.load)]


def _goload(bench: Bench, load: str, target: Target, flags: Sequence[str]) -> subprocess.Popen[str]:
    common = [f"-target=127.0.0.1:{target.port}", f"-model={MODEL}", f"-settle={SETTLE_S}s"]
    command = [str(bench.goload), load, *common, *flags]
    return subprocess.Popen(
        [*_pin(bench), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _begun(load: subprocess.Popen[str], target: Target) -> None:
    if _pipe(load.stdout).readline() != "begin\n":
        raise BenchError(f"{target.name}: {_pipe(load.stderr).read().strip()}")


def _take_window(bench: Bench, tree: Sequence[int]) -> tuple[Instant, Instant]:
    begin = running.take_instant(tree, bench.counter)
    time.sleep(bench.window_s)
    return begin, running.take_instant(tree, bench.counter)


def _result(load: subprocess.Popen[str], target: Target, begin: Instant, end: Instant) -> Metrics:
    stdin = _pipe(load.stdin)
    stdin.write(f"{begin.unix_ns} {end.unix_ns}\n")
    stdin.flush()
    line = _pipe(load.stdout).readline()
    if not line:
        raise BenchError(f"{target.name}: {_pipe(load.stderr).read().strip()}")
    result: Metrics = json.loads(line)
    if result["failed"]:
        raise BenchError(f"{target.name}: {result['failed']:.0f} requests or streams failed")
    return result


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _measure_prompt(prompt: Prompt, bench: Bench, target: Target, _: Metrics) -> Metrics:
    return measure_json(bench, target, prompt)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One visit to a contender: `measure` gets what this round has found of it before.

    `quick` ones are part of every run. `direct` ones also measure the model server without a proxy.
    """

    measure: Callable[[Bench, Target, Metrics], Metrics]
    workers: int = 1
    quick: bool = False
    direct: bool = False


SCENARIOS = (
    Scenario(_measure_memory),
    *(
        Scenario(functools.partial(_measure_prompt, prompt), quick=not prompt.model_first)
        for prompt in PROMPTS
    ),
    Scenario(_measure_stream, quick=True, direct=True),
    Scenario(_measure_latency, direct=True),
    Scenario(_measure_pair, workers=2),
)
"""In this order: memory comes first, before large prompts have grown a heap."""
