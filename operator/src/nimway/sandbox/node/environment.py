"""A container's environment and command line, as the kubelet composes them. Pure.

`references` says which Secrets and ConfigMaps are needed, the caller fetches them, `build` puts
the result together. `$(VAR)` is expanded as Kubernetes documents it: `$$(VAR)` stays, an unknown
name stays as it is.
"""

import base64
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

_REFERENCE: Final = re.compile(r"\$\$|\$\(([^()\s$]*)\)")
_ENV_NAME: Final = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")

Objects = Mapping[tuple[str, str], dict[str, Any] | None]
"""(`Secret` or `ConfigMap`, name) -> the object, None when it does not exist."""


class ConfigError(Exception):
    """The container cannot be created (CreateContainerConfigError); the text is a kubelet's."""


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by its value."""

    def replacement(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return values.get(match[1], match[0])

    return _REFERENCE.sub(replacement, text)


def references(container: dict[str, Any]) -> set[tuple[str, str]]:
    """Return the Secrets and ConfigMaps that the container's environment names."""
    found = set()
    for source in container.get("envFrom", []):
        for key, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap")):
            if key in source:
                found.add((kind, source[key]["name"]))
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        for key, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
            if key in source:
                found.add((kind, source[key]["name"]))
    return found


def build(
    container: dict[str, Any],
    namespace: str,
    objects: Objects,
    *,
    base: Mapping[str, str],
    field: Callable[[str], str],
    resource: Callable[[dict[str, Any]], str],
) -> dict[str, str]:
    """Return the environment: `base`, then envFrom, then env, each over the one before.

    `base` is what the image would set, for `$(VAR)` it counts last.

    Raises:
        ConfigError: a Secret or ConfigMap, or a key in one, is missing and not optional.
    """
    values: dict[str, str] = {}
    for source in container.get("envFrom", []):
        values |= _whole_object(source, namespace, objects)
    for variable in container.get("env", []):
        source = variable.get("valueFrom")
        if source is None:
            values[variable["name"]] = expand(variable.get("value", ""), dict(base) | values)
        elif "fieldRef" in source:
            values[variable["name"]] = field(source["fieldRef"]["fieldPath"])
        elif "resourceFieldRef" in source:
            values[variable["name"]] = resource(source["resourceFieldRef"])
        elif (value := _key_of_object(source, namespace, objects)) is not None:
            values[variable["name"]] = value
    return dict(base) | values


def decoded(kind: str, item: dict[str, Any]) -> dict[str, bytes]:
    """Return the content of a Secret or ConfigMap: key -> bytes."""
    if kind == "Secret":
        return {key: base64.b64decode(value) for key, value in (item.get("data") or {}).items()}
    plain = {key: value.encode() for key, value in (item.get("data") or {}).items()}
    binary = item.get("binaryData") or {}
    return plain | {key: base64.b64decode(value) for key, value in binary.items()}


def _whole_object(source: dict[str, Any], namespace: str, objects: Objects) -> dict[str, str]:
    kind, key = ("Secret", "secretRef") if "secretRef" in source else ("ConfigMap", "configMapRef")
    reference = source[key]
    item = objects.get((kind, reference["name"]))
    if item is None:
        if reference.get("optional"):
            return {}
        raise ConfigError(not_found(kind, namespace, reference["name"]))
    prefix = source.get("prefix", "")
    return {
        prefix + name: value.decode(errors="replace")
        for name, value in decoded(kind, item).items()
        if _ENV_NAME.fullmatch(prefix + name)
    }


def _key_of_object(source: dict[str, Any], namespace: str, objects: Objects) -> str | None:
    kind, key = ("Secret", "secretKeyRef")
    if "configMapKeyRef" in source:
        kind, key = ("ConfigMap", "configMapKeyRef")
    reference = source[key]
    item = objects.get((kind, reference["name"]))
    if item is None:
        if reference.get("optional"):
            return None
        raise ConfigError(not_found(kind, namespace, reference["name"]))
    content = decoded(kind, item)
    if reference["key"] not in content:
        if reference.get("optional"):
            return None
        raise ConfigError(
            f"couldn't find key {reference['key']} in {kind} {namespace}/{reference['name']}"
        )
    return content[reference["key"]].decode(errors="replace")


def not_found(kind: str, namespace: str, name: str) -> str:
    """Return the kubelet's words for a missing object."""
    del namespace
    return f'{kind.lower()} "{name}" not found'
