"""Every field that the operator sets, changed by hand one by one, and timed until repaired.

The fields come from the objects' own managedFields, so a field that is new is measured unasked.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

from nimway.sandbox.client import ApiError
from tests.bench_control.audit import count
from tests.bench_control.bench import Bench, say, summary
from tests.bench_control.watching import Manifest, Watch, until

KINDS = {
    "deployments": "/apis/apps/v1",
    "services": "/api/v1",
    "poddisruptionbudgets": "/apis/policy/v1",
}
_REPAIR_S = 5.0


async def measure(bench: Bench) -> None:
    """Change each field of each child of one model."""
    namespace, name = await bench.create_namespace("drift"), "drifting"
    await bench.create_model(namespace, name)
    bench.audit.mark()
    await asyncio.sleep(3)
    times: list[float] = []
    refused: list[str] = []
    unrepaired: list[str] = []
    for plural, group in KINDS.items():
        watch = await Watch(bench.client, f"{group}/namespaces/{namespace}/{plural}").start()
        path = f"{group}/namespaces/{namespace}/{plural}/{name}"
        child = Child(watch, path, applied_fields(watch.objects[namespace, name]))
        for field in list(child.values())[:: 4 if bench.quick else 1]:
            took_ms = await _drift(bench, child, field)
            if took_ms is None:
                refused.append(f"{plural} {field}")
            elif took_ms < 0:
                unrepaired.append(f"{plural} {field}")
                say(f"  not repaired: {unrepaired[-1]}")
                await _renew(bench, child)
            else:
                times.append(took_ms)
        watch.stop()
    say(f"drift: {len(times)} repaired, {len(refused)} refused, unrepaired: {unrepaired}")
    bench.found["drift"] = summary(times) | {
        "unrepaired": unrepaired,
        "refused": refused,
        "writes": count(bench.audit.writes()),
    }
    await bench.delete_models(namespace)


class Child:
    """One child, and the fields that Nimway applied to it."""

    def __init__(self, watch: Watch, path: str, applied: Manifest) -> None:
        *_, self._namespace, _, self._name = path.split("/")
        self.path = path
        self.watch = watch
        self._applied = applied
        self.wanted = self.declared()

    def live(self) -> Manifest:
        return self.watch.objects[self._namespace, self._name]

    def is_back(self) -> bool:
        key = (self._namespace, self._name)
        return key in self.watch.objects and self.declared() == self.wanted

    def values(self, item: Manifest | None = None) -> dict[str, tuple[str, Any]]:
        """Return JSON pointer and value of each applied field that is there, by the field."""
        found = walk(item or self.live(), self._applied)
        return {field: (pointer, value) for field, pointer, value in found}

    def declared(self, item: Manifest | None = None) -> dict[str, Any]:
        """Return the value of each applied field."""
        return {field: value for field, (_, value) in self.values(item).items()}


async def _drift(bench: Bench, child: Child, field: str) -> float | None:
    """Change one field; return the milliseconds until it is back, -1 if never, None if refused."""
    wanted = child.wanted
    pointer, value = child.values()[field]
    patch: Any = [{"op": "replace", "path": pointer, "value": other(value)}]
    changed = asyncio.Event()

    def repaired(_: str, item: Manifest) -> bool:
        if child.declared(item) == wanted:
            return changed.is_set()
        changed.set()
        return False

    arrived = child.watch.expect(repaired)
    began_s = time.perf_counter()
    try:
        answer = await bench.client.patch(
            f"{child.path}?fieldManager=by-hand", patch, "application/json-patch+json"
        )
        if child.declared(answer) == wanted:
            return None
        return 1000 * ((await asyncio.wait_for(arrived, _REPAIR_S))[0] - began_s)
    except ApiError:
        return None
    except TimeoutError:
        return -1.0
    finally:
        arrived.cancel()
        await asyncio.sleep(0.1)


async def _renew(bench: Bench, child: Child) -> None:
    """Have the operator make the child anew, so that one stuck field does not hide the others."""
    await bench.client.delete(child.path, {"propagationPolicy": "Background"})
    await until(child.is_back, 30, f"{child.path} is back after its deletion")


def other(value: Any) -> Any:
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        swapped = {"True": "False", "Always": "IfNotPresent", "Exists": "Equal"}
        return swapped.get(value, f"{value}1")
    if isinstance(value, dict):
        return {**value, "by-hand": "1"}
    return [*value, "BY_HAND"]


def applied_fields(item: Manifest) -> Manifest:
    """Return the FieldsV1 of Nimway's own apply."""
    for entry in item["metadata"]["managedFields"]:
        if entry["manager"] == "nimway" and not entry.get("subresource"):
            fields: Manifest = entry["fieldsV1"]
            return fields
    raise ValueError("Nimway applied nothing to this object")


def walk(
    value: Any, node: Manifest, field: str = "", pointer: str = ""
) -> Iterator[tuple[str, str, Any]]:
    """Yield field, JSON pointer and value of everything that `node` covers; see FieldsV1."""
    below = {key: each for key, each in node.items() if key != "."}
    if not below:
        yield field, pointer, value
    for key, each in below.items():
        name = key[2:]
        if key.startswith("f:") and isinstance(value, dict) and name in value:
            step = name.replace("~", "~0").replace("/", "~1")
            yield from walk(value[name], each, f"{field}/{name}", f"{pointer}/{step}")
        elif key.startswith("k:"):
            identity = json.loads(name)
            for index, found in enumerate(value):
                if identity.items() <= found.items():
                    yield from walk(found, each, f"{field}[{name}]", f"{pointer}/{index}")
