"""OP-5: the API server is away, slow, overloaded or contradicts; the operator outlasts it."""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from aiohttp import web

from nimway.control.kinds import DEPLOYMENT, MODEL, PROXY
from tests.control.process import condition, patch
from tests.faults.world import World, model, proxy, until
from tests.support.api_faults import (
    Call,
    Exchange,
    Rule,
    every,
    hang,
    lose_reply,
    refuse,
    slow,
)
from tests.support.cluster import Cluster
from tests.support.faults import FULL, full_only

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(700)]

MODELS = 5
AWAY_S = (10.0, 60.0, 300.0) if FULL else (4.0,)
REQUESTS_PER_S_MAX = 40.0
"""Eleven watches that try again every one to three seconds after a first haste, and the rest."""


def _not_a_lease(call: Call) -> bool:
    return call.plural != "leases"


def _write(call: Call) -> bool:
    return call.is_write and _not_a_lease(call)


async def _settle(world: World) -> None:
    namespace = world.namespace
    names = [f"m{number}" for number in range(MODELS)]
    await world.apply(proxy(namespace, "edge"), *(model(namespace, name) for name in names))
    await world.routed(*names, timeout_s=60)
    for name in names:
        await world.reported(MODEL, name, "Ready/SwitchedOff", timeout_s=60)
    await world.reported(PROXY, "edge", "Ready/SwitchedOff", timeout_s=60)


async def _wait(duration_s: float) -> None:
    with contextlib.suppress(AssertionError):
        await until(_nothing, "time passes", timeout_s=duration_s)


async def _nothing() -> None:
    return None


@pytest.mark.parametrize("away_s", AWAY_S)
async def test_an_absence_of_the_api_server_is_outlasted_without_a_storm(
    world: World, away_s: float
) -> None:
    world.start()
    await _settle(world)
    before = await world.state()
    since = len(world.faults.calls)
    world.faults.go_down()
    await patch(world.api, MODEL, world.namespace, "m0", {"spec": {"image": "nvcr.io/nim/x:2"}})
    end_s = time.monotonic() + away_s
    while time.monotonic() < end_s:
        world.revive()
        await _wait(0.5)
    requests = len(world.faults.calls) - since
    world.faults.heal()
    back_s = time.monotonic()
    await world.reported(MODEL, "m0", "Ready/SwitchedOff", timeout_s=45)
    back_s = time.monotonic() - back_s
    sys.stdout.write(f"{requests / away_s:.1f} requests/s, back in {back_s:.1f} s\n")
    await world.settled()
    assert requests / away_s < REQUESTS_PER_S_MAX
    after = await world.state()
    assert set(after) == set(before)
    assert after["Deployment/m1"] == before["Deployment/m1"]


@full_only
async def test_too_many_requests_are_answered_with_fewer(world: World) -> None:
    world.start()
    await _settle(world)
    rule = world.faults.on(_write, refuse(429, "TooManyRequests"))
    since, writes = time.monotonic(), len(world.faults.writes())
    for number in range(MODELS):
        change = {"spec": {"image": "nvcr.io/nim/x:2"}}
        await patch(world.api, MODEL, world.namespace, f"m{number}", change)
    await _wait(5.0)
    took_s = time.monotonic() - since
    each = Counter(call.path for call in world.faults.writes()[writes:])
    assert len(rule.hits) >= MODELS
    # 0.1, 0.2, 0.4, 0.8, 1.6, 3.2 s with jitter: six or seven tries in five seconds.
    assert max(each.values()) <= 9 + took_s, each
    world.faults.heal()
    for number in range(MODELS):
        await world.reported(MODEL, f"m{number}", "Ready/SwitchedOff", timeout_s=30)


@full_only
async def test_a_storm_of_429_on_everything_is_outlasted(world: World) -> None:
    world.start()
    await _settle(world)
    world.faults.on(lambda _: True, refuse(429, "TooManyRequests"))
    world.faults.cut_watches()
    since = len(world.faults.calls)
    await patch(world.api, MODEL, world.namespace, "m0", {"spec": {"image": "nvcr.io/nim/x:2"}})
    duration_s = 60.0 if FULL else 4.0
    end_s = time.monotonic() + duration_s
    while time.monotonic() < end_s:
        world.revive()
        await _wait(0.5)
    assert (len(world.faults.calls) - since) / duration_s < REQUESTS_PER_S_MAX
    world.faults.heal()
    await world.reported(MODEL, "m0", "Ready/SwitchedOff", timeout_s=45)


