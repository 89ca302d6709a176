"""The autoscaler on a real API server, its demand told by pods that only report.

The pods exist for the API server alone: their status says ready, their address is a loopback one
of this process, which answers `/state` there as a proxy does.
"""

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from nimway.control.client import KubeClient
from nimway.control.kinds import CONFIG_MAP, DEPLOYMENT, MODEL, POD, PROXY, Manifest
from nimway.routes import KEY_REVISION, KEY_ROUTES
from nimway.state import STATE_PORT, ModelLoad, ProxyState, encode
from tests.control import samples
from tests.control.process import condition, create, find, patch, until, versions

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180), pytest.mark.usefixtures("operator")]

PRETEND = {"sandbox.nimway.dev/pretend": "true"}
"""On a pod: it is ready at once, and no process runs."""

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
        except asyncio.CancelledError:
            pass  # the end of the test
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
        spec["model"] = f"org/{self.namespace}-{name}"
        if autoscaling is not None:
            spec["autoscaling"] = autoscaling
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
        async def has() -> bool:
            return bool((await self.model(name))["spec"]["replicas"] == wanted)

        return await self._until(has, name, f"has {wanted} replicas", timeout_s)

    async def reported(self, name: str, reason: str, *, timeout_s: float = 20.0) -> Manifest:
        async def told() -> bool:
            return bool(condition(await self.model(name), "Ready").get("reason") == reason)

        return await self._until(told, name, f"is {reason}", timeout_s)

    async def scaled(self, name: str) -> Manifest:
        """Wait until the status tells of a change of the count and of what came of it."""

        async def told() -> bool:
            live = await self.model(name)
            scaled = live["status"].get("autoscaling", {}).get("lastScaleTime")
            return bool(scaled) and condition(live, "Ready")["reason"] != "ScaledToZero"

        return await self._until(told, name, "tells of its scaling", 20.0)

    async def settled(self, name: str) -> Manifest:
        async def settled() -> bool:
            live = await self.model(name)
            current = live["status"]["observedGeneration"] == live["metadata"]["generation"]
            return current and condition(live, "Reconciling").get("status") == "False"

        return await self._until(settled, name, "is settled", 20.0)

    async def _until(
        self, probe: Callable[[], Awaitable[bool]], name: str, what: str, timeout_s: float
    ) -> Manifest:
        """Wait for something, and if it does not come show the object."""
        try:
            await until(probe, what, timeout_s=timeout_s)
        except AssertionError as error:
            live = await self.model(name)
            shown = {"generation": live["metadata"]["generation"], **live["spec"], **live["status"]}
            raise AssertionError(f"{error}: {json.dumps(shown)}") from None
        return await self.model(name)

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
    told = await fleet.scaled("one")
    assert woken["metadata"]["generation"] == before["metadata"]["generation"] + 1
    assert told["metadata"]["generation"] == woken["metadata"]["generation"]
    scaled = told["status"]["autoscaling"]
    assert scaled["desiredReplicas"] == 1
    assert scaled["lastScaleReason"] == "woken by a request"
    # Waking, or already what is in the way of the pod.
    assert condition(told, "Ready")["status"] == "False"


@pytest.mark.alone
async def test_from_the_report_to_the_write_it_takes_milliseconds(fleet: Fleet) -> None:
    rules = {**FAST, "idleSeconds": 600}
    key = await fleet.add_model("quick", rules, replicas=0, annotations=PRETEND)
    await fleet.reported("quick", "ScaledToZero")
    took = []
    for number in range(1, 16):
        said_s = time.perf_counter()
        fleet.pods[0].say(key, queued=1, demand=number)
        await fleet.replicas("quick", 1)
        took.append(time.perf_counter() - said_s)
        fleet.pods[0].say(key, demand=number)
        await fleet.settled("quick")  # by then the report was heard, or it would wake it again
        await fleet.scale("quick", 0)
        await fleet.replicas("quick", 0)
        await fleet.settled("quick")
    # Seen by asking every 10 ms, on a machine that others share.
    assert statistics.median(took) < 0.15


async def test_an_idle_model_falls_asleep_and_a_proxy_unheard_keeps_it_awake(fleet: Fleet) -> None:
    key = await fleet.add_model("idle", FAST, annotations=PRETEND)
    await fleet.reported("idle", "Serving")
    fleet.pods[0].say(key, in_flight=1, demand=1)
    fleet.pods[1].stop()
    fleet.pods[0].say(key, demand=1)
    await asyncio.sleep(4)  # well beyond idleSeconds
    assert (await fleet.model("idle"))["spec"]["replicas"] == 1
    await fleet.pods[1].start()
    await fleet.replicas("idle", 0)
    asleep = await fleet.reported("idle", "ScaledToZero")
    assert condition(asleep, "Ready")["status"] == "True"
    assert condition(asleep, "Stalled")["status"] == "False"
    asleep = await fleet.settled("idle")
    assert asleep["status"]["ready"] == "0/0"
    assert asleep["status"]["autoscaling"]["lastScaleReason"] == "no request for 2 s: asleep"


