"""OP-8: however a model or a proxy is deleted, nothing is left and nothing comes back."""

import pytest

from nimway.control.kinds import (
    CLAIM,
    CONFIG_MAP,
    DEPLOYMENT,
    MODEL,
    PROXY,
    ROLE_BINDING,
    SERVICE,
    SERVICE_ACCOUNT,
)
from tests.control.process import create
from tests.faults.world import COLLECT_S, MODEL_CHILDREN, World, model, proxy, until
from tests.support.faults import full_only

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

ROUTE_S = 5.0
"""Typically 0.3 s; the machine of a test run is shared."""
QUIET_S = 1.5
BACKGROUND = pytest.param("Background", marks=full_only)
FOREGROUND = pytest.param("Foreground", marks=full_only)
STORAGE = {"pvc": {"size": "1Gi", "reclaim": "Delete"}}


async def _serving(world: World, *names: str) -> None:
    namespace = world.namespace
    await world.apply(
        proxy(namespace, "edge"), *(model(namespace, name, storage=STORAGE) for name in names)
    )
    await world.routed(*names)
    for name in names:
        await world.reported(MODEL, name, "Ready/SwitchedOff")
        assert await world.find(CLAIM, f"{name}-store")


async def _nothing_left(world: World, name: str) -> None:
    await world.gone(MODEL, name, timeout_s=COLLECT_S)
    for kind in MODEL_CHILDREN:
        await world.gone(kind, name, timeout_s=COLLECT_S)
    await world.gone(CLAIM, f"{name}-store", timeout_s=COLLECT_S)


async def _stays_so(world: World) -> None:
    """Nothing is written and nothing appears: no loop of deletion and creation."""
    await world.settled()
    writes, state = len(world.faults.writes()), await world.state()
    await world.settled(QUIET_S)
    assert [str(call) for call in world.faults.writes()[writes:]] == []
    assert await world.state() == state


@pytest.mark.parametrize("propagation", [BACKGROUND, "Foreground"])
async def test_a_deleted_model_leaves_nothing_and_nothing_is_created_again(
    world: World, propagation: str
) -> None:
    world.start()
    await _serving(world, "a", "b")
    await world.settled(QUIET_S)
    before = len(world.faults.writes())
    await world.delete(MODEL, "a", propagation)
    await world.routed("b", timeout_s=ROUTE_S)
    await _nothing_left(world, "a")
    created = [str(call) for call in world.faults.writes(*_CHILDREN)[0:] if call.status == 201]
    assert len(created) == len(set(created)), "a child was created twice"
    await _stays_so(world)
    after = {str(call) for call in world.faults.writes()[before:]}
    # A child's end can be told before the model's: its status, while it lives, may say so.
    after.discard("PATCH nimmodels/a/status")
    assert not {text for text in after if "/a" in text}, after


_CHILDREN = ("deployments", "services", "poddisruptionbudgets", "persistentvolumeclaims")


async def test_an_orphaned_models_children_stay_and_its_route_goes(world: World) -> None:
    world.start()
    await _serving(world, "a", "b")
    before = {kind: (await world.get(kind, "a"))["metadata"]["uid"] for kind in MODEL_CHILDREN}
    await world.delete(MODEL, "a", "Orphan")
    await world.routed("b", timeout_s=ROUTE_S)
    await world.gone(MODEL, "a", timeout_s=COLLECT_S)
    await _stays_so(world)
    for kind, uid in before.items():
        live = await world.get(kind, "a")
        assert live["metadata"]["uid"] == uid
        assert "ownerReferences" not in live["metadata"]


@full_only
async def test_an_orphan_is_not_taken_over_by_a_new_model_of_its_name(world: World) -> None:
    world.start()
    await _serving(world, "a")
    orphan = await world.get(SERVICE, "a")
    await world.delete(MODEL, "a", "Orphan")
    await world.gone(MODEL, "a", timeout_s=COLLECT_S)
    await world.settled()
    await world.apply(model(world.namespace, "a"))
    live = await world.reported(MODEL, "a", "Stalled/ObjectConflict")
    assert f"{world.namespace}/a" in str(live["status"]["conditions"])
    kept = await world.get(SERVICE, "a")
    assert kept["metadata"]["uid"] == orphan["metadata"]["uid"]
    for kind in MODEL_CHILDREN:
        await world.delete(kind, "a")
    await world.reported(MODEL, "a", "Ready/SwitchedOff", timeout_s=40)


