"""OP-6, OP-9: every field, changed by its user and back, or changed behind the operator's back."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nimway.control.client import InvalidError
from nimway.control.fields import extract, owned_fields
from nimway.control.kinds import (
    CHILDREN,
    CLAIM,
    DEPLOYMENT,
    MODEL,
    PROXY,
    SERVICE,
    Kind,
    Manifest,
)
from tests.control.process import patch
from tests.faults.world import REPAIR_S, World, model, proxy, until
from tests.support.faults import FULL, full_only

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

CASES = Path(__file__).parents[1] / "data" / "admission"
BASE: dict[str, Any] = {"model": "org/base", "image": "nvcr.io/nim/base:1", "replicas": 0}
STORED = {"storage": {"pvc": {"size": "1Gi", "reclaim": "Delete"}}}
IN_NONE = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In"}]}]}
KEPT = {"replicas", "schedulerName"}
"""Fields that stay as they are: pods are not what these tests are about."""


OTHERS = {"imagePullPolicy": "Always", "image": "nvcr.io/nim/other:2"}
"""Where the good value happens to be the default."""


def _good(plural: str) -> Manifest:
    cases = yaml.safe_load((CASES / f"{plural}.yaml").read_text(encoding="utf-8"))
    found: Manifest = max(cases["good"], key=lambda spec: len(json.dumps(spec)))
    return found


def _changes(good: Manifest) -> Iterator[tuple[str, Manifest]]:
    """One valid change for each field of a spec."""
    for name, value in good.items():
        if name in KEPT:
            continue
        change = {name: OTHERS.get(name, value)}
        if name in {"runAsGroup", "gpuResource", "resources"}:
            change = {key: good[key] for key in (name, "gpus") if key in good}
        yield name, change


async def _children(world: World, name: str) -> str:
    """Return the children of one object, as text that is equal if they are."""
    found = {
        key: value for key, value in (await world.state()).items() if not key.startswith("NIM")
    }
    for value in found.values():
        value["metadata"].pop("generation", None)
        value["metadata"].get("annotations", {}).pop("deployment.kubernetes.io/revision", None)
    text = json.dumps(found, sort_keys=True, indent=1)
    for kind in (MODEL, PROXY):
        if live := await world.find(kind, name):
            text = text.replace(live["metadata"]["uid"], "uid")
    return text


async def _observed(world: World, kind: Kind, name: str) -> str:
    """Wait until the operator has acted on the spec of now, and return the children."""

    async def probe() -> bool:
        live = await world.get(kind, name)
        status = live.get("status", {})
        conditions = status.get("conditions", ())
        return bool(conditions) and all(
            each["observedGeneration"] == live["metadata"]["generation"] for each in conditions
        )

    await until(probe, f"{name} is observed")
    await world.settled(0.25)
    return await _children(world, name)


async def _replace(world: World, kind: Kind, name: str, spec: Manifest) -> None:
    body = [{"op": "replace", "path": "/spec", "value": spec}]
    await patch(world.api, kind, world.namespace, name, body)


async def _discard_claim(world: World) -> None:
    """Delete, as a user, the claim that the operator leaves behind on purpose: it holds weights."""
    if await world.find(CLAIM, "x-store"):
        await _observed(world, MODEL, "x")
        await world.delete(CLAIM, "x-store")
        await world.gone(CLAIM, "x-store")


@pytest.mark.parametrize(
    ("kind", "base"),
    [(MODEL, BASE), pytest.param(PROXY, {"replicas": 0}, marks=full_only)],
    ids=["NIMModel", "NIMProxy"],
)
async def test_every_field_can_be_changed_and_reverted(
    world: World, kind: Kind, base: Manifest
) -> None:
    world.start()
    declared = model(world.namespace, "x") if kind == MODEL else proxy(world.namespace, "x")
    await world.apply({**declared, "spec": base})
    prior = await _observed(world, kind, "x")
    same, left = [], []
    for name, change in list(_changes(_good(kind.plural)))[:: 1 if FULL else 8]:
        await _replace(world, kind, "x", {**base, **change})
        changed = await _observed(world, kind, "x")
        if changed == prior:
            same.append(name)
        await _replace(world, kind, "x", base)
        await _discard_claim(world)
        if await _observed(world, kind, "x") != prior:
            left.append(name)
    assert left == [], "these fields left something behind"
    # What concerns the status or the proxies' table alone changes no child here.
    assert set(same) <= UNSEEN[kind.kind], "these fields changed nothing"
    assert world.exits == 0


UNSEEN = {
    "NIMModel": {"aliases", "adapters", "routing", "annotations", "autoscaling", "metrics"},
    "NIMProxy": {"namespaces", "modelSelector", "workers", "metrics"},
}


async def test_a_detour_over_every_field_ends_as_a_fresh_object(world: World) -> None:
    world.start()
    good = {**_good(MODEL.plural), "replicas": 0}
    await world.apply({**model(world.namespace, "x"), "spec": BASE})
    await _observed(world, MODEL, "x")
    await _replace(world, MODEL, "x", good)
    await _observed(world, MODEL, "x")
    last = {**BASE, "image": "nvcr.io/nim/last:1", "port": 9001, "env": [{"name": "A"}]}
    await _replace(world, MODEL, "x", last)
    await _discard_claim(world)
    detour = await _observed(world, MODEL, "x")
    await world.delete(MODEL, "x", "Foreground")
    await world.gone(MODEL, "x", timeout_s=60)
    await world.apply({**model(world.namespace, "x"), "spec": last})
    assert await _observed(world, MODEL, "x") == detour


async def test_a_refused_change_keeps_what_runs_and_a_revert_recovers(world: World) -> None:
    """Admission lets these pass, the API server refuses what comes of them.

    Other bad values of fields never get so far: tests/data/admission has them.
    """
    world.start()
    await world.apply({**model(world.namespace, "x"), "spec": BASE})
    prior = await _observed(world, MODEL, "x")
    for bad in (
        {"resources": {"limits": {"no-standard-resource": "1"}}},
        {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.noSuchField"}}}]},
        {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}},
        {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": IN_NONE}}},
    ):
        await _replace(world, MODEL, "x", {**BASE, **bad})
        await world.reported(MODEL, "x", "Stalled/InvalidSpec")
        await _replace(world, MODEL, "x", BASE)
        await world.reported(MODEL, "x", "Ready/SwitchedOff")
        assert await _observed(world, MODEL, "x") == prior, bad


def _other(value: Any) -> Any:
    """Return a value of the same type that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return f"{value}x" if isinstance(value, str) else None


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}/{index}")
    else:
        yield path, value


