"""OP-14, OP-16, SEC-1: names are served by whom they belong to, and taken from nobody."""

import json
import signal

import pytest

from nimway.control import claims
from nimway.control.claims import CLAIM_ANNOTATION
from nimway.control.kinds import CONFIG_MAP, DEPLOYMENT, MODEL, PROXY, Manifest
from nimway.control.problems import FOREIGN_RECHECK_S
from tests.control.process import condition, create, delete, find, patch
from tests.faults.world import COLLECT_S, World, model, proxy, until
from tests.support.cluster import Cluster
from tests.support.faults import full_only

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

NAME = "org/famous"
PROMOTED_S = 5.0
"""Typically 0.3 s; the machine of a test run is shared."""


async def _next_second(world: World, than: Manifest) -> None:
    """creationTimestamp has whole seconds, and the uid breaks a tie."""

    async def ticked() -> bool:
        probe = await world.api.request(
            "POST",
            CONFIG_MAP.path(world.namespace),
            query={"dryRun": "All"},
            body={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "clock"}},
        )
        stamp = "creationTimestamp"
        return bool(probe["metadata"][stamp] > than["metadata"][stamp])

    await until(ticked, "the next second")


async def test_the_loser_of_a_name_is_told_and_promoted_when_the_winner_goes(
    world: World,
) -> None:
    world.start()
    [_, winner] = await world.apply(
        proxy(world.namespace, "edge"), model(world.namespace, "z-first", model=NAME)
    )
    await world.routed("z-first")
    await _next_second(world, winner)
    look_alike = NAME.upper()
    [second] = await world.apply(model(world.namespace, "a-second", model=look_alike))
    await _next_second(world, second)
    await world.apply(model(world.namespace, "b-third", model="org/own", aliases=[NAME]))
    await world.routed("z-first", "b-third")
    live = await world.reported(MODEL, "a-second", "Routed/NameConflict")
    assert f"{world.namespace}/z-first" in json.dumps(live["status"]["conditions"])
    table = await world.table()
    assert table is not None
    assert {route.name: route.names for route in table.routes} == {
        "z-first": (NAME,),
        "b-third": ("org/own",),
    }
    await world.delete(MODEL, "z-first")

    async def promoted() -> bool:
        table = await world.table()
        names = {name for route in table.routes for name in route.names} if table else set()
        return look_alike in names and NAME not in names

    await until(promoted, "the second is served", timeout_s=PROMOTED_S)
    await world.reported(MODEL, "a-second", "Ready/SwitchedOff")


async def _watch_for_hijack(world: World, owner: str) -> None:
    table = await world.table()
    for route in table.routes if table else ():
        if NAME.casefold() in {name.casefold() for name in route.names}:
            assert route.namespace == owner, f"{route.namespace} got the name"


@pytest.fixture
def other(crds: Cluster, namespace: str) -> str:
    """A second namespace, of another team."""
    name = f"{namespace}-other"
    crds.create_namespace(name)
    return name


@pytest.mark.parametrize("claim", [NAME, NAME.upper()], ids=["same", "case"])
async def test_another_namespace_does_not_get_a_name_while_its_holder_is_recreated(
    world: World, crds: Cluster, other: str, claim: str
) -> None:
    """The holder is deleted and applied again, as GitOps tools do."""
    try:
        world.start_for(other)
        holder = model(world.namespace, "holder", model=NAME)
        order = [world.namespace, other]
        await world.apply(proxy(world.namespace, "edge", namespaces=order), holder)
        await world.routed("holder")
        thief = model(other, "thief", model="org/harmless", aliases=[claim])
        await create(world.api, MODEL, thief)
        await world.routed("holder", "thief")
        await _watch_for_hijack(world, world.namespace)
        await delete(world.api, MODEL, world.namespace, "holder")
        await world.gone(MODEL, "holder")
        for _ in range(20):
            await _watch_for_hijack(world, world.namespace)
        await world.settled()
        await _watch_for_hijack(world, world.namespace)
        await world.apply(holder)
        await world.routed("holder", "thief")
        await _watch_for_hijack(world, world.namespace)
    finally:
        crds.delete_namespace(other)


async def _refused(world: World, namespace: str, name: str, *, gone: bool) -> Manifest:
    """Wait until a model's status tells of one refused name, and of its holder's end."""

    async def probe() -> Manifest | None:
        live = await find(world.api, MODEL, namespace, name)
        told = condition(live, "Routed").get("message", "")
        refused = (live or {}).get("status", {}).get("refusedNames") or []
        return refused[0] if refused and ("was held" in told) is gone else None

    return await until(probe, f"{name} is refused a name")


