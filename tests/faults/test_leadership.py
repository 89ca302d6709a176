"""OP-11, OP-12: restarts write nothing, and of two operators one writes."""

import contextlib
import signal
import time

import pytest

from nimway.control.kinds import DEPLOYMENT, LEASE, MODEL
from tests.control.process import patch
from tests.faults.world import World, kill, model, proxy, until
from tests.support.faults import FULL, full_only

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

RESTARTS = 20 if FULL else 2
MODELS = 200 if FULL else 2
LEASE_S = 15.0 if FULL else 5.0
"""The product's, or one with the same proportions that saves time."""

STOPPED_S = 90.0 if FULL else 6.0
"""Longer than the Lease lasts."""
RENEW_PERIOD_S = 4.5
"""5 s, less the elector's jitter."""


async def _leads(world: World, since: int) -> bool:
    return any(
        call.plural == "leases" and call.is_write and call.status < 300
        for call in world.faults.calls[since:]
    )


async def _steady(world: World, count: int = 2) -> None:
    """Have `count` models, `a` and `b` among them, and wait until all is said of them."""
    namespace = world.namespace
    names = ["a", "b", *(f"m-{number}" for number in range(count - 2))]
    await world.apply(proxy(namespace, "edge"), *(model(namespace, name) for name in names))
    await world.routed(*names, timeout_s=60)
    for name in names:
        await world.reported(MODEL, name, "Ready/SwitchedOff", timeout_s=60)
    await world.settled()


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=full_only), signal.SIGKILL], ids=str
)
async def test_restarts_write_nothing_but_the_lease(world: World, number: signal.Signals) -> None:
    operator = world.start()
    await _steady(world, MODELS)
    table = await world.table()
    writes, state = len(world.faults.writes()), await world.state()
    for _ in range(RESTARTS):
        operator.stop(number)
        calls = len(world.faults.calls)
        operator = world.start()
        await until(lambda: _leads(world, calls), "it leads")  # noqa: B023 - awaited here
        await world.settled(0.5)
    assert [str(call) for call in world.faults.writes()[writes:]] == []
    assert await world.state() == state
    assert await world.table() == table


@full_only
async def test_an_idle_operator_renews_its_lease_and_nothing_else(world: World) -> None:
    world.start()
    await _steady(world, MODELS)
    since, writes = len(world.faults.calls), len(world.faults.writes())
    idle_s = 120.0 if FULL else 10.0
    with contextlib.suppress(AssertionError):
        await until(lambda: _never(world, writes), "a write", timeout_s=idle_s)
    assert [str(call) for call in world.faults.writes()[writes:]] == []
    renewals = [call for call in world.faults.calls[since:] if call.plural == "leases"]
    assert 1 <= len(renewals) <= idle_s / RENEW_PERIOD_S + 1


async def _never(world: World, writes: int) -> bool:
    return len(world.faults.writes()) > writes


async def test_a_leader_that_was_stopped_writes_nothing_when_it_wakes(world: World) -> None:
    """Both write through ways of their own, so that each write has a known author."""
    lease = {"NIMWAY_TEST_LEASE_S": str(LEASE_S)}
    old = world.start("operator-old", **lease)
    await _steady(world)
    old.process.send_signal(signal.SIGSTOP)
    # What the old one does not see: its next reconcile would put its own old view in place.
    await patch(world.api, MODEL, world.namespace, "a", {"spec": {"image": "nvcr.io/nim/x:2"}})
    stopped_s = time.monotonic()
    new = world.start("operator-new", **lease)

    async def succeeded() -> bool:
        held = await world.get(LEASE, "nimway-operator")
        return bool(held["spec"]["holderIdentity"] == "operator-new")

    await until(succeeded, "the second leads", timeout_s=40)
    assert time.monotonic() - stopped_s > LEASE_S - 1, "the Lease was respected"
    await world.reported(MODEL, "a", "Ready/SwitchedOff", timeout_s=20)
    await world.settled()
    with contextlib.suppress(AssertionError):
        remaining_s = STOPPED_S - (time.monotonic() - stopped_s)
        await until(lambda: _never(world, 10**9), "time passes", timeout_s=remaining_s)
    writes, state = len(world.faults.writes()), await world.state()
    transitions = (await world.get(LEASE, "nimway-operator"))["spec"]["leaseTransitions"]

    old.process.send_signal(signal.SIGCONT)

    async def left() -> bool:
        return old.process.poll() is not None

    await until(left, "the old leader leaves", timeout_s=20)
    assert old.process.returncode == 1
    await world.settled(1.0)
    assert [str(call) for call in world.faults.writes()[writes:]] == []
    assert await world.state() == state
    held = await world.get(LEASE, "nimway-operator")
    assert held["spec"]["holderIdentity"] == "operator-new"
    assert held["spec"]["leaseTransitions"] == transitions
    assert new.process.poll() is None


@full_only
async def test_of_two_operators_one_writes_and_the_other_takes_over_at_once(world: World) -> None:
    first = world.start("operator-a")
    await _steady(world)
    calls = len(world.faults.calls)
    world.start("operator-b")
    await until(lambda: _looked(world, calls), "the second asks for the Lease")
    await patch(world.api, MODEL, world.namespace, "a", {"spec": {"image": "nvcr.io/nim/x:2"}})
    await world.reported(MODEL, "a", "Ready/SwitchedOff")
    await world.settled()
    deployments = world.faults.writes("deployments")
    assert len({call.body for call in deployments}) == len(deployments), "one wrote twice"
    assert {call.status for call in deployments} <= {200, 201}, "they got into each other's way"

    assert first.stop() == 0
    gone_s = time.monotonic()
    await world.apply(model(world.namespace, "c"))
    await world.routed("a", "b", "c", timeout_s=10)
    assert time.monotonic() - gone_s < 5, "a leader that leaves gives the Lease back"


async def _looked(world: World, since: int) -> bool:
    return any(
        call.plural == "leases" and call.method == "GET" for call in world.faults.calls[since:]
    )


@full_only
async def test_a_killed_leaders_successor_waits_for_the_lease_and_goes_on(world: World) -> None:
    first = world.start("operator-a")
    await _steady(world)
    kill(first)()
    first.process.wait()
    await world.delete(DEPLOYMENT, "a")
    world.start("operator-b")

    async def back() -> bool:
        return await world.find(DEPLOYMENT, "a") is not None

    await until(back, "the successor repairs", timeout_s=40)
