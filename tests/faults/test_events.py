"""Transitions are told as Events: shown to the user, never doubled, and never in the way."""

import signal

import httpx
import pytest

from nimway.control.events import BURST, PER_S, SPACING_S
from nimway.control.kinds import EVENT, MODEL, PROXY, Manifest
from tests.control.process import patch
from tests.faults.world import World, model, pause, proxy, until
from tests.support.api_faults import refuse
from tests.support.cluster import Cluster
from tests.support.ports import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

POISON = {"limits": {"no-standard-resource": "1"}}
"""Resources that pass admission, and that no pod may have."""


async def _events(world: World) -> dict[str, Manifest]:
    """Return the operator's Events by name."""
    found = {}
    async for page, _ in world.api.pages(EVENT, world.namespace):
        for each in page:
            if each["source"].get("component") == "nimway-operator":
                found[each["metadata"]["name"]] = each
    return found


async def _told(world: World, name: str, reason: str, *, times: int = 1) -> Manifest:
    async def probe() -> Manifest | None:
        for each in (await _events(world)).values():
            if (each["involvedObject"]["name"], each["reason"]) == (name, reason):
                return each if each["count"] >= times else None
        return None

    return await until(probe, f"{name}: {reason} is told {times} times", timeout_s=SPACING_S + 10)


async def _spoil(world: World) -> None:
    await patch(world.api, MODEL, world.namespace, "a", {"spec": {"resources": POISON}})
    await world.reported(MODEL, "a", "Stalled/InvalidSpec")


async def _mend(world: World) -> None:
    await patch(world.api, MODEL, world.namespace, "a", {"spec": {"resources": None}})
    await world.reported(MODEL, "a", "Ready/SwitchedOff")


async def _leads(world: World, since: int) -> bool:
    """Tell whether a Lease was taken or renewed after so many calls."""
    return any(
        call.plural == "leases" and call.is_write and call.status in {200, 201}
        for call in world.faults.calls[since:]
    )


async def test_what_happened_is_shown_and_a_restart_tells_nothing_anew(
    world: World, crds: Cluster
) -> None:
    operator = world.start()
    await world.apply(proxy(world.namespace, "edge"), model(world.namespace, "a"))
    await world.reported(MODEL, "a", "Ready/SwitchedOff")
    await world.reported(PROXY, "edge", "Ready/SwitchedOff")
    await _spoil(world)
    told = await _told(world, "a", "InvalidSpec")
    assert told["type"] == "Warning"
    assert "no-standard-resource" in told["message"]
    await _mend(world)
    told = await _told(world, "a", "SwitchedOff")
    assert told["type"] == "Normal"
    described = crds.kubectl("describe", "-n", world.namespace, "nimmodel", "a")
    shown = described.partition("Events:")[2]
    assert "Warning  InvalidSpec" in shown
    assert "nimway-operator" in shown

    await world.settled()
    before = await _events(world)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        operator.stop(number)
        writes, calls = len(world.faults.writes()), len(world.faults.calls)
        operator = world.start()
        await until(lambda: _leads(world, calls), "it leads")  # noqa: B023 - awaited here
        await world.settled(2.0)
        assert world.faults.writes()[writes:] == []
    assert await _events(world) == before


async def test_what_happens_again_is_counted_in_the_same_event(world: World) -> None:
    """By the process that told of it first, and by the next."""
    operator = world.start()
    await world.apply(model(world.namespace, "a"))
    await world.reported(MODEL, "a", "Ready/SwitchedOff")
    for _ in range(3):
        await _spoil(world)
        await _mend(world)
    told = await _told(world, "a", "InvalidSpec")
    calls = [call for call in world.faults.writes("events") if "InvalidSpec" in str(call.body)]
    assert len(calls) == 1, "at most one write each 10 s"
    await pause(SPACING_S)
    await _spoil(world)
    again = await _told(world, "a", "InvalidSpec", times=4)
    assert again["metadata"]["uid"] == told["metadata"]["uid"]
    assert again["count"] == 4

    operator.stop(signal.SIGKILL)
    operator = world.start()
    await _mend(world)
    await _spoil(world)
    await pause(1.0)
    names = [
        each["metadata"]["name"]
        for each in (await _events(world)).values()
        if each["reason"] == "InvalidSpec"
    ]
    assert names == [told["metadata"]["name"]]


async def test_an_event_that_cannot_be_written_is_counted_and_no_more(world: World) -> None:
    port = free_port()
    world.faults.on(lambda call: call.plural == "events", refuse(500, "InternalError"))
    world.start(NIMWAY_HEALTH_PORT=str(port))
    await world.apply(model(world.namespace, "a"))
    await _spoil(world)
    await _mend(world)
    await world.settled()
    tried = len(world.faults.writes("events"))
    assert tried >= 2
    await _spoil(world)
    await world.settled()
    async with httpx.AsyncClient(trust_env=False) as client:
        metrics = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    assert 'nimway_operator_events_total{outcome="failed",type="Warning"} 1.0' in metrics
    assert 'nimway_operator_reconcile_failures_total{kind="NIMModel"}' not in metrics
    assert await _events(world) == {}


async def test_many_troubles_at_once_are_told_within_limits(world: World) -> None:
    count = 2 * BURST
    operator = world.start()
    await world.apply(
        *(model(world.namespace, f"m{n:03d}", resources=POISON) for n in range(count))
    )
    for number in range(count):
        await world.reported(MODEL, f"m{number:03d}", "Stalled/InvalidSpec", timeout_s=60)
    await world.settled()
    calls = world.faults.writes("events")
    took_s = calls[-1].at_s - calls[0].at_s
    assert BURST <= len(calls) <= BURST + PER_S * took_s + 1
    assert not [call for call in calls if call.status >= 400]
    assert operator.process.poll() is None