async def test_a_model_that_runs_a_request_does_not_sleep(fleet: Fleet) -> None:
    key = await fleet.add_model("long", FAST, annotations=PRETEND)
    fleet.pods[0].say(key, in_flight=1, demand=1)
    await fleet.reported("long", "Serving")
    await asyncio.sleep(4)
    assert (await fleet.model("long"))["spec"]["replicas"] == 1
    fleet.pods[0].say(key, demand=1)
    await fleet.replicas("long", 0)


async def test_waking_measures_the_cold_start_and_the_route_tells_it(fleet: Fleet) -> None:
    key = await fleet.add_model("cold", FAST, replicas=0, annotations=PRETEND)
    await fleet.reported("cold", "ScaledToZero")
    fleet.pods[0].say(key, queued=1, demand=1)
    await fleet.reported("cold", "Serving")
    seconds = (await fleet.model("cold"))["status"]["autoscaling"]["coldStartSeconds"]
    assert seconds >= 1

    async def told() -> bool:
        live = await find(fleet.api, CONFIG_MAP, fleet.namespace, "nimway-edge-routes")
        return live is not None and f'"coldStart": {seconds}' in live["data"][KEY_ROUTES]

    await until(told, "the routing table says how long it takes")
    live = await fleet.settled("cold")
    assert condition(live, "Routed")["status"] == "True", "a hint changes no route"
    fleet.pods[0].say(key, demand=1)
    asleep = await fleet.reported("cold", "ScaledToZero")
    assert "which usually takes" in condition(asleep, "Ready")["message"]


async def test_load_scales_up_within_the_bounds_and_down_again(fleet: Fleet) -> None:
    rules = {**FAST, "minReplicas": 1, "maxReplicas": 3, "targetConcurrency": 2}
    key = await fleet.add_model("load", rules, annotations=PRETEND)
    for pod in fleet.pods:
        pod.say(key, in_flight=2, queued=1, demand=3)
    await fleet.replicas("load", 3)
    for pod in fleet.pods:
        pod.say(key, in_flight=5, queued=50, demand=60)
    await fleet.settled("load")
    assert (await fleet.model("load"))["spec"]["replicas"] == 3
    for pod in fleet.pods:
        pod.say(key, demand=60)
    await fleet.replicas("load", 2, timeout_s=5.0)


async def test_a_count_out_of_bounds_is_clamped_and_the_status_says_so(fleet: Fleet) -> None:
    rules = {**FAST, "minReplicas": 1, "scaleDownDelaySeconds": 60}
    await fleet.add_model("bounds", rules, replicas=9, annotations=PRETEND)
    live = await fleet.replicas("bounds", 2)
    await fleet.scale("bounds", 0)
    live = await fleet.replicas("bounds", 1)
    await fleet.settled("bounds")
    live = await fleet.model("bounds")
    scaled = live["status"]["autoscaling"]
    assert scaled["lastScaleReason"] == "0 replicas declared, below minReplicas: 1"
    assert scaled["desiredReplicas"] == 1


async def test_pods_above_the_bounds_never_exist(fleet: Fleet) -> None:
    await fleet.add_model("above", FAST, replicas=9, annotations=PRETEND)

    async def made() -> Manifest | None:
        return await find(fleet.api, DEPLOYMENT, fleet.namespace, "above")

    live = await until(made, "it has its Deployment")  # the table may tell of it before
    assert live["spec"]["replicas"] == 2
    assert live["metadata"]["generation"] == 1


async def test_a_model_that_its_user_switched_off_is_not_woken(fleet: Fleet) -> None:
    key = await fleet.add_model("off", None, replicas=0)
    before = await fleet.reported("off", "SwitchedOff")
    fleet.pods[0].say(key, queued=3, demand=3)
    other = await fleet.add_model("on", FAST, replicas=0)
    fleet.pods[0].say(other, queued=1, demand=1)
    await fleet.replicas("on", 1)
    assert (await fleet.model("off"))["metadata"]["generation"] == before["metadata"]["generation"]
    assert "autoscaling" not in (await fleet.model("off"))["status"]


async def test_a_sleeping_model_at_rest_is_not_written(fleet: Fleet) -> None:
    key = await fleet.add_model("rest", FAST, annotations=PRETEND)
    await fleet.reported("rest", "ScaledToZero")
    await fleet.settled("rest")
    before = await versions(fleet.api, fleet.namespace)
    await asyncio.sleep(3)
    assert await versions(fleet.api, fleet.namespace) == before
    fleet.pods[0].say(key, demand=1)
    await fleet.replicas("rest", 1)
