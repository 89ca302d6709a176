"""Persistent volumes: the StorageClass `standard`, which makes a directory for each claim.

Owns provisioning, deletion, and which node a volume is attached to; binding is the controller
manager's, ReadWriteOncePod the scheduler's. Sizes and read-only modes are not enforced.
"""

import asyncio
import shutil
from pathlib import Path
from typing import Any, Final

from nimway.sandbox.client import ApiError, Client
from nimway.sandbox.node.environment import ConfigError
from nimway.tasks import spawn

_ONE_NODE: Final = frozenset({"ReadWriteOnce", "ReadWriteOncePod"})
PROVISIONER: Final = "sandbox.nimway.dev/directory"
_SELECTED: Final = "volume.kubernetes.io/selected-node"
_CLAIMS: Final = "/api/v1/persistentvolumeclaims"
_VOLUMES: Final = "/api/v1/persistentvolumes"


class Attachments:
    """Which pods have which volume, and where: a volume for one node is not given to a second.

    What the attach/detach controller does for volumes that are attached (Kubernetes documentation,
    Persistent Volumes, access modes); a plain directory would not need it.
    """

    def __init__(self) -> None:
        self._holders: dict[str, dict[str, tuple[str, str]]] = {}

    def attach(self, volume: dict[str, Any], pod: dict[str, Any]) -> None:
        """Give a volume to a pod, until `release`.

        Raises:
            ConfigError: a pod on another node has it, and it is for one node at a time.
        """
        name, node = volume["metadata"]["name"], pod["spec"]["nodeName"]
        holders = self._holders.setdefault(name, {})
        if set(volume["spec"]["accessModes"]) <= _ONE_NODE:
            others = sorted(other for other, where in holders.values() if where != node)
            if others:
                text = f"Volume is already used by pod(s) {', '.join(others)}"
                raise ConfigError(f'Multi-Attach error for volume "{name}" {text}')
        holders[pod["metadata"]["uid"]] = pod["metadata"]["name"], node

    def release(self, uid: str) -> None:
        """Take every volume from a pod that has gone."""
        for name in [name for name, holders in self._holders.items() if holders.pop(uid, None)]:
            if not self._holders[name]:
                del self._holders[name]


async def create_class(client: Client) -> None:
    """Create the default StorageClass."""
    storage_class = {
        "metadata": {
            "name": "standard",
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": PROVISIONER,
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Delete",
    }
    await client.create("/apis/storage.k8s.io/v1/storageclasses", storage_class)


async def provision(client: Client, folder: Path) -> None:
    """Make a volume for each claim that a scheduled pod waits for, for ever."""
    spawn(_reclaim(client), name="storage-reclaim")
    async for kind, item in client.follow(_CLAIMS):
        claims = item["items"] if kind == "SYNCED" else [item]
        for claim in claims:
            if kind != "DELETED" and _is_ours(claim):
                await _provision_one(client, folder, claim)


def _is_ours(claim: dict[str, Any]) -> bool:
    annotations = claim["metadata"].get("annotations", {})
    keys = (
        "volume.kubernetes.io/storage-provisioner",
        "volume.beta.kubernetes.io/storage-provisioner",
    )
    ours = any(annotations.get(key) == PROVISIONER for key in keys)
    return ours and _SELECTED in annotations and not claim["spec"].get("volumeName")


async def _provision_one(client: Client, folder: Path, claim: dict[str, Any]) -> None:
    metadata, spec = claim["metadata"], claim["spec"]
    name = f"pvc-{metadata['uid']}"
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o777)
    volume = {
        "metadata": {
            "name": name,
            "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER},
        },
        "spec": {
            "capacity": spec["resources"]["requests"],
            "accessModes": spec["accessModes"],
            "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": spec.get("storageClassName"),
            "hostPath": {"path": str(path)},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
        },
    }
    try:
        await client.create(_VOLUMES, volume)
    except ApiError:
        return


async def _reclaim(client: Client) -> None:
    """Remove volumes, and their directories, whose claims have gone."""
    async for kind, item in client.follow(_VOLUMES):
        volumes = item["items"] if kind == "SYNCED" else [item]
        for volume in volumes:
            provisioned = (
                volume["metadata"].get("annotations", {}).get("pv.kubernetes.io/provisioned-by")
            )
            released = volume.get("status", {}).get("phase") == "Released"
            if kind == "DELETED" or provisioned != PROVISIONER or not released:
                continue
            path = volume["spec"]["hostPath"]["path"]
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
            try:
                await client.delete(f"{_VOLUMES}/{volume['metadata']['name']}")
            except ApiError:
                continue
