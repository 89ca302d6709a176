"""OP-17: an operator that renders pods differently restarts no model until its user changes it."""

import pytest

from nimway.control.kinds import DEPLOYMENT, MODEL, POD, Manifest
from tests.control.process import patch
from tests.faults.world import World, model, proxy, until
from tests.support.faults import full_only
from tests.support.installed import NIM_IMAGE

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

NEW = "RENDERED_BY_A_NEWER_OPERATOR"


async def _pods(world: World) -> set[str]:
    return {
        item["metadata"]["uid"]
        async for page, _ in world.api.pages(POD, world.namespace)
        for item in page
        if "deletionTimestamp" not in item["metadata"]
    }


def _variables(deployment: Manifest) -> set[str]:
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    return {each["name"] for each in container["env"]}


async def _ready(world: World) -> Manifest:
    async def probe() -> Manifest | None:
        live = await world.find(DEPLOYMENT, "llama")
        status = (live or {}).get("status", {})
        current = live and status.get("observedGeneration") == live["metadata"]["generation"]
        return live if current and status.get("updatedReplicas") == 1 else None

    return await until(probe, "the Deployment is rolled out", timeout_s=60)


async def test_a_newer_operator_changes_a_models_pod_only_with_its_users_next_change(
    world: World,
) -> None:
    operator = world.start()
    declared = model(world.namespace, "llama", replicas=1, image=NIM_IMAGE, drain={"seconds": 1})
    await world.apply(declared, proxy(world.namespace, "edge"))
    before = await _ready(world)
    pods = await until(lambda: _pods(world), "a pod")
    await world.settled(1.0)
    operator.stop()

    writes = len(world.faults.writes("deployments"))
    world.start(NIMWAY_TEST_POD_ENV=NEW)
    await world.apply(model(world.namespace, "other"))
    await world.reported(MODEL, "other", "Ready/SwitchedOff")
    assert NEW in _variables(await world.get(DEPLOYMENT, "other")), "it does render differently"
    for change in (
        {"metadata": {"labels": {"team": "a"}}},
        {"spec": {"aliases": ["another"]}},
        {"spec": {"replicas": 2}},
        {"spec": {"replicas": 1}},
    ):
        await patch(world.api, MODEL, world.namespace, "llama", change)
        await world.settled()
    after = await world.get(DEPLOYMENT, "llama")
    assert after["spec"]["template"] == before["spec"]["template"]
    assert [call for call in world.faults.writes("deployments")[writes:] if call.name == "llama"]
    assert pods <= await _pods(world), "the pod of before still runs"

    # Somebody's change is undone: a rollout anyway, so it is to what is rendered now.
    drifted = [
        {"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "evil:1"}
    ]
    await patch(world.api, DEPLOYMENT, world.namespace, "llama", drifted)

    async def restored() -> bool:
        live = await world.get(DEPLOYMENT, "llama")
        [container] = live["spec"]["template"]["spec"]["containers"]
        return bool(container["image"] == NIM_IMAGE)

    await until(restored, "the image is put back", timeout_s=5)

    generation = (await world.get(DEPLOYMENT, "llama"))["metadata"]["generation"]
    wanted = {"spec": {"env": [{"name": "WANTED", "value": "1"}]}}
    await patch(world.api, MODEL, world.namespace, "llama", wanted)

    async def rendered() -> Manifest | None:
        live = await world.get(DEPLOYMENT, "llama")
        return live if "WANTED" in _variables(live) else None

    assert NEW in _variables(await until(rendered, "the user's change is applied"))
    await world.settled(1.0)
    after = await world.get(DEPLOYMENT, "llama")
    assert after["metadata"]["generation"] == generation + 1, "one rollout for both"


@full_only
async def test_the_annotation_asks_for_the_new_rendering(world: World) -> None:
    operator = world.start()
    await world.apply(model(world.namespace, "llama"))
    await world.reported(MODEL, "llama", "Ready/SwitchedOff")
    operator.stop()
    world.start(NIMWAY_TEST_POD_ENV=NEW)
    annotation = {"metadata": {"annotations": {"nimway.dev/rerender": "1"}}}
    await patch(world.api, MODEL, world.namespace, "llama", annotation)

    async def rendered() -> bool:
        return NEW in _variables(await world.get(DEPLOYMENT, "llama"))

    await until(rendered, "the pod is rendered anew")
