"""The floor: the same models and Deployments written by a client alone, no operator.

What is left when nobody decides, watches or reports: the API server, and what the controller
manager, the scheduler and the nodes do meanwhile with what is there.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from nimway.tasks import spawn
from tests.bench_control import processes
from tests.bench_control.bench import CLIENTS, Bench, model, models_path, pause, summary
from tests.bench_control.watching import Manifest, is_successor, spec_holds, until
from tests.support.installed import NAMESPACE

_OPERATOR = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/nimway-operator"
_APPLY = "application/apply-patch+yaml"
_WAIT_S = 20.0


@dataclass(frozen=True)
class Template:
    """A Deployment as the operator applies it, as JSON, and the name that stands all over it."""

    text: str
    name: str

    @classmethod
    async def read(cls, bench: Bench, namespace: str) -> "Template":
        path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
        live = (await bench.client.get(path, limit="1"))["items"][0]
        metadata = {key: live["metadata"][key] for key in ("name", "labels", "annotations")}
        made = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata}
        return cls(json.dumps(made | {"spec": live["spec"]}), metadata["name"])

    def build(self, name: str, owner: dict[str, Any]) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads(self.text.replace(self.name, name))
        reference = {key: owner[key] for key in ("apiVersion", "kind")}
        reference |= {"name": name, "uid": owner["metadata"]["uid"], "controller": True}
        manifest["metadata"]["ownerReferences"] = [reference]
        return manifest


async def measure(bench: Bench, size: int, template: Template) -> None:
    """Write `size` models, and a Deployment right behind each, through as many connections."""
    await _stop_operator(bench)
    namespace = await bench.create_namespace("floor")
    watch = await bench.watch_deployments(namespace)
    found = bench.processes()
    before_s = processes.cpu_by_role(found)
    names = iter([f"{namespace}-{number}" for number in range(size)])
    began_s = time.perf_counter()

    async def work() -> None:
        for name in names:
            await _write(bench, namespace, name, template)

    await asyncio.gather(*(spawn(work(), name="writing") for _ in range(CLIENTS)))
    await until(lambda: len(watch.added) >= size, 600, f"{size} Deployments")
    last_s = max(watch.added.values()) - began_s
    spent_s = processes.cpu_by_role(found)
    watch.stop()
    bench.found["floor"] = {
        "models": size,
        "last_deployment_s": round(last_s, 2),
        "cpu_until_last_s": {role: round(spent_s[role] - before_s[role], 2) for role in before_s},
    }


async def measure_paced(bench: Bench, count: int, template: Template) -> None:
    """Change a model and its Deployment, then replace the Deployment, one model at a time.

    What `paced.py` waits for, without the operator between the two calls.
    """
    await _stop_operator(bench)
    namespace = await bench.create_namespace("floor")
    watch = await bench.watch_deployments(namespace)
    names = [f"{namespace}-{number}" for number in range(count)]
    made = {}
    for name in names:
        made[name] = await _write(bench, namespace, name, template)
        await pause(0.15, 0.35)

    async def timed(
        is_there: Callable[[str, Manifest], bool], *calls: Callable[[], Awaitable[object]]
    ) -> float:
        arrived = watch.expect(is_there)
        began_s = time.perf_counter()
        for call in calls:
            await call()
        took_ms = 1000 * ((await asyncio.wait_for(arrived, _WAIT_S))[0] - began_s)
        await pause(0.15, 0.35)
        return took_ms

    changes, successors = [], []
    for name in names:
        # The Deployment that the template was read from had been changed as well.
        env = [{"name": "BENCH", "value": f"again-{name}"}]
        container = made[name]["spec"]["template"]["spec"]["containers"][0]
        container["env"] = [each for each in container["env"] if each["name"] != "BENCH"] + env
        change = partial(bench.client.patch, models_path(namespace, name), {"spec": {"env": env}})
        apply = partial(_apply, bench, namespace, made[name])
        changes.append(await timed(partial(spec_holds, f"again-{name}"), change, apply))
    for name in names:
        uid = watch.objects[namespace, name]["metadata"]["uid"]
        path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}"
        delete = partial(bench.client.delete, path, {"propagationPolicy": "Background"})
        apply = partial(_apply, bench, namespace, made[name])
        successors.append(await timed(partial(is_successor, name, uid), delete, apply))
    watch.stop()
    bench.found["floor_change"] = summary(changes)
    bench.found["floor_replace"] = summary(successors)
    await bench.delete_models(namespace)
    await bench.client.patch(_OPERATOR, {"spec": {"replicas": 1}})
    await until(lambda: bool(bench.processes().operators), 60, "the operator's return")
    await bench.quiet()


async def _stop_operator(bench: Bench) -> None:
    await bench.client.patch(_OPERATOR, {"spec": {"replicas": 0}})
    await until(lambda: not bench.processes().operators, 60, "the operator's end")


async def _write(bench: Bench, namespace: str, name: str, template: Template) -> dict[str, Any]:
    """Create a model and its Deployment; return the latter as it was applied."""
    owner = await bench.client.create(models_path(namespace), model(name))
    manifest = template.build(name, owner)
    await _apply(bench, namespace, manifest)
    return manifest


async def _apply(bench: Bench, namespace: str, manifest: dict[str, Any]) -> None:
    name = manifest["metadata"]["name"]
    await bench.client.patch(
        f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}?fieldManager=bench&force=true",
        manifest,
        _APPLY,
    )
