"""A held request: from its arrival to the scale write, and from the ready pod to its answer.

`ready` begins when the pod's Ready condition arrives at a watch: the whole way from zero, with a
process. `patched` begins just before the call that makes a pretended pod ready, and so contains
that call, as in `make bench-control`.
"""

import asyncio
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

from tests.bench_control.audit import OPERATOR, Request
from tests.bench_control.bench import Bench, model, models_path, pause, say, summary
from tests.bench_control.paced import pod_status
from tests.bench_control.proxies import PORT, Upstream
from tests.bench_control.watching import Watch, until
from tests.bench_wake.asking import ANSWERED, Asked, Question, Tally, ask
from tests.bench_wake.stage import (
    PROXY_PODS,
    QUICK,
    Stage,
    autoscaled,
    has_ready,
    served_name,
    turned_ready,
)

SCALE = "nimmodels/scale"
_READY_S = 30.0


async def measure(bench: Bench) -> None:
    """Wake models one after the other, each with one request."""
    count, names = (10, ["a", "b"]) if bench.quick else (100, ["a", "b", "c"])
    async with Stage.of(bench, "held") as stage:
        rules = {"idleSeconds": 1}
        await stage.create(
            *(autoscaled(name, simulation=QUICK, autoscaling=rules) for name in names)
        )
        say(f"held requests: {count} wakes from zero")
        bench.audit.mark()
        asked: list[Asked] = []
        ready_ms: list[float] = []
        for number in range(count):
            name = names[number % len(names)]
            await stage.asleep(name)
            await pause(0.1, 0.4)
            ready = stage.pods.expect(turned_ready(name))
            asked.append(await ask(stage.choose(), Question(f"held-{number}", served_name(name))))
            ready_s, _ = await asyncio.wait_for(ready, _READY_S)
            ready_ms.append(1000 * (asked[-1].ended_s - ready_s))
        writes = scale_writes(bench, stage.namespace)
        say(f"held requests: {count} on a pretended pod")
        patched = await _patched(bench, stage, count)
    written = [_written_ms(each, writes) for each in asked]
    bench.found["held"] = {
        "ready": summary(ready_ms),
        "patched": summary(patched["all"]),
        "slice": summary(patched["slice"]),
        "written": summary([each for each in written if each is not None]),
        "unwritten": written.count(None),
        "cold_start": summary([1000 * each.took_s for each in asked]),
        "lost": Tally.of(asked).lost + patched["lost"],
        "wakes": len(asked),
        "scale_writes": len(writes),
    }
    say(f"  {bench.found['held']}")


def scale_writes(bench: Bench, namespace: str) -> list[Request]:
    """Return the operator's accepted writes of replicas in a namespace since the mark."""
    return [
        each
        for each in bench.audit.requests(OPERATOR)
        if each.resource == SCALE
        and each.is_write
        and each.code < 300
        and each.key.startswith(f"{namespace}/")
    ]


def _written_ms(asked: Asked, writes: Iterable[Request]) -> float | None:
    """Return from a request's sending to the answer to the first scale write after it."""
    name = asked.question.model.rpartition("/")[2]
    after = (
        each.answered_s
        for each in writes
        if each.key.endswith(f"/{name}") and each.received_s >= asked.sent_unix_s
    )
    first = min(after, default=None)
    # A later one than the answer belongs to another wake.
    if first is None or first > asked.sent_unix_s + asked.took_s:
        return None
    return 1000 * (first - asked.sent_unix_s)


async def _patched(bench: Bench, stage: Stage, count: int) -> dict[str, Any]:
    """Hold a request in each proxy for a pod that is not ready, then make it ready by hand."""
    name, namespace = "pretended", stage.namespace
    manifest = model(name)
    manifest["spec"].pop("routing", None)
    await bench.client.create(models_path(namespace), manifest)
    await until(lambda: any(map(_runs, stage.pods_of(name))), _READY_S, "the pretended pod")
    (pod,) = stage.pods_of(name)
    path = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}/status"
    addresses = [(each["status"]["podIP"], PORT) for each in await bench.pods(PROXY_PODS)]
    found: dict[str, Any] = {"all": [], "slice": [], "lost": 0}
    upstream, slices = Upstream(), await stage.watch_slices(name)
    await upstream.start()
    try:
        for number in range(count):
            upstream.ready = False
            await bench.client.patch(path, pod_status(upstream.address, ready=False))
            await until(partial(_is_empty, slices), _READY_S, "no endpoint")
            await pause(0.1, 0.3)
            questions = [
                Question(f"patched-{number}-{place}", f"bench/{name}")
                for place in range(len(addresses))
            ]
            held = asyncio.gather(*map(ask, addresses, questions))
            await pause(0.2, 0.4)
            in_slice = slices.expect(lambda _, item: has_ready(item))
            began_s = time.perf_counter()
            upstream.ready = True
            await bench.client.patch(path, pod_status(upstream.address, ready=True))
            asked = await held
            end_s = max(each.ended_s for each in asked)
            found["all"].append(1000 * (end_s - began_s))
            slice_s = (await asyncio.wait_for(in_slice, _READY_S))[0]
            found["slice"].append(1000 * max(0.0, end_s - slice_s))
            found["lost"] += sum(each.fate != ANSWERED or each.ended_s < began_s for each in asked)
    finally:
        slices.stop()
        upstream.stop()
    return found


def _is_empty(slices: Watch) -> bool:
    return not any(map(has_ready, slices.objects.values()))


def _runs(pod: dict[str, Any]) -> bool:
    return bool(pod.get("status", {}).get("podIP"))