async def test_a_refusal_outlives_the_operator_and_ends_with_another_claim(
    world: World, crds: Cluster, other: str
) -> None:
    """By age, in all namespaces: what is left of the holder is its proxy's and the loser's word."""
    try:
        operator = world.start_for(other)
        own = {"model": "org/own", "aliases": [NAME]}
        edge = proxy(world.namespace, "edge", namespaces=[world.namespace, other])
        await world.apply(edge, model(world.namespace, "holder", **own))
        await world.routed("holder")
        thief = model(other, "thief", model="org/harmless", aliases=[NAME], gpus=64)
        await create(world.api, MODEL, thief)
        refused = await _refused(world, other, "thief", gone=False)
        assert refused["holder"] == f"{world.namespace}/holder"
        assert refused["proxy"] == f"{world.namespace}/edge"
        operator.stop(signal.SIGKILL)
        await patch(world.api, MODEL, world.namespace, "holder", {"spec": {"aliases": None}})
        world.start_for(other)
        assert (await _refused(world, other, "thief", gone=True)) == refused
        for replicas in (1, 0):  # as an autoscaler does
            await patch(world.api, MODEL, other, "thief", {"spec": {"replicas": replicas}})
            await world.settled()
        await _watch_for_hijack(world, world.namespace)

        again = {"metadata": {"annotations": {CLAIM_ANNOTATION: "it is ours now"}}}
        await patch(world.api, MODEL, other, "thief", again)

        async def promoted() -> bool:
            live = await world.api.get(MODEL, other, "thief")
            return NAME in live["status"].get("servedModels", ()) or (
                "refusedNames" not in live["status"]
            )

        await until(promoted, "the name is claimed anew", timeout_s=PROMOTED_S)
        table = await world.table()
        assert table is not None
        assert {route.name: route.names for route in table.routes} == {
            "holder": ("org/own",),
            "thief": ("org/harmless", NAME),
        }
    finally:
        crds.delete_namespace(other)


async def test_a_name_whose_holder_went_while_the_operator_was_down_is_kept(
    world: World, crds: Cluster, other: str
) -> None:
    """Claimed and deleted behind its back: the table in force still says whose it was."""
    try:
        operator = world.start_for(other)
        order = [world.namespace, other]
        edge = proxy(world.namespace, "edge", namespaces=order)
        await world.apply(edge, model(world.namespace, "holder", model=NAME))
        await world.routed("holder")
        operator.stop(signal.SIGKILL)
        await create(world.api, MODEL, model(other, "thief", model=NAME))
        await world.delete(MODEL, "holder")
        await world.gone(MODEL, "holder")
        for _ in range(3):
            operator = world.start_for(other)
            await world.routed()
            await _refused(world, other, "thief", gone=True)
            operator.stop(signal.SIGKILL)
        head = await world.get(CONFIG_MAP, "nimway-edge-routes")
        reserved = claims.decode(head["metadata"]["annotations"][claims.RESERVED_ANNOTATION])
        assert reserved[NAME].holder == f"{world.namespace}/holder"
        assert list(reserved[NAME].claims) == [f"{other}/thief"]
    finally:
        crds.delete_namespace(other)


async def test_a_claim_made_in_between_waits_for_the_end_of_the_namespace(
    world: World, crds: Cluster, other: str
) -> None:
    """Or of ten minutes; whoever claims the name then does not take it from anybody."""
    try:
        world.start_for(other)
        order = [other, world.namespace]
        await world.apply(proxy(world.namespace, "edge", namespaces=order))
        await create(world.api, MODEL, model(other, "holder", model=NAME))
        await world.routed("holder")
        await delete(world.api, MODEL, other, "holder")
        await world.routed()
        await world.apply(model(world.namespace, "next", model=NAME))
        told = await _refused(world, world.namespace, "next", gone=True)
        assert "until" in told
        live = await world.get(MODEL, "next")
        assert condition(live, "Stalled")["status"] == "False"
        crds.delete_namespace(other)
        await world.routed("next")
        await world.reported(MODEL, "next", "Ready/SwitchedOff")
    finally:
        crds.delete_namespace(other)


async def test_a_namespace_that_was_first_gives_way_to_one_that_the_order_puts_before_it(
    world: World, crds: Cluster, other: str
) -> None:
    try:
        world.start_for(other)
        await create(world.api, MODEL, model(other, "early", model=NAME))
        order = [world.namespace, other]
        await world.apply(proxy(world.namespace, "edge", namespaces=order))
        await world.routed("early")
        await world.apply(model(world.namespace, "late", model=NAME))
        await world.routed("late")
        await _watch_for_hijack(world, world.namespace)
    finally:
        crds.delete_namespace(other)


