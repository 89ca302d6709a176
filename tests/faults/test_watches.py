"""OP-2, OP-3, OP-4: the operator's watches lie, stall or break."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from nimway.control.kinds import DEPLOYMENT, MODEL, Manifest
from tests.control.process import OperatorProcess, patch
from tests.faults.world import MODEL_CHILDREN, World, model, proxy, until
from tests.support.api_faults import Call, refuse
from tests.support.faults import FULL, full_only
from tests.support.ports import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

RESYNC_S = 4.0
"""Between fresh lists in these tests; the product's 50 s only make the same wait longer."""
TYPICAL_S = 10.0
"""Typically 2 s, and far below the 45 s of the next resync; the machine is shared."""
GONE = {"kind": "Status", "status": "Failure", "reason": "Expired", "code": 410, "message": "old"}
FAILED = {**GONE, "reason": "InternalError", "code": 500, "message": "etcd leader changed"}


def _error(status: Manifest) -> bytes:
    return json.dumps({"type": "ERROR", "object": status}).encode() + b"\n"


async def _steady(world: World, **environment: str) -> OperatorProcess:
    """Start an operator and let it settle with a proxy and two models."""
    operator = world.start(**environment)
    namespace = world.namespace
    await world.apply(proxy(namespace, "edge"), model(namespace, "a"), model(namespace, "b"))
    await world.routed("a", "b")
    await world.reported(MODEL, "a", "Ready/SwitchedOff")
    await world.reported(MODEL, "b", "Ready/SwitchedOff")
    await world.settled()
    return operator


async def _lose_deletion(world: World, name: str) -> None:
    """Delete a model while no watch says so, then end the NIMModels' watch with 410."""

    def drops(event: dict[str, Any]) -> bool:
        metadata = event["object"].get("metadata", {})
        return bool(event["object"].get("kind") == "NIMModel" and metadata.get("name") == name)

    world.faults.drops_event = drops
    await world.delete(MODEL, name)
    await world.gone(MODEL, name)
    assert world.faults.send_to_watches("nimmodels", _error(GONE)) == 1


async def test_a_deletion_that_no_watch_reported_is_noticed_at_the_next_list(
    world: World,
) -> None:
    await _steady(world)
    await _lose_deletion(world, "a")
    await world.routed("b", timeout_s=TYPICAL_S)


@full_only
async def test_the_last_models_unreported_deletion_is_noticed_by_the_resync(world: World) -> None:
    await _steady(world, NIMWAY_TEST_RESYNC_S=str(RESYNC_S))
    await world.delete(MODEL, "b")
    await world.routed("a")
    await _lose_deletion(world, "a")
    await world.routed(timeout_s=2 * RESYNC_S)


async def test_a_model_that_only_a_stale_watch_still_shows_gets_no_children(world: World) -> None:
    await _steady(world)
    await _lose_deletion(world, "a")
    for kind in MODEL_CHILDREN:
        await world.gone(kind, "a", timeout_s=60)
    await world.settled()
    before = len(world.faults.writes())
    await world.settled(2.0)
    assert [str(call) for call in world.faults.writes()[before:]] == []
    assert await world.find(DEPLOYMENT, "a") is None


@full_only
async def test_changes_that_no_watch_reported_lead_to_the_last_spec(world: World) -> None:
    await _steady(world, NIMWAY_TEST_RESYNC_S=str(RESYNC_S))
    world.faults.drops_event = lambda _: True
    for image in ("nvcr.io/nim/x:2", "nvcr.io/nim/x:1", "nvcr.io/nim/x:3"):
        await patch(world.api, MODEL, world.namespace, "a", {"spec": {"image": image}})

    async def applied() -> bool:
        live = await world.get(DEPLOYMENT, "a")
        return bool(live["spec"]["template"]["spec"]["containers"][0]["image"] == image)

    await until(applied, "the last image is applied", timeout_s=3 * RESYNC_S)


@full_only
async def test_an_old_snapshot_at_start_deletes_nothing_that_is_newer(world: World) -> None:
    """A watch that lists an old state: the model of that time, deleted and created again since."""
    operator = await _steady(world)
    old = await world.get(MODEL, "a")
    operator.stop()
    await world.delete(MODEL, "a", "Foreground")
    await world.gone(MODEL, "a", timeout_s=60)
    [new] = await world.apply(model(world.namespace, "a", image="nvcr.io/nim/new:1"))
    world.start()
    await world.reported(MODEL, "a", "Ready/SwitchedOff")
    for event in ("MODIFIED", "DELETED"):
        line = json.dumps({"type": event, "object": old}).encode() + b"\n"
        assert world.faults.send_to_watches("nimmodels", line, end=False) == 1
    before = len(world.faults.writes())
    await world.settled(1.5)
    live = await world.get(DEPLOYMENT, "a")
    assert live["metadata"]["ownerReferences"][0]["uid"] == new["metadata"]["uid"]
    assert [str(call) for call in world.faults.writes()[before:]] == []


async def _notices_a_new_model(world: World, name: str, *, timeout_s: float) -> None:
    await world.apply(model(world.namespace, name))
    await world.reported(MODEL, name, "Ready/SwitchedOff", timeout_s=timeout_s)


