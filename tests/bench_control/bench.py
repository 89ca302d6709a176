"""What all measurements share: the sandbox with Nimway in it, and this process inside its network.

The client stands where the operator stands, on the pod network, so that no forwarder is part of
what it measures.
"""

import asyncio
import contextlib
import os
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from nimway.sandbox import launcher, namespaces
from nimway.sandbox.client import ApiError, Client
from tests.bench_control import processes
from tests.bench_control.audit import AuditLog
from tests.bench_control.proxies import ProxyPod
from tests.bench_control.watching import Watch
from tests.support.installed import NAMESPACE

ROUTES: Final = "nimway-default-routes"
DEPLOYMENTS: Final = "/apis/apps/v1/deployments"
CLIENTS: Final = 16
"""So many connections make a burst."""
_PRETEND: Final = {"sandbox.nimway.dev/pretend": "true"}


@dataclass
class Bench:
    """One run: `found` is what is reported, by the name of the measurement."""

    sandbox: launcher.Sandbox
    keeper: int
    client: Client
    audit: AuditLog
    quick: bool
    found: dict[str, Any] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def inside(cls, sandbox: launcher.Sandbox, *, quick: bool) -> AsyncIterator["Bench"]:
        keeper = sandbox._keeper
        assert keeper is not None
        async with Client(sandbox.config.pki) as client:
            yield cls(sandbox, keeper.pid, client, AuditLog(sandbox.audit_log), quick)

    def processes(self) -> processes.Found:
        return processes.find(self.keeper)

    def operator(self) -> int:
        """Return the operator's process id."""
        (pid,) = self.processes().operators
        return pid

    async def create_namespace(self, prefix: str) -> str:
        name = launcher.new_name(prefix)
        await self.client.create("/api/v1/namespaces", {"metadata": {"name": name}})
        await asyncio.sleep(1.0)  # its ServiceAccount, which pods need, comes a moment later
        return name

    async def create_model(self, namespace: str, name: str, *, queue_s: int = 0) -> None:
        await self.client.create(models_path(namespace), model(name, queue_s=queue_s))

    async def watch_deployments(self, namespace: str) -> Watch:
        path = DEPLOYMENTS.replace("v1/", f"v1/namespaces/{namespace}/")
        return await Watch(self.client, path).start()

    @asynccontextmanager
    async def proxy_pods(self) -> AsyncIterator[list[ProxyPod]]:
        """One open connection to each ready proxy pod."""
        pods = await self.pods("app.kubernetes.io/component=proxy")
        opened = [await ProxyPod.connect(pod["status"]["podIP"]) for pod in pods]
        try:
            yield opened
        finally:
            for each in opened:
                each.close()

    async def pods(self, selector: str, namespace: str = NAMESPACE) -> list[dict[str, Any]]:
        path = f"/api/v1/namespaces/{namespace}/pods"
        items: list[dict[str, Any]] = (await self.client.get(path, labelSelector=selector))["items"]
        return items

    async def reconciles(self) -> int:
        """Return how many reconciles of models the operator has done."""
        (pod,) = await self.pods("app.kubernetes.io/component=operator")
        url = f"http://{pod['status']['podIP']}:8081/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            page = await answer.text()
        mark = 'nimway_operator_reconcile_duration_seconds_count{kind="NIMModel"}'
        counts = [line.split()[-1] for line in page.splitlines() if line.startswith(mark)]
        return int(float(counts[0])) if counts else 0

    async def delete_models(self, namespace: str) -> None:
        """Delete all models of a namespace and wait until nothing of them is left."""
        while (await self.client.get(models_path(namespace), limit="1"))["items"]:
            with contextlib.suppress(ApiError):  # a thousand may take longer than the server waits
                await self.client.delete(models_path(namespace))
        kinds = ("/apis/apps/v1", "deployments"), ("/api/v1", "pods"), ("/api/v1", "services")
        deadline_s = time.perf_counter() + 300
        for group, plural in kinds:
            path = f"{group}/namespaces/{namespace}/{plural}"
            while (await self.client.get(path, limit="1"))["items"]:
                if time.perf_counter() > deadline_s:
                    raise TimeoutError(f"{plural} of deleted models stay")
                await asyncio.sleep(0.5)

    async def quiet(self, timeout_s: float = 300.0) -> float:
        """Wait until the operator has stopped writing; return the time of its last write."""
        still_s = 2.0 if self.quick else 5.0
        size, last_s = -1, time.perf_counter()
        deadline_s = last_s + timeout_s
        while time.perf_counter() - last_s < still_s:
            if time.perf_counter() > deadline_s:
                raise TimeoutError(f"the operator still writes after {timeout_s:.0f} s")
            await asyncio.sleep(0.5)
            writes = len(self.audit.writes())
            if writes != size:
                size, last_s = writes, time.perf_counter()
        return last_s


def enter(sandbox: launcher.Sandbox) -> None:
    """Move this process, while it has one thread, into the sandbox's network."""
    assert sandbox._keeper is not None
    keeper = sandbox._keeper.pid
    own = Path("/proc/self/ns/user").readlink() == Path(f"/proc/{keeper}/ns/user").readlink()
    descriptor = os.pidfd_open(keeper)
    namespaces.join(descriptor, namespaces.NEW_NET | (0 if own else namespaces.NEW_USER))
    os.close(descriptor)


def model(name: str, *, queue_s: int = 0) -> dict[str, Any]:
    """Return a NIMModel whose pod gets ready without a process; clients call it by its name.

    Without `queue_s` requests for it do not wait: a client that polls sees each state at once.
    """
    return {
        "apiVersion": "nimway.dev/v1alpha1",
        "kind": "NIMModel",
        "metadata": {"name": name},
        "spec": {
            "model": f"bench/{name}",
            "image": "nvcr.io/nim/sim/model:1.0.0",
            "gpus": 0,
            "annotations": _PRETEND,
            "routing": {"queue": {"maxWaitSeconds": queue_s}},
        },
    }


def models_path(namespace: str, name: str = "") -> str:
    path = f"/apis/nimway.dev/v1alpha1/namespaces/{namespace}/nimmodels"
    return f"{path}/{name}" if name else path


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return n, least, median, 99th percentile (nearest rank) and greatest of some values."""
    ordered = sorted(values)
    if not ordered:
        return {"n": 0}
    rank = max(0, -(-99 * len(ordered) // 100) - 1)
    return {
        "n": len(ordered),
        "min": round(ordered[0], 1),
        "p50": round(statistics.median(ordered), 1),
        "p99": round(ordered[rank], 1),
        "max": round(ordered[-1], 1),
    }


async def pause(low_s: float, high_s: float) -> None:
    """Wait a random time, so that no rhythm of the operator is met on the beat."""
    await asyncio.sleep(random.uniform(low_s, high_s))


def say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {text}\n")
