"""One namespace, one broken way to the API server, and the operators that use it."""

import asyncio
import copy
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from nimway.control.client import KubeClient
from nimway.control.kinds import (
    CHILDREN,
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    OWNERS,
    SERVICE,
    Kind,
    Manifest,
)
from nimway.routes import KEY_PACKED, TABLE_LABEL, RoutingTable, decode, decode_shard
from tests.control import samples
from tests.control.process import (
    OperatorProcess,
    condition,
    create,
    delete,
    environment_of,
    find,
)
from tests.faults.forked import Forked
from tests.support.api_faults import FaultyApi
from tests.support.pacing import pause_s

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
IDENTITY = "operator-0"
"""A restarted container keeps its pod's name, and so its Lease."""

MODEL_CHILDREN = (DEPLOYMENT, SERVICE, DISRUPTION_BUDGET)
REPAIR_S = 5.0
COLLECT_S = 60.0
"""The garbage collector hears of new kinds every 30 s; before, it deletes nothing of theirs."""

PERIOD_S = 0.02
HASHES = {"nimway.dev/applied", "nimway.dev/template", "nimway.dev/intent", "revision"}
"""Hashes that cover a name or a uid."""


async def pause(duration_s: float = PERIOD_S) -> None:
    """Let others run; a test waits for a condition, this is the time between two looks."""
    await asyncio.sleep(duration_s)


async def until(
    probe: Callable[[], Awaitable[T | None]], what: str, *, timeout_s: float = 20.0
) -> T:
    """Ask until the answer is true, and return it."""
    began_s = time.monotonic()
    while True:
        if found := await probe():
            return found
        waited_s = time.monotonic() - began_s
        if waited_s > timeout_s:
            raise AssertionError(f"not in {timeout_s:g} s: {what}; last {found}")
        await pause(pause_s(waited_s))


def model(namespace: str, name: str, **spec: Any) -> Manifest:
    """Return a NIMModel that is switched off: the operator's work, without pods."""
    spec = {"model": f"org/{namespace}-{name}", "replicas": 0, **spec}
    manifest = samples.model(name, namespace, **spec)
    return {**manifest, "metadata": {"name": name, "namespace": namespace}}


def proxy(namespace: str, name: str, **spec: Any) -> Manifest:
    """Return a NIMProxy without pods."""
    manifest = samples.proxy(name, namespace, **{"replicas": 0, **spec})
    return {**manifest, "metadata": {"name": name, "namespace": namespace}}