async def test_a_webhook_that_fails_is_told_once_and_outlasted(world: World) -> None:
    rule: Rule

    async def fail(exchange: Exchange) -> web.StreamResponse:
        text = f'failed calling webhook "a.b": read tcp 10.0.0.1:{40_000 + len(rule.hits)}: reset'
        return exchange.answer(500, "InternalError", text)

    rule = world.faults.on(lambda call: call.is_write and call.plural == "services", fail)
    world.start()
    await world.apply(model(world.namespace, "m0"))
    await until(lambda: _refused(rule.hits, 5), "it is tried again")
    live = await world.reported(MODEL, "m0", "Reconciling/ApiError")
    assert 'failed calling webhook "a.b"' in condition(live, "Ready")["message"]
    assert condition(live, "Stalled")["status"] == "False"
    told = [call for call in world.faults.writes() if call.subresource == "status"]
    assert len(told) == 1, "each attempt had a port of its own"
    world.faults.heal()
    await world.reported(MODEL, "m0", "Ready/SwitchedOff", timeout_s=30)


async def test_with_a_conflict_on_every_second_write_it_converges(world: World) -> None:
    rule = world.faults.on(every(2, _write), refuse(409, "Conflict"))
    world.start()
    await _settle(world)
    assert len(rule.hits) >= MODELS
    assert world.exits == 0


async def test_with_every_second_reply_lost_it_converges_to_one_of_each(world: World) -> None:
    rule = world.faults.on(every(2, _write), lose_reply)
    world.start()
    await _settle(world)
    await world.settled()
    assert len(rule.hits) >= MODELS
    world.faults.heal()
    for number in range(MODELS):
        live = await world.get(DEPLOYMENT, f"m{number}")
        assert live["metadata"]["generation"] == 1, "created once, never changed"


@full_only
async def test_with_slow_calls_it_converges_and_keeps_its_lease(world: World) -> None:
    delay_s = 2.0 if FULL else 0.5
    world.faults.on(lambda call: not call.is_watch, slow(delay_s))
    operator = world.start()
    await _settle(world)
    assert operator.process.poll() is None


@full_only
async def test_calls_that_never_return_do_not_block_others(world: World) -> None:
    world.start()
    await _settle(world)
    rule = world.faults.on(lambda call: _write(call) and call.name == "m0", hang)
    change = {"spec": {"image": "nvcr.io/nim/x:2"}}
    for name in ("m0", "m1"):
        await patch(world.api, MODEL, world.namespace, name, change)
    await world.reported(MODEL, "m1", "Ready/SwitchedOff")
    assert rule.hits
    world.faults.heal()
    if FULL:  # the client's own limit of 30 s
        await world.reported(MODEL, "m0", "Ready/SwitchedOff", timeout_s=45)


@pytest.fixture
def other(crds: Cluster, namespace: str) -> Iterator[str]:
    """A second namespace that the proxy serves."""
    name = f"{namespace}-other"
    crds.create_namespace(name)
    yield name
    crds.delete_namespace(name)


@pytest.mark.parametrize("is_going", [True, pytest.param(False, marks=full_only)])
async def test_a_served_namespace_that_goes_keeps_no_table_waiting(
    world: World, other: str, *, is_going: bool
) -> None:
    """Its binding is refused for a known cause; one that is refused for another is waited for."""
    namespace = world.namespace

    def binds(call: Call) -> bool:
        return call.is_write and call.plural == "rolebindings" and f"/{other}/" in call.path

    causes = ("NamespaceTerminating",) if is_going else ()
    rule = world.faults.on(binds, refuse(403, "Forbidden", causes=causes))
    world.start_for(other)
    await world.apply(
        model(namespace, "here"),
        model(other, "there"),
        proxy(namespace, "edge", namespaces=[namespace, other]),
    )
    if is_going:
        await world.routed("here", "there")
    else:
        await until(lambda: _refused(rule.hits, 3), "it is tried again")
        assert await world.table() is None
    assert rule.hits
    world.faults.heal()
    await world.routed("here", "there")


async def _refused(hits: list[Call], count: int) -> bool:
    return len(hits) >= count