@pytest.mark.parametrize("propagation", ["Background", FOREGROUND])
async def test_a_model_deleted_while_the_operator_is_down_leaves_nothing(
    world: World, propagation: str
) -> None:
    operator = world.start()
    await _serving(world, "a", "b")
    operator.stop()
    await world.delete(MODEL, "a", propagation)
    await _nothing_left(world, "a")
    before = len(world.faults.writes())
    world.start()
    await world.routed("b")
    await _stays_so(world)
    after = {str(call) for call in world.faults.writes()[before:]}
    assert not {text for text in after if "/a" in text}, after


@full_only
async def test_a_deleted_proxy_leaves_nothing(world: World) -> None:
    world.start()
    await _serving(world, "a")
    await world.delete(PROXY, "edge", "Foreground")
    await world.gone(PROXY, "edge", timeout_s=COLLECT_S)
    for kind in (DEPLOYMENT, SERVICE, SERVICE_ACCOUNT):
        await world.gone(kind, "nimway-edge", timeout_s=COLLECT_S)
    for kind in (CONFIG_MAP, ROLE_BINDING):
        await world.gone(kind, "nimway-edge-routes", timeout_s=COLLECT_S)
    await _stays_so(world)
    live = await world.reported(MODEL, "a", "Routed/NoProxy")
    assert live["status"].get("servedModels") is None


async def test_a_deleted_namespace_goes_and_the_operator_lets_it(world: World) -> None:
    operator = world.start()
    await _serving(world, "a", "b")
    await world.api.request("DELETE", f"/api/v1/namespaces/{world.namespace}")

    async def gone() -> bool:
        listed = await world.api.request("GET", "/api/v1/namespaces")
        return world.namespace not in {item["metadata"]["name"] for item in listed["items"]}

    await until(gone, "the namespace is gone", timeout_s=COLLECT_S)
    writes = len(world.faults.writes())
    await world.settled(QUIET_S)
    created = [call for call in world.faults.writes()[writes:] if call.status < 300]
    assert created == []
    assert operator.process.poll() is None or operator.process.returncode == 1
    # The fixture deletes it again.
    await world.api.request(
        "POST",
        "/api/v1/namespaces",
        body={"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": world.namespace}},
    )


@pytest.mark.parametrize("propagation", ["Background", FOREGROUND])
async def test_a_model_created_again_at_once_gets_children_of_its_own(
    world: World, propagation: str
) -> None:
    world.start()
    await _serving(world, "a")
    old = await world.get(MODEL, "a")
    await world.delete(MODEL, "a", propagation)
    await world.gone(MODEL, "a", timeout_s=COLLECT_S)
    # A claim that is in nobody's use goes as fast as its owner, so the same one can be asked for.
    [new] = [
        await create(
            world.api, MODEL, model(world.namespace, "a", image="nvcr.io/x:2", storage=STORAGE)
        )
    ]
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    await world.reported(MODEL, "a", "Ready/SwitchedOff", timeout_s=COLLECT_S)
    await world.routed("a")
    selector = (await world.get(SERVICE, "a"))["spec"]["selector"]
    assert selector["nimway.dev/owner-uid"] == new["metadata"]["uid"], "no pod of the old one"

    async def owned() -> bool:
        claim = await world.find(CLAIM, "a-store")
        found = [await world.find(kind, "a") for kind in MODEL_CHILDREN]
        return all(
            each is not None
            and each["metadata"]["ownerReferences"][0]["uid"] == new["metadata"]["uid"]
            and "deletionTimestamp" not in each["metadata"]
            for each in (*found, claim)
        )

    await until(owned, "every child belongs to the new model", timeout_s=COLLECT_S)
    await _stays_so(world)
    assert await owned()
