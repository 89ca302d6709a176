"""Claims hold weights: somebody else's is not touched, and no change of storage loses one."""

from typing import Any

import pytest

from nimway.control.kinds import CLAIM, DEPLOYMENT, MODEL, Manifest
from nimway.control.plan import CLAIM_GOING
from tests.control.process import condition, create, patch
from tests.faults.world import COLLECT_S, World, model, until
from tests.support.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

RECHECK_S = 30.0
"""Somebody else's object is read again every 10 s."""

SIZE = {"pvc": {"size": "1Gi"}}
DELETED = {"pvc": {"size": "1Gi", "reclaim": "Delete"}}
NAMED = {"pvc": {"claimName": "a-store"}}
NODE_LOCAL: Manifest = {"emptyDir": {}}


async def _change(world: World, **fields: Any) -> None:
    """Replace fields of the spec of model `a`."""
    body = [
        {"op": "add", "path": f"/spec/{name}", "value": value} for name, value in fields.items()
    ]
    await patch(world.api, MODEL, world.namespace, "a", body)


async def _theirs(world: World) -> Manifest:
    claim = {
        "apiVersion": "v1",
        "kind": CLAIM.kind,
        "metadata": {"name": "a-store", "namespace": world.namespace},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    return await create(world.api, CLAIM, claim)


async def _claim_uid(world: World) -> str:
    """Return the uid of the model's claim, which stays."""
    metadata = (await world.get(CLAIM, "a-store"))["metadata"]
    assert "deletionTimestamp" not in metadata
    return str(metadata["uid"])


async def _owned(world: World, *, wanted: bool) -> None:
    """Wait until the garbage collector would take the claim with the model, or would not."""

    async def probe() -> bool:
        live = await world.get(CLAIM, "a-store")
        return bool(live["metadata"].get("ownerReferences")) is wanted

    await until(probe, f"the claim has an owner: {wanted}")


async def test_a_claim_of_somebody_else_is_never_mounted(world: World) -> None:
    world.start()
    before = await _theirs(world)
    await world.apply(model(world.namespace, "a", storage=SIZE))
    live = await world.reported(MODEL, "a", "Stalled/ObjectConflict")
    assert f"{world.namespace}/a-store" in condition(live, "Stalled")["message"]
    await world.settled()
    assert await world.find(DEPLOYMENT, "a") is None
    assert await world.get(CLAIM, "a-store") == before
    await world.delete(CLAIM, "a-store")
    await world.reported(MODEL, "a", "Ready/SwitchedOff", timeout_s=RECHECK_S)
    assert (await _claim_uid(world)) != before["metadata"]["uid"]
    assert await world.find(DEPLOYMENT, "a")


async def test_a_deployment_is_not_changed_to_mount_somebody_elses_claim(world: World) -> None:
    world.start()
    await _theirs(world)
    await world.apply(model(world.namespace, "a"))
    await world.reported(MODEL, "a", "Ready/SwitchedOff")
    before = await world.get(DEPLOYMENT, "a")
    await _change(world, storage=SIZE)
    await world.reported(MODEL, "a", "Stalled/ObjectConflict")
    await world.settled()
    assert (await world.get(DEPLOYMENT, "a"))["spec"] == before["spec"]
    await _change(world, storage=NODE_LOCAL)
    await world.reported(MODEL, "a", "Ready/SwitchedOff")


async def test_a_change_of_storage_can_be_taken_back(world: World) -> None:
    world.start()
    await world.apply(model(world.namespace, "a", storage=DELETED))
    await world.reported(MODEL, "a", "Ready/SwitchedOff")
    uid = await _claim_uid(world)
    for other in (NODE_LOCAL, NAMED):
        await _change(world, storage=other)
        await world.reported(MODEL, "a", "Ready/SwitchedOff")
        await world.settled()
        assert await _claim_uid(world) == uid
        await _change(world, storage=DELETED)
        await world.reported(MODEL, "a", "Ready/SwitchedOff")
        await _owned(world, wanted=True)
        assert await _claim_uid(world) == uid
    await _change(world, storage=NODE_LOCAL)
    await world.reported(MODEL, "a", "Ready/SwitchedOff")
    await world.delete(MODEL, "a")
    await world.gone(CLAIM, "a-store", timeout_s=COLLECT_S)


async def test_a_claim_that_its_user_names_outlives_the_model_that_made_it(world: World) -> None:
    world.start()
    await world.apply(model(world.namespace, "a", storage=DELETED))
    await world.reported(MODEL, "a", "Ready/SwitchedOff")
    uid = await _claim_uid(world)
    await _change(world, storage=NAMED)
    await _owned(world, wanted=False)
    await world.settled()
    await world.delete(MODEL, "a", "Foreground")
    await world.gone(MODEL, "a", timeout_s=COLLECT_S)
    await world.gone(DEPLOYMENT, "a", timeout_s=COLLECT_S)
    assert await _claim_uid(world) == uid


async def test_a_refused_size_is_told_and_a_revert_recovers(world: World, crds: Cluster) -> None:
    if crds.sandbox is None:
        pytest.skip("a foreign cluster's class may let claims grow")
    world.start()
    await world.apply(model(world.namespace, "a", replicas=1, storage=SIZE))
    await world.reported(MODEL, "a", "Ready/Serving", timeout_s=60)
    before = await world.get(CLAIM, "a-store")
    for size, words in (("2Gi", "must support resize"), ("512Mi", "less than status.capacity")):
        await _change(world, storage={"pvc": {"size": size}})
        live = await world.reported(MODEL, "a", "Stalled/InvalidSpec")
        assert words in condition(live, "Stalled")["message"]
        await _change(world, storage=SIZE)
        await world.reported(MODEL, "a", "Ready/Serving")
        await world.reported(MODEL, "a", "Stalled/Settled")
        assert (await world.get(CLAIM, "a-store"))["spec"] == before["spec"]
    await _change(world, storage={"pvc": {"size": "2Gi"}}, replicas=0)

    async def switched_off() -> bool:
        return bool((await world.get(DEPLOYMENT, "a"))["spec"]["replicas"] == 0)

    await until(switched_off, "a refused size does not keep the model from being scaled")


async def test_a_claim_deleted_in_use_is_made_anew_once_no_pod_has_it(
    world: World, crds: Cluster
) -> None:
    if crds.sandbox is None:
        pytest.skip("it needs the simulated NIM")
    world.start()
    await world.apply(model(world.namespace, "a", replicas=1, storage=SIZE))
    await world.reported(MODEL, "a", "Ready/Serving", timeout_s=60)
    uid = await _claim_uid(world)
    await world.delete(CLAIM, "a-store")

    async def told() -> bool:
        conditions = (await world.get(MODEL, "a"))["status"]["conditions"]
        return any(CLAIM_GOING in each["message"] for each in conditions)

    await until(told, "what to do is told")
    assert (await world.get(CLAIM, "a-store"))["metadata"]["uid"] == uid
    await _change(world, replicas=0)

    async def anew() -> bool:
        live = await world.find(CLAIM, "a-store")
        return live is not None and live["metadata"]["uid"] != uid

    await until(anew, "there is a new claim", timeout_s=60)
    await _change(world, replicas=1)
    await world.reported(MODEL, "a", "Ready/Serving", timeout_s=60)
