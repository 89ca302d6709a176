"""Which fields of an object are ours, read from its `managedFields`.

Server-side apply records, field by field, what we applied and still hold: whoever changes or
removes one of our fields takes it out of our entry. So "nothing was touched" is "our entry still
covers everything we set", which no comparison of values can tell: the API server normalises values
and adds defaults, and a field that was taken and given back would later not be removed.
Pure functions; the format is that of structured-merge-diff's FieldsV1.
"""

import functools
import json
from typing import Any

from nimway.control.kinds import FIELD_MANAGER, Manifest

_UNMANAGED_METADATA = frozenset({"name", "namespace", "uid", "resourceVersion", "managedFields"})
_MISSING = object()


def owned_fields(live: Manifest) -> dict[str, Any] | None:
    """Return the FieldsV1 of our own applies to the main resource, None if we never applied."""
    for entry in live["metadata"].get("managedFields", ()):
        if (
            entry.get("manager") == FIELD_MANAGER
            and entry.get("operation") == "Apply"
            and not entry.get("subresource")
        ):
            fields: dict[str, Any] = entry.get("fieldsV1", {})
            return fields
    return None


def last_writer(live: Manifest) -> str:
    """Return the manager that last changed more than the status after us, "" if none shows.

    `live` has all its managedFields. Who only takes fields away leaves no entry.
    """
    entries = live["metadata"].get("managedFields", ())
    ours_at = max(
        (_time(each) for each in entries if each.get("manager") == FIELD_MANAGER), default=""
    )
    found = [
        (_time(each), each.get("manager", ""))
        for each in entries
        if each.get("manager") != FIELD_MANAGER
        and each.get("subresource") != "status"
        and _time(each) >= ours_at
    ]
    return max(found, default=("", ""))[1]


def _time(entry: Manifest) -> str:
    """Return an entry's time as text, which orders as the time does (RFC 3339, UTC, seconds)."""
    return str(entry.get("time", ""))


def lost_fields(desired: Manifest, fields: dict[str, Any]) -> list[str]:
    """Return the paths of what of `desired` is no longer ours, in its order."""
    found: list[str] = []
    for key, value in desired.items():
        if key in {"apiVersion", "kind"}:
            continue
        part = value
        if key == "metadata":
            part = {name: item for name, item in value.items() if name not in _UNMANAGED_METADATA}
            if not part:
                continue
        node = fields.get(f"f:{key}")
        if node is None:
            found.append(key)
        else:
            _lose(part, node, key, found)
    return found


def extract(live: Any, fields: dict[str, Any]) -> Any:
    """Return the part of `live` that `fields` covers: what we applied, as the server holds it.

    `live` is the value that `fields` describes, for instance `spec.template` with its node.
    """
    if not fields:
        return live
    if isinstance(live, dict):
        return {
            key: extract(value, fields[f"f:{key}"])
            for key, value in live.items()
            if f"f:{key}" in fields
        }
    if isinstance(live, list):
        found = []
        for item in live:
            node = _item_node(item, fields)
            if node is not None:
                found.append(extract(item, node))
        return found
    return live


def node_at(fields: dict[str, Any], *path: str) -> dict[str, Any] | None:
    """Return the node of a field such as ("spec", "template"), None if it is not ours."""
    node: dict[str, Any] | None = fields
    for part in path:
        node = node.get(f"f:{part}") if node is not None else None
    return node


def _lose(value: Any, node: dict[str, Any], path: str, found: list[str]) -> None:
    if not node:
        return  # a leaf, or a list or map that is owned as a whole
    if isinstance(value, dict):
        for key, item in value.items():
            below = node.get(f"f:{key}")
            if below is None:
                found.append(f"{path}.{key}")
            elif below:
                _lose(item, below, f"{path}.{key}", found)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            below = _item_node(item, node)
            if below is None:
                found.append(f"{path}[{index}]")
            elif below:
                _lose(item, below, f"{path}[{index}]", found)


@functools.lru_cache(maxsize=4096)
def _identity(key: str) -> tuple[tuple[str, Any], ...]:
    """Read a `k:{…}`; the same few come again with every object of a kind."""
    return tuple(json.loads(key[2:]).items())


def _item_node(item: Any, node: dict[str, Any]) -> dict[str, Any] | None:
    """Find a list item's node: `k:{…}` names the fields that identify it, `v:…` is its value."""
    if not isinstance(item, dict):
        found: dict[str, Any] | None = node.get(f"v:{json.dumps(item)}")
        return found
    for key, below in node.items():
        if key.startswith("k:") and all(
            item.get(name, _MISSING) == value for name, value in _identity(key)
        ):
            matched: dict[str, Any] = below
            return matched
    return None
