"""The autoscaler on a real API server, its demand told by pods that only report.

The pods exist for the API server alone: their status says ready, their address is a loopback one
of this process, which answers `/state` there as a proxy does.
"""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from nimway.control.client import KubeClient
from nimway.control.kinds import CONFIG_MAP, MODEL, POD, PROXY, Manifest
from nimway.routes import KEY_REVISION, KEY_ROUTES
from nimway.state import STATE_PORT, ModelLoad, ProxyState, encode
from tests.control import samples
from tests.control.process import condition, create, find, patch, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180), pytest.mark.usefixtures("operator")]

FAST = {"minReplicas": 0, "maxReplicas": 2, "scaleDownDelaySeconds": 0, "idleSeconds": 2}


class ReportingPod:
    """One proxy pod's back-channel: `say` changes what it reports."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._state = ProxyState("", ready=True, draining=False)
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.address, STATE_PORT)

    def stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()

    def say(self, model: str, in_flight: int = 0, queued: int = 0, demand: int = 0) -> None:
        load = ModelLoad(in_flight, queued, demand)
        self._tell(replace(self._state, models={**self._state.models, model: load}))

    def serve(self, revision: str) -> None:
        """Report the table of this revision as the one that is served."""
        self._tell(replace(self._state, revision=revision))

    def _tell(self, state: ProxyState) -> None:
        self._state = state
        for writer in self._writers:
            self._write(writer)

    @property
    def is_heard(self) -> bool:
        return bool(self._writers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        self._writers.add(writer)
        try:
            while not writer.is_closing():
                self._write(writer)
                await asyncio.sleep(1)
        finally:
            self._writers.discard(writer)
            writer.close()

    def _write(self, writer: asyncio.StreamWriter) -> None:
        line = encode(self._state)
        writer.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")


async def _add_pod(api: KubeClient, owner: Manifest, address: str) -> None:
    """Create a proxy pod that nobody runs, and have its status say ready."""
    namespace, name = owner["metadata"]["namespace"], f"reports-{address.rpartition('.')[2]}"
    labels = {
        "app.kubernetes.io/managed-by": "nimway",
        "app.kubernetes.io/component": "proxy",
        "nimway.dev/owner-uid": owner["metadata"]["uid"],
    }
    spec = {"schedulerName": "nobody", "containers": [{"name": "a", "image": "a"}]}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    await create(api, POD, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    status = {
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    await api.request(
        "PATCH",
        f"{POD.path(namespace, name)}/status",
        body={"status": status},
        content_type="application/merge-patch+json",
    )


class Fleet:
    """Two proxy pods that report, of one NIMProxy in a namespace of its own."""

    def __init__(self, api: KubeClient, namespace: str, pods: list[ReportingPod]) -> None:
        self.api = api
        self.namespace = namespace
        self.pods = pods

    async def add_model(self, name: str, autoscaling: Any, **spec: Any) -> str:
        spec = {"model": f"org/{self.namespace}-{name}", "autoscaling": autoscaling, **spec}
        manifest = samples.model(name, self.namespace, **spec)
        manifest["metadata"] = {"name": name, "namespace": self.namespace}
        await create(self.api, MODEL, manifest)
        await self.serve_table(name)
        return f"{self.namespace}/{name}"

    async def serve_table(self, name: str) -> None:
        """Wait until the routing table has a model, and serve it."""

        async def table() -> Manifest | None:
            live = await find(self.api, CONFIG_MAP, self.namespace, "nimway-edge-routes")
            held = live is not None and f"{self.namespace}/{name}" in live["data"][KEY_ROUTES]
            return live if held else None

        live = await until(table, f"{name} is in the table")
        for pod in self.pods:
            pod.serve(live["data"][KEY_REVISION])

    async def model(self, name: str) -> Manifest:
        found = await find(self.api, MODEL, self.namespace, name)
        assert found is not None
        return found

    async def replicas(self, name: str, wanted: int, *, timeout_s: float = 20.0) -> Manifest:
        async def probe() -> Manifest | None:
            live = await self.model(name)
            return live if live["spec"]["replicas"] == wanted else None

        return await until(probe, f"{name} has {wanted} replicas", timeout_s=timeout_s)

    async def reported(self, name: str, reason: str, *, timeout_s: float = 20.0) -> Manifest:
        async def probe() -> Manifest | None:
            live = await self.model(name)
            return live if condition(live, "Ready").get("reason") == reason else None

        return await until(probe, f"{name} is {reason}", timeout_s=timeout_s)

    async def scale(self, name: str, replicas: int) -> None:
        await patch(self.api, MODEL, self.namespace, name, {"spec": {"replicas": replicas}})


@pytest.fixture
async def fleet(api: KubeClient, namespace: str) -> AsyncIterator[Fleet]:
    manifest = samples.proxy("edge", namespace, replicas=0)
    manifest["metadata"] = {"name": "edge", "namespace": namespace}
    owner = await create(api, PROXY, manifest)
    pods = [ReportingPod(f"127.77.0.{number}") for number in (1, 2)]
    for pod in pods:
        await pod.start()
        await _add_pod(api, owner, pod.address)

    async def heard() -> bool:
        return all(pod.is_heard for pod in pods)

    await until(heard, "the operator listens to both pods")
    yield Fleet(api, namespace, pods)
    for pod in pods:
        pod.stop()


async def test_demand_wakes_a_sleeping_model_once_and_at_once(fleet: Fleet) -> None:
    """Many proxies and 1,000 requests each give one write, 0 to 1."""
    key = await fleet.add_model("one", {**FAST, "maxReplicas": 1}, replicas=0)
    before = await fleet.reported("one", "ScaledToZero")
    for number in range(1, 1001):
        for pod in fleet.pods:
            pod.say(key, queued=number, demand=number)
        if number % 50 == 0:
            await asyncio.sleep(0)
    woken = await fleet.replicas("one", 1)
    told = await fleet.reported("one", "Waking")
    assert woken["metadata"]["generation"] == before["metadata"]["generation"] + 1
    assert told["metadata"]["generation"] == woken["metadata"]["generation"]
    scaled = told["status"]["autoscaling"]
    assert scaled["desiredReplicas"] == 1
    assert scaled["lastScaleReason"] == "woken by a request"
    message = condition(told, "Ready")["message"]
    assert message.startswith(f"waking since {scaled['lastScaleTime']}; ")


async def test_from_the_report_to_the_write_it_takes_milliseconds(fleet: Fleet) -> None:
    key = await fleet.add_model("quick", {**FAST, "idleSeconds": 600}, replicas=0)
    await fleet.reported("quick", "ScaledToZero")
    took = []
    for number in range(1, 31):
        said_s = time.perf_counter()
        fleet.pods[0].say(key, queued=1, demand=number)
        await fleet.replicas("quick", 1)
        took.append(time.perf_counter() - said_s)
        fleet.pods[0].say(key, demand=number)
        await fleet.scale("quick", 0)
        await fleet.replicas("quick", 0)

        async def settled() -> bool:
            live = await fleet.model("quick")
            return bool(live["status"]["observedGeneration"] == live["metadata"]["generation"])

        await until(settled, "the operator knows that it sleeps")
    # Seen by asking every 10 ms, on a machine that others share.
    assert statistics.median(took) < 0.15
