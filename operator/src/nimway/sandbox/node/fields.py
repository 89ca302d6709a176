"""Downward API: what `fieldRef` and `resourceFieldRef` mean for a pod. Pure."""

import math
import re
from typing import Any, Final

_SUBSCRIPT: Final = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")
_SUFFIXES: Final = {
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "Pi": 2**50,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "m": 0.001,
    "": 1,
}


class FieldError(Exception):
    """The reference names a field that does not exist; the text is the kubelet's."""


def field(pod: dict[str, Any], path: str, *, address: str, host_address: str) -> str:
    """Return the value of a `fieldRef.fieldPath`."""
    metadata, spec = pod["metadata"], pod["spec"]
    if match := _SUBSCRIPT.fullmatch(path):
        return str(metadata.get(match[1], {}).get(match[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        values = metadata.get(path.removeprefix("metadata."), {})
        return "\n".join(f'{key}="{_quoted(values[key])}"' for key in sorted(values))
    known = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", ""),
        "status.hostIP": host_address,
        "status.hostIPs": host_address,
        "status.podIP": address,
        "status.podIPs": address,
    }
    if path not in known:
        raise FieldError(f"unsupported fieldPath: {path}")
    return str(known[path])


def resource(
    pod: dict[str, Any],
    reference: dict[str, Any],
    container: str | None,
    allocatable: dict[str, str],
) -> str:
    """Return a `resourceFieldRef`'s value; a limit that is not set is the node's allocatable."""
    name = reference.get("containerName") or container
    containers = [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]
    found = next((each for each in containers if each["name"] == name), None)
    if found is None:
        raise FieldError(f"container {name} not found")
    kind, _, resource_name = reference["resource"].partition(".")
    resources = found.get("resources", {})
    value = resources.get(kind, {}).get(resource_name)
    if value is None and kind == "limits":
        value = allocatable.get(resource_name)
    divisor = quantity(str(reference.get("divisor") or "1")) or 1
    return str(math.ceil(quantity(str(value or "0")) / divisor))


def quantity(text: str) -> float:
    """Return the number that a Kubernetes quantity like `500m` or `2Gi` stands for."""
    match = re.fullmatch(r"([+-]?[\d.]+(?:[eE][+-]?\d+)?)([A-Za-z]*)", text)
    if match is None or match[2] not in _SUFFIXES:
        raise FieldError(f"not a quantity: {text}")
    return float(match[1]) * _SUFFIXES[match[2]]


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
