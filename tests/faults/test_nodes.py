"""OP-10: a node that does not answer is told of as such, once Kubernetes knows."""

import json
import time

import pytest

from nimway.control.kinds import MODEL, Kind, Manifest
from tests.control.process import condition
from tests.faults.world import World, model, until
from tests.support.cluster import Cluster
from tests.support.faults import full_only

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), full_only]

NODE = Kind("", "v1", "nodes", "Node")
LOST = "gpu-2"
TOLD_S = 2.0
GRACE_S = 60.0
"""The controller manager waits 50 s for a node's Lease."""


def _silence(namespace: str) -> list[Manifest]:
    """Return a policy that refuses the node's renewals, and its binding."""
    name, api_version = f"silence-{namespace}", "admissionregistration.k8s.io/v1"
    rule = {
        "apiGroups": ["coordination.k8s.io"],
        "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": ["leases"],
        "resourceNames": [LOST],
    }
    policy = {
        "apiVersion": api_version,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {"resourceRules": [rule]},
            "validations": [{"expression": "false", "message": "the node is silent"}],
        },
    }
    binding = {
        "apiVersion": api_version,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    }
    return [policy, binding]


async def test_a_lost_node_is_told_within_two_seconds_of_its_unreadiness(
    world: World, crds: Cluster
) -> None:
    if crds.sandbox is None:
        pytest.skip("a foreign cluster's nodes are not ours to lose")
    world.start()
    place = {"kubernetes.io/hostname": LOST}
    await world.apply(model(world.namespace, "lost", replicas=1, nodeSelector=place))
    await world.reported(MODEL, "lost", "Ready/Serving", timeout_s=60)
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": _silence(world.namespace)})
    crds.kubectl("apply", "-f", "-", stdin=document)
    try:
        await _told(world)
    finally:
        crds.kubectl("delete", "--wait=false", "-f", "-", stdin=document)
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
        patch = json.dumps({"status": {"conditions": [ready]}})
        crds.kubectl("patch", "node", LOST, "--subresource=status", "-p", patch)


async def _told(world: World) -> None:
    async def unready() -> bool:
        node = await world.api.request("GET", NODE.path(None, LOST))
        return bool(condition(node, "Ready")["status"] != "True")

    await until(unready, "Kubernetes takes the node for lost", timeout_s=GRACE_S + 30)
    since_s = time.monotonic()
    live = await world.reported(MODEL, "lost", "Ready/NodeNotReady")
    assert time.monotonic() - since_s <= TOLD_S
    assert "the node of pod lost-" in condition(live, "Ready")["message"]
    assert condition(live, "Stalled")["status"] == "False"
    assert condition(live, "Available")["status"] == "False"
