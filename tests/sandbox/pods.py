"""Pods for the tests of the process node: a web server that can be told how to behave."""

from typing import Any

IMAGE = "ghcr.io/nimway/nimway:test"


def pod(name: str, *container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """Return a pod manifest; `labels` may be among the keywords."""
    metadata = {"name": name, "labels": spec.pop("labels", {"app": name})}
    spec = {"terminationGracePeriodSeconds": 5, **spec, "containers": list(container)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def shell(script: str, **container: Any) -> dict[str, Any]:
    """Return a container that runs a shell script."""
    return {"name": "main", "image": IMAGE, "command": ["sh", "-c", script], **container}


def sleeper(**container: Any) -> dict[str, Any]:
    """Return a container that runs until SIGTERM and then ends at once."""
    return shell("trap 'exit 0' TERM; while :; do sleep 0.05; done", **container)