async def test_a_foreign_proxys_objects_are_left_alone_and_named(world: World) -> None:
    """And looked at again every few seconds: no watch tells that they are gone."""
    theirs = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "nimway-edge-routes", "namespace": world.namespace},
        "data": {"mine": "x"},
    }
    before = await create(world.api, CONFIG_MAP, theirs)
    world.start()
    await world.apply(proxy(world.namespace, "edge"), model(world.namespace, "a"))
    live = await world.reported(PROXY, "edge", "Stalled/ObjectConflict")
    assert "nimway-edge-routes" in json.dumps(live["status"]["conditions"])
    assert await world.get(CONFIG_MAP, "nimway-edge-routes") == before
    await world.delete(CONFIG_MAP, "nimway-edge-routes")
    await world.routed("a", timeout_s=FOREIGN_RECHECK_S + PROMOTED_S)


async def test_a_model_whose_children_would_have_a_proxys_names_is_refused_until_it_goes(
    world: World,
) -> None:
    await world.apply(proxy(world.namespace, "edge"))
    world.start()
    await world.reported(PROXY, "edge", "Ready/SwitchedOff")
    before = await world.get(DEPLOYMENT, "nimway-edge")
    await world.apply(model(world.namespace, "nimway-edge"))
    live = await world.reported(MODEL, "nimway-edge", "Stalled/ObjectConflict")
    told = condition(live, "Stalled")["message"]
    assert f"it belongs to NIMProxy {world.namespace}/edge" in told
    after = await world.get(DEPLOYMENT, "nimway-edge")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"] == before["spec"]
    await world.delete(PROXY, "edge")
    await world.reported(MODEL, "nimway-edge", "Ready/SwitchedOff", timeout_s=COLLECT_S)


async def test_a_proxy_that_cannot_be_made_keeps_no_model_waiting(world: World) -> None:
    theirs = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "nimway-bad-routes", "namespace": world.namespace},
    }
    await create(world.api, CONFIG_MAP, theirs)
    await world.apply(proxy(world.namespace, "bad"), proxy(world.namespace, "edge"))
    world.start()
    await world.reported(PROXY, "bad", "Stalled/ObjectConflict")
    await world.apply(model(world.namespace, "a"))
    # Of `edge` all is known, and that is what is told: nothing of `bad` is waited for.
    await world.reported(MODEL, "a", "Routed/ProxyNotReady")


async def test_a_poison_object_disturbs_no_other(world: World) -> None:
    """OP-13: refused again and again, it backs off alone."""
    world.start()
    poison = {"limits": {"no-standard-resource": "1"}}
    await world.apply(
        proxy(world.namespace, "edge"), model(world.namespace, "poison", resources=poison)
    )
    await world.reported(MODEL, "poison", "Stalled/InvalidSpec")
    names = [f"good-{number}" for number in range(10)]
    await world.apply(*(model(world.namespace, name) for name in names))
    await world.routed("poison", *names, timeout_s=15)
    for name in names:
        await world.reported(MODEL, name, "Ready/SwitchedOff")
    await world.settled()
    writes = len(world.faults.writes())
    change = {"spec": {"aliases": ["again"]}}
    await patch(world.api, MODEL, world.namespace, "good-1", change)
    await world.reported(MODEL, "good-1", "Ready/SwitchedOff", timeout_s=5)
    await world.settled(1.5)
    tries = [call for call in world.faults.writes()[writes:] if call.name == "poison"]
    assert len(tries) <= 1, "what the API server refuses for good is not repeated"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param([{"op": "replace", "path": "/data", "value": {}}], marks=full_only),
        [{"op": "replace", "path": "/data/routes.json", "value": "{"}],
        None,
    ],
    ids=["emptied", "corrupted", "deleted"],
)
async def test_a_damaged_routing_table_is_restored(
    world: World, damage: list[Manifest] | None
) -> None:
    """OP-7; that the proxies keep the last good one is PX-13."""
    world.start()
    await world.apply(proxy(world.namespace, "edge"), model(world.namespace, "a"))
    await world.routed("a")
    await world.settled()
    name = "nimway-edge-routes"
    before = (await world.get(CONFIG_MAP, name))["data"]
    if damage is None:
        await world.delete(CONFIG_MAP, name)
    else:
        await patch(world.api, CONFIG_MAP, world.namespace, name, damage)

    async def restored() -> bool:
        live = await world.find(CONFIG_MAP, name)
        return live is not None and live.get("data") == before

    await until(restored, "the table is back", timeout_s=5)
