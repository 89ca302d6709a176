"""ServiceMonitors: wanted or not, their kind there or not, and never somebody else's."""

from typing import Any

import pytest

from nimway.control.kinds import MODEL, PROXY, SERVICE_MONITOR, Kind, Manifest
from tests.control.process import condition, create, delete, patch
from tests.faults.world import REPAIR_S, World, model, proxy, until
from tests.support.api_faults import Call

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

CRD = Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition")
OURS = "nimway.dev/test"
NAME = f"{SERVICE_MONITOR.plural}.{SERVICE_MONITOR.group}"
APPEARS_S = 30.0
"""The operator looks every 20 s."""

WANTED = {"metrics": {"serviceMonitor": {"labels": {"release": "x"}, "intervalSeconds": 15}}}


def build_crd() -> Manifest:
    """The kind without its schema, which the Prometheus operator owns."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": SERVICE_MONITOR.version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": anything},
    }
    return {
        "apiVersion": CRD.api_version,
        "kind": CRD.kind,
        "metadata": {"name": NAME, "labels": {OURS: "true"}},
        "spec": {
            "group": SERVICE_MONITOR.group,
            "names": {"kind": SERVICE_MONITOR.kind, "plural": SERVICE_MONITOR.plural},
            "scope": "Namespaced",
            "versions": [version],
        },
    }


async def install(world: World) -> None:
    """Add the kind to the cluster and wait until it is served."""
    if await _crd(world) is None:
        await world.api.request("POST", CRD.path(), body=build_crd())

    async def served() -> bool:
        found = ((await _crd(world)) or {}).get("status", {}).get("conditions") or ()
        return any(each["type"] == "Established" and each["status"] == "True" for each in found)

    await until(served, "the kind is served")


async def remove(world: World) -> None:
    """Take the kind away and wait until it is gone; one that a cluster came with stays."""
    found = await _crd(world)
    if found is not None:
        if OURS not in found["metadata"].get("labels", {}):
            pytest.skip("this cluster has a Prometheus operator")
        await world.api.request("DELETE", CRD.path(None, NAME))

    async def gone() -> bool:
        return await _crd(world) is None

    await until(gone, "the kind is gone")


async def _crd(world: World) -> Manifest | None:
    listed = await world.api.request(
        "GET", CRD.path(), query={"fieldSelector": f"metadata.name={NAME}"}
    )
    return listed["items"][0] if listed["items"] else None


async def monitor(world: World, name: str, *, timeout_s: float = 20.0) -> Manifest:
    async def probe() -> Manifest | None:
        return await world.find(SERVICE_MONITOR, name)

    return await until(probe, f"ServiceMonitor {name}", timeout_s=timeout_s)


def _asks(call: Call) -> bool:
    return call.plural == SERVICE_MONITOR.plural


async def test_monitors_come_with_their_kind_and_nothing_suffers_without_it(world: World) -> None:
    namespace = world.namespace
    await remove(world)
    operator = world.start()
    await world.apply(
        proxy(namespace, "edge", **WANTED), model(namespace, "a", **WANTED), model(namespace, "b")
    )
    await world.routed("a", "b")
    await world.reported(MODEL, "a", "Ready/SwitchedOff")
    await world.reported(PROXY, "edge", "Ready/SwitchedOff")
    assert not operator.log.read_text().count("WARNING")
    assert {str(call.status) for call in world.faults.calls if _asks(call)} == {"404"}

    await install(world)
    try:
        found = await monitor(world, "a", timeout_s=APPEARS_S)
        assert found["metadata"]["labels"]["release"] == "x"
        assert found["spec"]["endpoints"] == [
            {"port": "http", "path": "/v1/metrics", "interval": "15s"}
        ]
        found = await monitor(world, "nimway-edge")
        assert found["spec"]["endpoints"][0]["targetPort"] == "metrics"
        assert await world.find(SERVICE_MONITOR, "b") is None
        await world.settled()
        before = len(world.faults.writes())
        await _repaired(world)
        await patch(world.api, MODEL, namespace, "a", {"spec": {"metrics": None}})
        await world.gone(SERVICE_MONITOR, "a")
        assert len(world.faults.writes("deployments")[before:]) == 0, "no pod is touched"
    finally:
        await remove(world)
    await world.apply(model(namespace, "c", **WANTED))
    await world.reported(MODEL, "c", "Ready/SwitchedOff", timeout_s=APPEARS_S)
    assert operator.process.poll() is None


async def _repaired(world: World) -> None:
    drift: dict[str, Any] = {"spec": {"endpoints": [{"port": "other"}]}}
    await patch(world.api, SERVICE_MONITOR, world.namespace, "a", drift)

    async def restored() -> bool:
        live = await world.get(SERVICE_MONITOR, "a")
        return bool(live["spec"]["endpoints"][0]["port"] == "http")

    await until(restored, "the endpoint is as declared", timeout_s=REPAIR_S)
    await delete(world.api, SERVICE_MONITOR, world.namespace, "nimway-edge")
    await monitor(world, "nimway-edge", timeout_s=REPAIR_S)


async def test_a_monitor_of_somebody_else_is_left_alone(world: World) -> None:
    namespace = world.namespace
    await install(world)
    try:
        theirs = {
            "apiVersion": SERVICE_MONITOR.api_version,
            "kind": SERVICE_MONITOR.kind,
            "metadata": {"name": "a", "namespace": namespace},
            "spec": {"endpoints": [], "selector": {}},
        }
        before = await create(world.api, SERVICE_MONITOR, theirs)
        world.start()
        await world.apply(proxy(namespace, "edge"), model(namespace, "a", **WANTED))
        live = await world.reported(MODEL, "a", "Stalled/ObjectConflict")
        assert f"ServiceMonitor {namespace}/a" in condition(live, "Stalled")["message"]
        await world.routed("a")
        await world.settled()
        assert await world.get(SERVICE_MONITOR, "a") == before
        await delete(world.api, SERVICE_MONITOR, namespace, "a")
        await world.reported(MODEL, "a", "Ready/SwitchedOff", timeout_s=70)
    finally:
        await remove(world)
