"""OP-18, SEC-6: the shipped rights suffice, none is idle, and no secret is read or repeated."""

import json
import subprocess
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import yaml

from nimway.control.kinds import (
    CHILDREN,
    CLAIM,
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    MODEL,
    PROXY,
    ROLE_BINDING,
    SERVICE,
    SERVICE_ACCOUNT,
    SERVICE_MONITOR,
)
from nimway.sandbox import toolchain
from tests.control.process import create, patch
from tests.faults import test_monitors
from tests.faults.world import COLLECT_S, World, model, proxy, until
from tests.support.api_faults import Call, refuse
from tests.support.cluster import Cluster
from tests.support.installed import CHART

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
SECRET = "nvapi-a-key-that-nobody-may-see"

Right = tuple[str, str, str]
"""API group, resource (with its subresource), verb."""


def _rendered(namespace: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [str(toolchain.helm(print)), "template", namespace, str(CHART), "--namespace", namespace],
        capture_output=True,
        check=True,
        text=True,
    )
    wanted = {"ServiceAccount", "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}
    made = [each for each in yaml.safe_load_all(done.stdout) if each and each["kind"] in wanted]
    # The users' roles have one name in every release, and are none of the operator's.
    return [each for each in made if not each["metadata"]["name"].startswith("nimway-")]


@pytest.fixture
async def shipped(world: World, crds: Cluster) -> AsyncIterator[list[dict[str, Any]]]:
    """The chart's rights, under names of this test's own, without the operator's pod."""
    manifests = _rendered(world.namespace)
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
    crds.kubectl("apply", "-n", world.namespace, "-f", "-", stdin=document)
    yield manifests
    crds.kubectl("delete", "-n", world.namespace, "--wait=false", "-f", "-", stdin=document)


def _granted(manifests: list[dict[str, Any]], account: str) -> set[Right]:
    return {
        (group, resource, verb)
        for each in manifests
        if each["kind"] in {"Role", "ClusterRole"} and each["metadata"]["name"] == account
        for rule in each["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def _used(call: Call) -> set[Right]:
    parts = call.path.strip("/").split("/")
    group = "" if parts[0] == "api" else parts[1]
    resource = f"{call.plural}/{call.subresource}" if call.subresource else call.plural
    verb = VERBS[call.method]
    if verb == "get" and not call.name:
        verb = "watch" if call.is_watch else "list"
    # An apply that creates is asked for the right to create as well.
    verbs = {verb, "create"} if call.method == "PATCH" and call.status == 201 else {verb}
    return {(group, resource, each) for each in verbs}


def _writes(plural: str, call: Call) -> bool:
    return call.is_write and call.plural == plural


async def _live_through_everything(world: World) -> None:
    """Creation, conflict, drift, change, deletion: whatever makes the operator act."""
    namespace = world.namespace
    storage = {"pvc": {"size": "1Gi", "reclaim": "Delete"}}
    await world.apply(
        proxy(namespace, "edge"), model(namespace, "a", storage=storage, **test_monitors.WANTED)
    )
    await world.routed("a", timeout_s=40)
    await world.reported(MODEL, "a", "Ready/SwitchedOff", timeout_s=40)
    await world.reported(PROXY, "edge", "Ready/SwitchedOff", timeout_s=40)
    await test_monitors.monitor(world, "a")
    for kind in (*CHILDREN, SERVICE_MONITOR):
        async for page, _ in world.api.pages(kind, namespace):
            for item in page:
                labels = {"app.kubernetes.io/component": "x"}
                name = item["metadata"]["name"]
                if item["metadata"].get("labels", {}).get("app.kubernetes.io/part-of") != "nimway":
                    continue
                if "nimway.dev/owner-uid" in item["metadata"]["labels"]:
                    await patch(world.api, kind, namespace, name, {"metadata": {"labels": labels}})
    await world.settled()
    for name in ("a", "nimway-edge"):  # before what went is made again, its owner is read
        await world.delete(SERVICE, name)
    await world.settled()
    await _scale(world)
    await _prune_strays(world)
    await patch(
        world.api, MODEL, namespace, "a", {"spec": {"storage": None, "port": 9000, "metrics": None}}
    )
    await world.gone(SERVICE_MONITOR, "a")
    await world.settled()
    await world.delete(MODEL, "a")
    await world.routed(timeout_s=COLLECT_S)
    await world.gone(CLAIM, "a-store", timeout_s=COLLECT_S)


async def _scale(world: World) -> None:
    """Have the autoscaler bring a count inside its bounds."""
    bounds = {"minReplicas": 1, "maxReplicas": 1}
    await world.apply(model(world.namespace, "b", replicas=2, gpus=64, autoscaling=bounds))

    async def clamped() -> bool:
        return bool((await world.get(MODEL, "b"))["spec"]["replicas"] == 1)

    await until(clamped, "the count is within its bounds")
    await world.delete(MODEL, "b")


async def _prune_strays(world: World) -> None:
    """Add children that no version of now declares, as one with other names would have left."""
    owner = await world.get(MODEL, "a")
    kinds = (DEPLOYMENT, SERVICE, DISRUPTION_BUDGET, CONFIG_MAP, SERVICE_ACCOUNT, ROLE_BINDING)
    selector = {"matchLabels": {"stray": "x"}}
    template = {
        "metadata": {"labels": {"stray": "x"}},
        "spec": {"containers": [{"name": "a", "image": "a"}]},
    }
    specs: dict[str, Any] = {
        DEPLOYMENT.kind: {"replicas": 0, "selector": selector, "template": template},
        SERVICE.kind: {"ports": [{"port": 1}]},
        DISRUPTION_BUDGET.kind: {"selector": selector},
    }
    labels = {
        "nimway.dev/owner-uid": owner["metadata"]["uid"],
        "app.kubernetes.io/managed-by": "nimway",
    }
    for kind in kinds:
        stray: dict[str, Any] = {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "metadata": {"name": "stray", "namespace": world.namespace, "labels": labels},
        }
        if kind.kind in specs:
            stray["spec"] = specs[kind.kind]
        if kind == ROLE_BINDING:
            group = kind.api_version.partition("/")[0]
            stray["roleRef"] = {"apiGroup": group, "kind": "ClusterRole", "name": "view"}
        await create(world.api, kind, stray)
    for kind in kinds:
        await world.gone(kind, "stray")


async def _trouble(world: World) -> None:
    """Have a transition told that an earlier process has told of before."""
    bad = {"limits": {"no-standard-resource": "1"}}
    for value, wanted in ((bad, "Stalled/InvalidSpec"), (None, "Ready/SwitchedOff")):
        await patch(world.api, MODEL, world.namespace, "t", {"spec": {"resources": value}})
        await world.reported(MODEL, "t", wanted)
    await world.settled()


async def test_the_shipped_rights_are_enough_and_each_is_used(
    world: World, crds: Cluster, shipped: list[dict[str, Any]]
) -> None:
    namespace = world.namespace
    account = next(
        each["metadata"]["name"]
        for each in shipped
        if each["kind"] == "ServiceAccount" and each["metadata"]["name"].endswith("operator")
    )
    world.token = crds.kubectl("create", "token", "-n", namespace, account).strip()
    for kind in (*CHILDREN, SERVICE_MONITOR):  # what is refused is read afresh
        world.faults.on(partial(_writes, kind.plural), refuse(409, "Conflict"), times=1)
    await test_monitors.install(world)
    roles = {
        "NIMWAY_PROXY_ROUTES_ROLE": f"{namespace}-nimway-proxy-routes",
        "NIMWAY_PROXY_ENDPOINTS_ROLE": f"{namespace}-nimway-proxy-endpoints",
    }
    await world.apply(model(namespace, "t"))
    for _ in range(2):
        operator = world.start(**roles)
        await _trouble(world)
        operator.stop()
    await world.delete(MODEL, "t")
    operator = world.start(**roles)
    await _live_through_everything(world)
    operator.stop()
    await test_monitors.remove(world)

    denied = [f"{call} {call.status}" for call in world.faults.calls if call.status in {401, 403}]
    assert denied == []
    used = set().union(*(_used(call) for call in world.faults.calls if call.plural))
    granted = _granted(shipped, account)
    assert not any("*" in right for right in granted)
    assert not {right for right in granted | used if right[1].startswith("secrets")}
    assert used <= granted
    # To bind and to own are checked at admission, without a call of their own. Pods are ranked
    # where their servers answer: tests/cluster/test_wake.py.
    idle = sorted(
        right
        for right in granted - used - {("", "pods", "patch")}
        if right[2] != "bind" and not right[1].endswith("/finalizers")
    )
    assert idle == [], "\n".join(map(str, idle))


async def test_a_key_is_nowhere_but_in_its_secret(world: World, crds: Cluster) -> None:
    namespace = world.namespace
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "ngc-api-key"},
        "stringData": {"NGC_API_KEY": SECRET},
    }
    crds.apply(namespace, secret)
    operator = world.start()
    await world.apply(
        proxy(namespace, "edge"),
        model(namespace, "a", authSecret="ngc-api-key", replicas=1, gpus=64),
        model(namespace, "b", authSecret="no-such-secret", replicas=1),
    )
    await world.reported(MODEL, "a", "Ready/WaitingForGPU")
    await world.reported(MODEL, "b", "Ready/SecretNotFound", timeout_s=30)
    everything = crds.kubectl(
        *("get", "-n", namespace, "-o", "yaml"),
        "nimmodels,nimproxies,deployments,replicasets,pods,services,configmaps,events",
    )
    assert "secretKeyRef" in everything
    assert SECRET not in everything
    assert SECRET not in operator.log.read_text(encoding="utf-8")
    assert all(SECRET.encode() not in call.body for call in world.faults.calls)
    assert not [call for call in world.faults.calls if call.plural == "secrets"]