@dataclass
class World:
    """What a test needs. `api` is the administrator's own way, which nothing breaks."""

    api: KubeClient
    namespace: str
    faults: FaultyApi
    folder: Path
    operators: list[OperatorProcess] = field(default_factory=list)
    exits: int = 0
    token: str = ""
    others: tuple[str, ...] = ()
    _environment: dict[str, str] = field(default_factory=dict)

    def start(self, identity: str = IDENTITY, **environment: str) -> OperatorProcess:
        """Start an operator for this namespace alone, with its Lease there."""
        self._environment = environment
        kubeconfig = self.faults.kubeconfig(self.folder / "kubeconfig", self.token)
        env = environment_of(kubeconfig, self.namespace, POD_NAME=identity, **environment)
        arguments = ["operator"]
        for namespace in (self.namespace, *self.others):
            arguments += ["--namespace", namespace]
        log = self.folder / "operator.log"
        running = OperatorProcess(Forked(arguments, env, log), log)
        self.operators.append(running)
        return running

    def start_for(self, *others: str) -> OperatorProcess:
        """Start an operator that watches other namespaces too."""
        self.others = others
        return self.start()

    def revive(self) -> None:
        """Start the operator again if it failed, as the kubelet does."""
        last = self.operators[-1] if self.operators else None
        if last is None or last.process.poll() in {None, 0, -signal.SIGKILL}:
            return
        self.exits += 1
        self.start(**self._environment)

    def stop_all(self) -> None:
        """End what is left."""
        for each in self.operators:
            if each.process.poll() is None:
                each.process.kill()
            each.process.wait(timeout=10)

    async def apply(self, *manifests: Manifest) -> list[Manifest]:
        """Create objects as a user."""
        kinds = {kind.kind: kind for kind in (*OWNERS, *CHILDREN)}
        return [await create(self.api, kinds[each["kind"]], each) for each in manifests]

    async def find(self, kind: Kind, name: str) -> Manifest | None:
        return await find(self.api, kind, self.namespace, name)

    async def get(self, kind: Kind, name: str) -> Manifest:
        return await self.api.get(kind, self.namespace, name)

    async def delete(self, kind: Kind, name: str, propagation: str = "Background") -> None:
        await delete(self.api, kind, self.namespace, name, propagation)

    async def gone(self, kind: Kind, name: str, *, timeout_s: float = 20.0) -> None:
        async def probe() -> bool:
            return await self.find(kind, name) is None

        await until(probe, f"no {kind.kind} {name}", timeout_s=timeout_s)

    async def reported(
        self, kind: Kind, name: str, wanted: str, *, timeout_s: float = 20.0
    ) -> Manifest:
        """Wait for a condition and its reason, as `Type/Reason`, that speaks of the spec of now."""
        type_, _, reason = wanted.partition("/")

        async def probe() -> Manifest | None:
            self.revive()
            live = await self.find(kind, name)
            told = condition(live, type_)
            current = live and told.get("observedGeneration") == live["metadata"]["generation"]
            return live if current and told.get("reason") == reason else None

        return await until(probe, f"{name}: {wanted}", timeout_s=timeout_s)

    async def table(self, name: str = "edge") -> RoutingTable | None:
        """Return a proxy's table as its proxies may take it: whole, or None."""
        head = f"nimway-{name}-routes"
        query = {"labelSelector": f"{TABLE_LABEL}={head}"}
        listed = await self.api.request("GET", CONFIG_MAP.path(self.namespace), query=query)
        found = {item["metadata"]["name"]: item for item in listed["items"]}
        if head not in found:
            return None
        shards = {
            digest: decode_shard(digest, item["binaryData"][KEY_PACKED])
            for item_name, item in found.items()
            if (digest := item_name.removeprefix(head)[1:])
        }
        return decode(found[head]["data"], shards)

    async def routed(self, *models: str, timeout_s: float = 20.0, name: str = "edge") -> None:
        """Wait until a proxy's table holds exactly these models."""

        async def probe() -> bool:
            self.revive()
            table = await self.table(name)
            return table is not None and sorted(r.name for r in table.routes) == sorted(models)

        await until(probe, f"the table holds {models}", timeout_s=timeout_s)

    async def settled(self, quiet_s: float = 0.6, *, timeout_s: float = 20.0) -> None:
        """Wait until the operator wrote nothing for a while."""
        count, since_s = -1, time.monotonic()
        end_s = since_s + timeout_s
        while time.monotonic() - since_s < quiet_s:
            if len(self.faults.writes()) != count:
                count, since_s = len(self.faults.writes()), time.monotonic()
            assert time.monotonic() < end_s, f"still writing: {self.faults.writes()[-5:]}"
            await pause()

    async def state(self) -> dict[str, Manifest]:
        """Return everything that the operator wrote, without what differs between two runs."""
        found = {}
        for kind in (*OWNERS, *CHILDREN):
            async for page, _ in self.api.pages(kind, self.namespace):
                for item in page:
                    name = item["metadata"]["name"]
                    if name not in {"kube-root-ca.crt", "default"}:
                        found[f"{kind.kind}/{name}"] = normal(item)
        return found


def normal(live: Manifest) -> Manifest:
    """Return an object without uids, versions, times, addresses and others' status."""
    live = copy.deepcopy(live)
    metadata = live["metadata"]
    for key in ("uid", "resourceVersion", "creationTimestamp", "managedFields"):
        metadata.pop(key, None)
    for reference in metadata.get("ownerReferences", ()):
        reference.pop("uid")
    for text in (metadata.get("annotations") or {}), live.get("status", {}):
        for key in set(text) & HASHES:
            text[key] = "..."
    if live["kind"] == CONFIG_MAP.kind:
        table = decode(live.pop("data"))
        live["table"] = [[route.name, *route.names, route.service] for route in table.routes]
    if live["kind"] in {kind.kind for kind in OWNERS}:
        for each in live.get("status", {}).get("conditions", ()):
            each.pop("lastTransitionTime", None)
    else:
        live.pop("status", None)
    for key in ("clusterIP", "clusterIPs"):
        live.get("spec", {}).pop(key, None)
    return live


def kill(operator: OperatorProcess) -> Callable[[], None]:
    """Return a function that ends an operator as a power cut does."""

    def act() -> None:
        operator.process.send_signal(signal.SIGKILL)

    return act
