"""Many models at once, and what they cost afterwards: restart, rest, memory."""

import asyncio
import time
from typing import Any

from nimway.tasks import spawn
from tests.bench_control import floor, processes
from tests.bench_control.audit import count, spacing_ms
from tests.bench_control.bench import CLIENTS, Bench, models_path, say
from tests.bench_control.watching import Watch, until
from tests.support.installed import NAMESPACE

_OPERATOR_SELECTOR = "app.kubernetes.io/name=nimway,app.kubernetes.io/component=operator"
_LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"


async def measure(bench: Bench, idle_s: float) -> None:
    """Create 100, 500 and 1,000 models at once; restart and rest with the last; find the floor."""
    sizes = (20, 100) if bench.quick else (100, 500, 1000)
    bench.found["bursts"] = {}
    namespace = ""
    for size in sizes:
        if namespace:
            await bench.delete_models(namespace)
            await bench.quiet()
        if not bench.quick:
            await _restart(bench)  # each size meets a fresh process
        if size == sizes[0]:
            bench.found["memory_start"] = processes.memory(bench.processes())
        namespace = await bench.create_namespace(f"burst{size}")
        say(f"{size} models at once")
        bench.found["bursts"][size] = await _burst(bench, namespace, size)
        say(f"  {bench.found['bursts'][size]}")
    bench.found["models"] = sizes[-1]
    bench.found["memory_full"] = processes.memory(bench.processes())
    say(f"restart with {sizes[-1]} models")
    bench.found["restart"] = await _restart(bench)
    say(f"  {bench.found['restart']}")
    say(f"{idle_s:.0f} s at rest with {sizes[-1]} models")
    bench.found["idle"] = await _idle(bench, idle_s)
    template = await floor.Template.read(bench, namespace)
    say(f"{sizes[-1]} models at once, without an operator")
    await floor.measure(bench, sizes[-1], template)
    say(f"  {bench.found['floor']}")


async def _burst(bench: Bench, namespace: str, size: int) -> dict[str, Any]:
    watch = await bench.watch_deployments(namespace)
    found = bench.processes()
    reconciled = await bench.reconciles()
    bench.audit.mark()
    before_s = processes.cpu_by_role(found)
    began_s = time.perf_counter()
    created_s = await _create_all(bench, namespace, size) - began_s
    await until(lambda: len(watch.added) >= size, 600, f"{size} Deployments")
    last_s = max(watch.added.values()) - began_s
    at_last_s = processes.cpu_by_role(found)
    settled_s = await bench.quiet() - began_s
    watch.stop()
    writes = bench.audit.writes()
    spacing = spacing_ms(writes, "configmaps")
    cpu_s = processes.cpu_s(*found.operators) - before_s["operator"]
    return {
        "created_s": round(created_s, 2),
        "last_deployment_s": round(last_s, 2),
        "settled_s": round(settled_s, 1),
        "cpu_s": round(cpu_s, 2),
        "cpu_until_last_s": {role: round(at_last_s[role] - before_s[role], 2) for role in before_s},
        "reconciles_per_model": round((await bench.reconciles() - reconciled) / size, 2),
        "cpu_ms_per_model": round(1000 * cpu_s / size, 1),
        "writes_per_model": round(len(writes) / size, 2),
        "writes": count(writes),
        "table_writes": len(spacing) + 1,
        "table_spacing_min_ms": round(min(spacing, default=0.0)),
        "memory": processes.memory(bench.processes())["operator"],
        "unready": await _unready(bench, namespace),
    }


async def _create_all(bench: Bench, namespace: str, size: int) -> float:
    """Create `size` models through several connections; return when the last was accepted."""
    # Of other names than before: those are kept for the namespace that had them.
    names = iter([f"{namespace}-{number}" for number in range(size)])

    async def work() -> None:
        for name in names:
            await bench.create_model(namespace, name)

    await asyncio.gather(*(spawn(work(), name="creating") for _ in range(CLIENTS)))
    return time.perf_counter()


async def _unready(bench: Bench, namespace: str) -> int:
    items = (await bench.client.get(models_path(namespace)))["items"]
    return sum(
        not any(
            each["type"] == "Ready" and each["status"] == "True"
            for each in item.get("status", {}).get("conditions", ())
        )
        for item in items
    )


async def _restart(bench: Bench) -> dict[str, Any]:
    """Delete the operator's pod and wait until its successor is ready, leads and is at rest."""
    pods = await Watch(
        bench.client, f"/api/v1/namespaces/{NAMESPACE}/pods", labelSelector=_OPERATOR_SELECTOR
    ).start()
    leases = await Watch(bench.client, _LEASE).start()
    (old,) = [name for _, name in pods.objects]
    bench.audit.mark()
    leads = leases.expect(lambda _, item: item["spec"].get("holderIdentity") not in ("", None, old))
    ready = pods.expect(lambda _, item: item["metadata"]["name"] != old and _is_ready(item))
    began_s = time.perf_counter()
    await bench.client.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{old}")
    both = await asyncio.wait_for(asyncio.gather(leads, ready), 120)
    await until(lambda: len(bench.processes().operators) == 1, 30, "the old operator's end")
    operator = bench.operator()
    at_lead_s = processes.cpu_s(operator)
    await bench.quiet()
    pods.stop()
    leases.stop()
    return {
        "leads_s": round(both[0][0] - began_s, 2),
        "ready_s": round(both[1][0] - began_s, 2),
        "cpu_at_ready_s": round(at_lead_s, 2),
        "cpu_s": round(processes.cpu_s(operator), 2),
        "writes": count(bench.audit.writes()),
        "memory": processes.memory_mb(operator),
    }


async def _idle(bench: Bench, idle_s: float) -> dict[str, Any]:
    found = bench.processes()
    bench.audit.mark()
    roles = {"operator": found.operators, "parents": found.parents, "workers": found.workers}
    before_s = {role: processes.cpu_s(*pids) for role, pids in roles.items()}
    await asyncio.sleep(idle_s)
    spent_s = {
        role: round(processes.cpu_s(*pids) - before_s[role], 2) for role, pids in roles.items()
    }
    return {
        "seconds": idle_s,
        "writes": count(bench.audit.writes()),
        "lease_renewals": bench.audit.renewals(),
        "cpu_s": spent_s,
        "memory": processes.memory(found),
    }


def _is_ready(item: dict[str, Any]) -> bool:
    conditions = item.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
