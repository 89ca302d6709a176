"""What every pod of the node agent shares: the way to the API server, the network, the settings."""

import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nimway
from nimway.sandbox.client import ApiError, Client
from nimway.sandbox.config import API_PORT, BRIDGE_ADDRESS, SandboxConfig
from nimway.sandbox.network import Network
from nimway.sandbox.node.runtime import Forker
from nimway.sandbox.node.storage import Attachments
from nimway.sandbox.node.timing import now, stamp


@dataclass(frozen=True, slots=True)
class Context:
    """Handed to each pod; nothing in it belongs to one."""

    config: SandboxConfig
    client: Client
    network: Network
    forker: Forker
    attachments: Attachments
    nimway: list[str]
    """The command that starts this checkout's nimway."""
    keep: list[str]
    """Folders that programs need, whatever a pod mounts over them."""

    async def find(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """Return a Secret or ConfigMap, None when there is none."""
        plural = {"Secret": "secrets", "ConfigMap": "configmaps"}[kind]
        try:
            return await self.client.get(f"/api/v1/namespaces/{namespace}/{plural}/{name}")
        except ApiError as error:
            if error.reason == "NotFound":
                return None
            raise

    async def tell(self, pod: dict[str, Any], kind: str, reason: str, message: str) -> None:
        """Record an event about the pod; that this fails concerns nobody."""
        metadata = pod["metadata"]
        moment = now()
        event = {
            "metadata": {
                "name": f"{metadata['name']}.{moment.timestamp():.6f}".replace("..", "."),
                "namespace": metadata["namespace"],
            },
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": kind,
            "reason": reason,
            "message": message[:1000],
            "count": 1,
            "firstTimestamp": stamp(moment),
            "lastTimestamp": stamp(moment),
            "source": {"component": "kubelet", "host": pod["spec"].get("nodeName", "")},
        }
        try:
            await self.client.create(f"/api/v1/namespaces/{metadata['namespace']}/events", event)
        except ApiError:
            return


def nimway_command() -> list[str]:
    """Return the command that starts this checkout's nimway."""
    script = Path(sysconfig.get_path("scripts")) / "nimway"
    if script.is_file():
        return [str(script)]
    return [sys.executable, "-c", "from nimway.cli import main; main()"]


def folders_of_programs() -> list[str]:
    """Return the folders without which nimway does not start."""
    source = str(Path(nimway.__file__).parents[1])
    return sorted({sys.prefix, sys.base_prefix, source})


def image_environment(hostname: str) -> dict[str, str]:
    """Return what image and container runtime would put into a container's environment."""
    scripts = sysconfig.get_path("scripts")
    return {
        "PATH": f"{scripts}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/tmp",  # noqa: S108 - writable for any user, as in the image
        "HOSTNAME": hostname,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        # So pods run the nimway that runs the sandbox: the compiled one, say.
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "KUBERNETES_SERVICE_HOST": BRIDGE_ADDRESS,
        "KUBERNETES_SERVICE_PORT": str(API_PORT),
        "KUBERNETES_SERVICE_PORT_HTTPS": str(API_PORT),
    }
