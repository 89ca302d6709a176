"""A namespace with models that sleep, watched; and the ready proxies, which clients ask in turn."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from nimway.sandbox.forward import ServiceEndpoints
from nimway.tasks import spawn
from tests.bench_control.bench import Bench, models_path
from tests.bench_control.watching import Manifest, Test, Watch, until
from tests.bench_wake.asking import Address
from tests.support.installed import NAMESPACE, NIM_IMAGE

ASLEEP_S = 90.0
PROXIES = "nimway-default"
PROXY_PATH = f"/apis/nimway.dev/v1alpha1/namespaces/{NAMESPACE}/nimproxies/default"
PROXY_PODS = "app.kubernetes.io/component=proxy"
INSTANCE = "app.kubernetes.io/instance"
DRAIN_S = 1
"""A pod's last seconds are no part of what is measured; cycles have a whole drain."""

QUICK = {"LOAD_S": "0.2", "TTFT_S": "0", "TOKEN_S": "0"}
"""A simulated NIM that only costs its start."""


def autoscaled(
    name: str, *, simulation: Mapping[str, str], autoscaling: Mapping[str, int], **spec: Any
) -> Manifest:
    """Return a NIMModel that clients call `wake/<name>`; it sleeps from the beginning."""
    rules = {"minReplicas": 0, "maxReplicas": 1, "scaleDownDelaySeconds": 0, "idleSeconds": 1}
    return {
        "apiVersion": "nimway.dev/v1alpha1",
        "kind": "NIMModel",
        "metadata": {"name": name},
        "spec": {
            "model": served_name(name),
            "image": NIM_IMAGE,
            "replicas": 0,
            "drain": {"seconds": DRAIN_S},
            "autoscaling": {**rules, "targetConcurrency": 1000, **autoscaling},
            "env": environment(simulation),
            **spec,
        },
    }


def environment(simulation: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": f"NIMSIM_{key}", "value": value} for key, value in simulation.items()]


def served_name(name: str) -> str:
    return f"wake/{name}"


@dataclass
class Stage:
    """See the module. `models` and `pods` are those of the namespace."""

    bench: Bench
    namespace: str
    models: Watch
    pods: Watch
    proxies: ServiceEndpoints

    @classmethod
    @asynccontextmanager
    async def of(cls, bench: Bench, prefix: str) -> AsyncIterator["Stage"]:
        namespace = await bench.create_namespace(prefix)
        proxies = ServiceEndpoints("http")
        following = spawn(
            proxies.follow(bench.client, NAMESPACE, PROXIES), name="following the proxies"
        )
        await proxies.listed.wait()
        path = f"/api/v1/namespaces/{namespace}/pods"
        stage = cls(
            bench,
            namespace,
            await Watch(bench.client, models_path(namespace)).start(),
            await Watch(bench.client, path).start(),
            proxies,
        )
        try:
            yield stage
        finally:
            stage.models.stop()
            stage.pods.stop()
            following.cancel()
            await bench.delete_models(namespace)

    async def create(self, *manifests: Manifest) -> None:
        """Create models, and wait until every proxy routes them."""
        for manifest in manifests:
            await self.bench.client.create(models_path(self.namespace), manifest)
        names = [manifest["metadata"]["name"] for manifest in manifests]
        await until(lambda: all(map(self._is_routed, names)), ASLEEP_S, f"{names} are routed")

    async def watch_slices(self, name: str) -> Watch:
        """Watch the EndpointSlices of one model."""
        path = f"/apis/discovery.k8s.io/v1/namespaces/{self.namespace}/endpointslices"
        selector = f"kubernetes.io/service-name={name}"
        return await Watch(self.bench.client, path, labelSelector=selector).start()

    def choose(self) -> Address | None:
        """Return the next ready proxy."""
        return self.proxies.choose()

    def replicas(self, name: str) -> int:
        model = self.models.objects.get((self.namespace, name), {"spec": {}})
        declared: int = model["spec"].get("replicas", 1)
        return declared

    def pods_of(self, name: str) -> list[Manifest]:
        return [pod for pod in self.pods.objects.values() if is_of(pod, name)]

    async def asleep(self, *names: str, gone: bool = True) -> None:
        """Wait until models have zero replicas, with `gone` until their pods have ended too."""
        await until(
            lambda: not any(self.replicas(name) or (gone and self.pods_of(name)) for name in names),
            ASLEEP_S,
            f"{', '.join(names)} asleep",
        )

    async def set_proxies(self, count: int) -> None:
        """Have so many proxy pods, and wait until they are all there are."""
        await self.bench.client.patch(PROXY_PATH, {"spec": {"replicas": count}})
        for _ in range(600):
            if len(await self.bench.pods(PROXY_PODS)) == count == self.proxies_ready():
                return
            await asyncio.sleep(0.1)
        raise TimeoutError(f"there are not {count} proxies")

    def proxies_ready(self) -> int:
        """Return how many proxies are ready, by their Service's EndpointSlices."""
        return len({self.choose() for _ in range(8)} - {None})

    def _is_routed(self, name: str) -> bool:
        model = self.models.objects.get((self.namespace, name), {})
        conditions = model.get("status", {}).get("conditions", ())
        return any(
            each["type"] == "Routed"
            and each["status"] == "True"
            and each.get("observedGeneration") == model["metadata"]["generation"]
            for each in conditions
        )


def is_of(pod: Manifest, name: str) -> bool:
    return bool(pod["metadata"].get("labels", {}).get(INSTANCE) == name)


def has_ready(item: Manifest) -> bool:
    """Tell whether an EndpointSlice has a ready endpoint."""
    return any(each["conditions"].get("ready") for each in item.get("endpoints") or ())


def turned_ready(name: str) -> Test:
    """Return the test of a pod of this model that is ready and not on its way out."""

    def test(_: str, pod: Manifest) -> bool:
        conditions = pod.get("status", {}).get("conditions", ())
        return (
            is_of(pod, name)
            and "deletionTimestamp" not in pod["metadata"]
            and any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
        )

    return test