async def _drift(world: World, kind: Kind, name: str) -> tuple[int, int]:
    """Change each value that we set, one after the other; return (repaired, refused)."""
    repaired = refused = 0
    before = await world.get(kind, name)
    ours = owned_fields(before)
    assert ours is not None
    set_by_us = {key: before[key] for key in before if f"f:{key}" in ours}
    for pointer, value in list(_leaves(set_by_us))[:: 1 if FULL else 9]:
        if pointer == "/metadata/ownerReferences/0/uid":
            continue  # the garbage collector's: an object of an owner that does not exist goes
        if not _is_ours(set_by_us, ours, pointer) or _other(value) is None:
            continue
        body = [{"op": "replace", "path": pointer, "value": _other(value)}]
        try:
            changed = await patch(world.api, kind, world.namespace, name, body)
        except InvalidError:
            refused += 1
            continue
        if changed["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]:
            continue

        expected = _values(before, ours)

        async def restored(wanted: Manifest = expected) -> bool:
            live = await world.find(kind, name)
            return live is not None and _values(live, ours) == wanted

        await until(restored, f"{kind.kind} {pointer} is repaired", timeout_s=REPAIR_S)
        repaired += 1
        before = await world.get(kind, name)
    return repaired, refused


def _values(live: Manifest, ours: Manifest) -> Manifest:
    found: Manifest = extract({key: live[key] for key in live if f"f:{key}" in ours}, ours)
    return found


def _is_ours(value: Any, ours: Manifest, pointer: str) -> bool:
    """Tell whether changing the value at `pointer` changes what `extract` returns."""
    changed = copy.deepcopy(value)
    holder = changed
    *steps, last = [p.replace("~1", "/").replace("~0", "~") for p in pointer[1:].split("/")]
    for step in steps:
        holder = holder[int(step)] if isinstance(holder, list) else holder[step]
    key: Any = int(last) if isinstance(holder, list) else last
    holder[key] = "changed"
    return bool(extract(changed, ours) != extract(value, ours))


async def test_every_value_we_set_is_put_back_and_what_others_set_stays(world: World) -> None:
    world.start()
    await world.apply(model(world.namespace, "one", **STORED), proxy(world.namespace, "edge"))
    await world.routed("one")
    await world.reported(MODEL, "one", "Ready/SwitchedOff")
    theirs = {"labels": {"istio.io/rev": "x"}, "annotations": {"argocd.argoproj.io/x": "y"}}
    total = 0
    for kind in CHILDREN:
        async for page, _ in world.api.pages(kind, world.namespace):
            for item in page:
                name = item["metadata"]["name"]
                if owned_fields(item) is None:
                    continue
                await patch(world.api, kind, world.namespace, name, {"metadata": theirs})
                repaired, _ = await _drift(world, kind, name)
                total += repaired
                metadata = (await world.get(kind, name))["metadata"]
                assert metadata["labels"]["istio.io/rev"] == "x"
                assert metadata["annotations"]["argocd.argoproj.io/x"] == "y"
    assert total >= (120 if FULL else 12)


async def test_every_deleted_child_comes_back(world: World) -> None:
    world.start()
    await world.apply(model(world.namespace, "one", **STORED), proxy(world.namespace, "edge"))
    await world.routed("one")
    await world.reported(MODEL, "one", "Ready/SwitchedOff")
    await world.settled()
    deleted = set()
    for kind in CHILDREN:
        async for page, _ in world.api.pages(kind, world.namespace):
            for item in page:
                name, uid = item["metadata"]["name"], item["metadata"]["uid"]
                if owned_fields(item) is None:
                    continue
                await world.delete(kind, name)

                async def back(kind: Kind = kind, name: str = name, old: str = uid) -> bool:
                    live = await world.find(kind, name)
                    return live is not None and live["metadata"]["uid"] != old

                await until(back, f"{kind.kind} {name} is back", timeout_s=REPAIR_S)
                deleted.add(f"{kind.kind}/{name}")
    both = {"Deployment", "Service", "PodDisruptionBudget"}
    rights = {"ServiceAccount/nimway-edge", "RoleBinding/nimway-edge-routes"}
    assert {f"{kind}/{name}" for kind in both for name in ("one", "nimway-edge")} <= deleted
    assert {*rights, "ConfigMap/nimway-edge-routes"} <= deleted
    assert "PersistentVolumeClaim/one-store" in deleted
    assert len(deleted) == 11, f"and the right to see the endpoints: {deleted}"


async def test_a_stripped_owner_reference_comes_back(world: World) -> None:
    world.start()
    await world.apply(model(world.namespace, "one"))
    await world.reported(MODEL, "one", "Ready/SwitchedOff")
    for kind in (DEPLOYMENT, SERVICE):
        before = (await world.get(kind, "one"))["metadata"]["ownerReferences"]
        body = [{"op": "remove", "path": "/metadata/ownerReferences"}]
        await patch(world.api, kind, world.namespace, "one", body)

        async def restored(kind: Kind = kind, wanted: Any = before) -> bool:
            live = await world.get(kind, "one")
            return bool(live["metadata"].get("ownerReferences") == wanted)

        await until(restored, f"{kind.kind} has its owner", timeout_s=REPAIR_S)
