"""The floor of a burst: the same models and Deployments written by a client alone, no operator.

What is left when nobody decides, watches or reports: the API server, and what the controller
manager, the scheduler and the nodes do meanwhile with what is there.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

from nimway.tasks import spawn
from tests.bench_control import processes
from tests.bench_control.bench import CLIENTS, Bench, model, models_path
from tests.bench_control.watching import until
from tests.support.installed import NAMESPACE

_OPERATOR = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/nimway-operator"
_APPLY = "application/apply-patch+yaml"


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
    await bench.client.patch(_OPERATOR, {"spec": {"replicas": 0}})
    await until(lambda: not bench.processes().operators, 60, "the operator's end")
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


async def _write(bench: Bench, namespace: str, name: str, template: Template) -> None:
    owner = await bench.client.create(models_path(namespace), model(name))
    await bench.client.patch(
        f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}?fieldManager=bench&force=true",
        template.build(name, owner),
        _APPLY,
    )
