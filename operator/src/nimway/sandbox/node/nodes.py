"""The Node objects that the agent stands for, and their Leases."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from nimway.sandbox.client import STRATEGIC_PATCH, ApiError, Client
from nimway.sandbox.config import BRIDGE_ADDRESS, KUBELET_PORT, SandboxConfig
from nimway.sandbox.node.timing import micro_stamp, now, stamp

ALLOCATABLE: Final = {
    "cpu": "64",
    "memory": "512Gi",
    "ephemeral-storage": "1Ti",
    "pods": "2000",
}
"""What each node claims to have, beside GPUs; nothing holds pods to it."""
GPU: Final = "nvidia.com/gpu"
_RENEW_EVERY_S: Final = 10.0
_LEASE_S: Final = 40


def node_names(config: SandboxConfig) -> list[str]:
    """Return the names of the sandbox's nodes: GPU nodes first."""
    gpu = [f"gpu-{number}" for number in range(1, config.gpu_nodes + 1)]
    return gpu + [f"cpu-{number}" for number in range(1, config.cpu_nodes + 1)]


def manifest(name: str, gpus: int, version: str) -> dict[str, Any]:
    """Return a Node: with GPUs it is labelled and tainted as GPU nodes are."""
    resources = dict(ALLOCATABLE)
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
    }
    spec: dict[str, Any] = {}
    if gpus:
        resources[GPU] = str(gpus)
        labels |= {
            "nvidia.com/gpu.present": "true",
            "nvidia.com/gpu.count": str(gpus),
            "nvidia.com/gpu.product": "Sandbox-Simulated-GPU",
        }
        spec["taints"] = [{"key": GPU, "value": "present", "effect": "NoSchedule"}]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
        "status": {
            "capacity": resources,
            "allocatable": resources,
            "addresses": [
                {"type": "InternalIP", "address": BRIDGE_ADDRESS},
                {"type": "Hostname", "address": name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": KUBELET_PORT}},
            "nodeInfo": _node_info(name, version),
            "conditions": _conditions(),
        },
    }


def _conditions() -> list[dict[str, str]]:
    moment = stamp(now())
    pressures = ("MemoryPressure", "DiskPressure", "PIDPressure")
    conditions = [(kind, "False", "NoPressure") for kind in pressures]
    conditions.append(("Ready", "True", "KubeletReady"))
    return [
        {
            "type": kind,
            "status": value,
            "reason": reason,
            "message": "simulated by the nimway sandbox",
            "lastHeartbeatTime": moment,
            "lastTransitionTime": moment,
        }
        for kind, value, reason in conditions
    ]


def _node_info(name: str, version: str) -> dict[str, str]:
    return {
        "architecture": "amd64",
        "bootID": name,
        "containerRuntimeVersion": "nimway-sandbox://0",
        "kernelVersion": "",
        "kubeProxyVersion": "",
        "kubeletVersion": version,
        "machineID": name,
        "operatingSystem": "linux",
        "osImage": "nimway sandbox (processes, no containers)",
        "systemUUID": name,
    }


async def register(client: Client, config: SandboxConfig, version: str) -> None:
    """Create the nodes."""
    for name in node_names(config):
        gpus = config.gpus_per_node if name.startswith("gpu-") else 0
        await client.create("/api/v1/nodes", manifest(name, gpus, version))


async def keep_leases(
    client: Client, config: SandboxConfig, returned: Callable[[str], None]
) -> None:
    """Renew each node's Lease for ever, or the controller manager takes its pods away.

    While the API server is away for longer than a Lease lasts, nodes are taken for lost. Each then
    says that it is ready again, as a kubelet does, and `returned` is called with its name.
    """
    while True:
        for name in node_names(config):
            try:
                await _renew(client, name)
                node = await client.get(f"/api/v1/nodes/{name}")
                if not _is_ready(node):
                    body = {"status": {"conditions": _conditions()}}
                    await client.patch(f"/api/v1/nodes/{name}/status", body, STRATEGIC_PATCH)
                    returned(name)
            except ApiError:
                continue
        await asyncio.sleep(_RENEW_EVERY_S)


async def _renew(client: Client, name: str) -> None:
    folder = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    spec = {
        "holderIdentity": name,
        "leaseDurationSeconds": _LEASE_S,
        "renewTime": micro_stamp(now()),
    }
    lease = {"metadata": {"name": name}, "spec": spec}
    try:
        await client.patch(f"{folder}/{name}", lease)
    except ApiError as error:
        if error.reason != "NotFound":
            raise
        await client.create(folder, lease)


def _is_ready(node: dict[str, Any]) -> bool:
    conditions = node.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
