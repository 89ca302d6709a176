"""Persistent volumes: the StorageClass `standard`, which makes a directory for each claim.

Owns provisioning and deletion; binding is the controller manager's. Access modes are accepted and
not enforced, sizes are not either.
"""

import asyncio
import shutil
from pathlib import Path
from typing import Any, Final

from nimway.sandbox.client import ApiError, Client
from nimway.tasks import spawn

PROVISIONER: Final = "sandbox.nimway.dev/directory"
_SELECTED: Final = "volume.kubernetes.io/selected-node"
_CLAIMS: Final = "/api/v1/persistentvolumeclaims"
_VOLUMES: Final = "/api/v1/persistentvolumes"


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