async def test_a_frozen_watch_is_outlived_by_the_resync(world: World) -> None:
    operator = await _steady(world, NIMWAY_TEST_RESYNC_S=str(RESYNC_S))
    assert world.faults.freeze_watches() == len(world.faults.open_watches(""))
    await _notices_a_new_model(world, "c", timeout_s=3 * RESYNC_S)
    assert operator.process.poll() is None


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(_error(FAILED), marks=full_only),
        b'{"type": "MODIFIED", "object": {"kind": "NIMMo',
        pytest.param(b"not json\n", marks=full_only),
    ],
    ids=["error 500", "truncated", "not json"],
)
async def test_a_broken_watch_ends_the_operator_with_an_error_and_a_restart_heals_it(
    world: World, line: bytes
) -> None:
    operator = await _steady(world)
    before = len(world.faults.writes())
    assert world.faults.send_to_watches("nimmodels", line) == 1

    async def exited() -> bool:
        return operator.process.poll() is not None

    await until(exited, "the operator exits: it would be blind", timeout_s=15)
    assert operator.process.returncode == 1
    await _notices_a_new_model(world, "c", timeout_s=20)
    await world.routed("a", "b", "c")
    written = {call.name for call in world.faults.writes()[before:] if call.plural != "events"}
    assert written <= {"c", "edge", "nimway-edge-routes"}, "a restart alone writes nothing"


@pytest.mark.parametrize(
    "line",
    [
        _error(GONE),
        pytest.param(_error(FAILED), marks=full_only),
        pytest.param(b'{"type": "MODIFIED", "object": {"kind": "Depl', marks=full_only),
    ],
    ids=["gone", "error 500", "truncated"],
)
async def test_a_childs_deletion_behind_a_broken_watch_is_repaired_without_a_restart(
    world: World, line: bytes
) -> None:
    operator = await _steady(world)
    old = await world.get(DEPLOYMENT, "a")
    world.faults.drops_event = lambda event: bool(event["object"].get("kind") == "Deployment")
    await world.delete(DEPLOYMENT, "a")
    await world.gone(DEPLOYMENT, "a")
    assert world.faults.send_to_watches("deployments", line) == 1

    async def back() -> bool:
        live = await world.find(DEPLOYMENT, "a")
        return live is not None and live["metadata"]["uid"] != old["metadata"]["uid"]

    await until(back, "the Deployment is back", timeout_s=TYPICAL_S)
    assert operator.process.poll() is None


REFUSED_S = 120.0 if FULL else 2.0


@pytest.mark.timeout(400)
@pytest.mark.parametrize("status", [403, pytest.param(500, marks=full_only)])
async def test_a_time_of_refusals_ends_with_an_operator_that_sees(
    world: World, status: int
) -> None:
    await _steady(world)
    rule = world.faults.on(_is_read, refuse(status, "Forbidden"))
    world.faults.cut_watches()
    await asyncio.sleep(REFUSED_S)
    await until(lambda: _hit(rule.hits, 20), "the operator was refused", timeout_s=15)
    for number in range(3):
        await world.apply(model(world.namespace, f"while-{number}"))
    world.faults.heal()
    await world.routed("a", "b", "while-0", "while-1", "while-2", timeout_s=30)


async def test_an_operator_that_never_gets_its_first_list_says_so_and_is_not_alive_for_ever(
    world: World,
) -> None:
    """One right that is missing, of a child that nobody may even use: all lists count."""
    port = free_port()
    rule = world.faults.on(_lists_claims, refuse(403, "Forbidden", "claims: no right to list"))
    world.start(NIMWAY_TEST_BLIND_S="3", NIMWAY_HEALTH_PORT=str(port))

    async def answers(path: str, wanted: int) -> str | None:
        try:
            async with aiohttp.request("GET", f"http://127.0.0.1:{port}{path}") as answer:
                return await answer.text() if answer.status == wanted else None
        except aiohttp.ClientConnectionError:
            return None

    await until(lambda: answers("/healthz", 200), "it is alive")
    unready = await until(lambda: answers("/readyz", 503), "it is not ready")
    assert unready.startswith("the first list of the cluster is not done")
    told = await until(lambda: answers("/healthz", 503), "it is not alive any more")
    assert told == "no complete list of the cluster for 3 s: claims: no right to list\n"
    assert rule.hits
    world.faults.heal()
    for path in ("/healthz", "/readyz"):
        await until(lambda path=path: answers(path, 200), path)  # type: ignore[misc]


def _lists_claims(call: Call) -> bool:
    return call.plural == "persistentvolumeclaims" and not call.is_watch and not call.is_write


def _is_read(call: Call) -> bool:
    return not call.is_write and call.plural != "leases"


async def _hit(hits: list[Call], count: int) -> bool:
    return len(hits) >= count


@full_only
async def test_a_restart_in_between_changes_nothing(world: World) -> None:
    """OP-11 beside the watches: whatever the fault, a restart alone writes nothing."""
    operator = await _steady(world)
    before = await world.state()
    count = len(world.faults.writes())
    operator.stop()
    operator = world.start()
    started = len(world.faults.calls)
    await until(lambda: _led(world, started), "the new operator leads")
    await world.settled(1.0)
    assert [str(call) for call in world.faults.writes()[count:]] == []
    assert await world.state() == before


async def _led(world: World, since: int) -> bool:
    return any(call.plural == "leases" and call.is_write for call in world.faults.calls[since:])
