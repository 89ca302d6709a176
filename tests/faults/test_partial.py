"""What fails for one leaves the others alone, and nothing says that it serves when it does not."""

import pytest

from nimway.control.desired import names
from nimway.control.kinds import CONFIG_MAP, MODEL, PROXY, ROLE_BINDING, Manifest
from tests.control.process import condition, create, delete, find, patch
from tests.faults.world import World, model, proxy, until
from tests.support.api_faults import Call, refuse

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

PROMPT_S = 5.0
"""Typically 0.3 s; the machine of a test run is shared."""

AGAIN_S = 40.0
"""Rights that were refused are asked for again within half a minute."""

PRETEND = {"sandbox.nimway.dev/pretend": "true"}
"""On a pod: it is ready at once, and no process runs."""

KEEP = "nimway.example.com/keep"


async def _told(world: World, namespace: str, name: str, wanted: str, text: str = "") -> Manifest:
    """Wait until a model's condition has a reason, as `Type/Reason`, and a text."""
    type_, _, reason = wanted.partition("/")

    async def probe() -> Manifest | None:
        live = await find(world.api, MODEL, namespace, name)
        told = condition(live, type_)
        return live if told.get("reason") == reason and text in told["message"] else None

    return await until(probe, f"{name}: {wanted} {text}", timeout_s=AGAIN_S)


def _reports(world: World, name: str) -> int:
    calls = world.faults.writes(MODEL.plural)
    return sum(each.name == name and each.subresource == "status" for each in calls)


async def test_who_takes_the_name_of_a_right_leaves_other_teams_tables_alone(
    world: World, others: tuple[str, str]
) -> None:
    a, b = others
    name = names.endpoints_binding_name(world.namespace, "edge")
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}
    theirs = {
        "apiVersion": ROLE_BINDING.api_version,
        "kind": ROLE_BINDING.kind,
        "metadata": {"name": name, "namespace": a},
        "roleRef": role,
    }
    before = await create(world.api, ROLE_BINDING, theirs)
    world.start_for(*others)
    await world.apply(proxy(world.namespace, "edge", namespaces=[a, b]), model(a, "one"))
    await world.routed("one")
    await create(world.api, MODEL, model(b, "two"))
    await world.routed("one", "two", timeout_s=PROMPT_S)
    live = await world.reported(PROXY, "edge", "Reconciling/ObjectConflict")
    assert f"cannot serve namespace {a}: RoleBinding {a}/{name}" in str(live["status"])
    assert condition(live, "Stalled")["status"] == "False"
    await _told(world, a, "one", "Routed/NotRouted", "may not see the pods: RoleBinding")
    await _told(world, b, "two", "Routed/ProxyNotReady")
    assert await world.api.get(ROLE_BINDING, a, name) == before
    await delete(world.api, ROLE_BINDING, a, name)
    await _told(world, a, "one", "Routed/ProxyNotReady")
    await world.reported(PROXY, "edge", "Ready/SwitchedOff")
    await world.settled()


async def test_names_are_told_as_served_only_once_the_table_has_them(world: World) -> None:
    world.start()
    await world.apply(proxy(world.namespace, "edge"), model(world.namespace, "a"))
    await world.reported(MODEL, "a", "Routed/ProxyNotReady")
    await world.settled()
    before = _reports(world, "a")
    await patch(world.api, MODEL, world.namespace, "a", {"spec": {"aliases": ["first"]}})
    live = await world.reported(MODEL, "a", "Routed/ProxyNotReady")
    await world.settled()
    told = _reports(world, "a") - before
    assert told <= 2, "one of the change, and one of a table that took more than a second"

    def writes_table(call: Call) -> bool:
        return call.is_write and call.plural == CONFIG_MAP.plural

    refused = world.faults.on(writes_table, refuse(403, "Forbidden", "a policy says no"))
    await patch(world.api, MODEL, world.namespace, "a", {"spec": {"aliases": ["second"]}})
    await world.apply(model(world.namespace, "b"))
    for name in ("a", "b"):
        live = await world.reported(MODEL, name, "Routed/NotRouted")
        text = condition(live, "Routed")["message"]
        assert text == (
            f"the table of NIMProxy {world.namespace}/edge does not have the current route yet; "
            "it could not be written: a policy says no"
        )
        assert "servedModels" not in live["status"]
    world.faults.rules.remove(refused)
    for name in ("a", "b"):
        await _told(world, world.namespace, name, "Routed/ProxyNotReady")


async def test_a_proxy_pod_that_is_ready_and_cannot_be_heard_is_named(world: World) -> None:
    """As where a NetworkPolicy lets nobody to port 8001; the pod here has no process at all."""
    world.start()
    edge = proxy(world.namespace, "edge", replicas=1, annotations=PRETEND)
    await world.apply(edge, model(world.namespace, "a"))
    live = await world.reported(PROXY, "edge", "Ready/Serving")
    assert condition(live, "Reconciling")["status"] == "False", "it may only just have started"
    live = await world.reported(PROXY, "edge", "Reconciling/NotRouted", timeout_s=AGAIN_S)
    assert condition(live, "Ready")["status"] == "True"
    assert "revision" not in live["status"]
    told = condition(live, "Reconciling")["message"]
    assert told.startswith("0 of 1 pods serve the table; not heard: nimway-edge-")
    live = await _told(world, world.namespace, "a", "Routed/NotRouted", "not heard: nimway-edge-")
    told = condition(live, "Routed")["message"]
    assert told.startswith("0 of 1 proxy pods serve the current route; not heard: ")
    assert ":8001 (is there a NetworkPolicy or a mesh" in told
    await world.settled()


async def test_a_model_that_somebodys_finalizer_keeps_does_not_say_that_it_serves(
    world: World,
) -> None:
    world.start()
    kept = model(world.namespace, "kept")
    kept["metadata"]["finalizers"] = [KEEP]
    await world.apply(proxy(world.namespace, "edge"), kept)
    await world.reported(MODEL, "kept", "Ready/SwitchedOff")
    await world.settled()
    before = _reports(world, "kept")
    await world.delete(MODEL, "kept")
    live = await world.reported(MODEL, "kept", "Ready/Terminating")
    assert condition(live, "Routed")["status"] == "False"
    assert KEEP in condition(live, "Ready")["message"]
    await world.routed()
    await world.settled()
    assert _reports(world, "kept") == before + 1
    await patch(world.api, MODEL, world.namespace, "kept", {"metadata": {"finalizers": None}})
    await world.gone(MODEL, "kept")


async def test_a_proxy_that_somebodys_finalizer_keeps_counts_no_more(world: World) -> None:
    world.start()
    edge = proxy(world.namespace, "edge")
    edge["metadata"]["finalizers"] = [KEEP]
    await world.apply(edge, model(world.namespace, "a"))
    await world.reported(MODEL, "a", "Routed/ProxyNotReady")
    await world.delete(PROXY, "edge")
    await _told(world, world.namespace, "a", "Routed/NoProxy")
    await world.settled()
    await patch(world.api, PROXY, world.namespace, "edge", {"metadata": {"finalizers": None}})
    await world.gone(PROXY, "edge")
