"""What a model's status says of its sleep: coarse, so that rest and steady work write nothing."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimway.api.status import Reason
from nimway.control import sleep
from nimway.control.conditions import ModelFacts, Problem, RouteView, model_verdicts
from nimway.control.diagnosis import Diagnosis
from nimway.control.facts import NO_DEPLOYMENT
from nimway.control.sleep import Autoscaled, Waking

NOW_S = 1_800_000_000
IDLE_S = 800.0
GRAIN_S = 60.0


def _writes(uses: list[float], idle_s: float, until_s: float) -> tuple[int, int]:
    """Return how often the note changed while it was looked at every 5 s, and the last one."""
    stored, used, written, now = 0, 0.0, 0, 0.0
    pending = sorted(uses)
    while now < until_s:
        while pending and pending[0] <= now:
            used = pending.pop(0)
        noted = sleep.idle_since_s(stored, NOW_S + used, NOW_S + now, idle_s=idle_s)
        written += noted != stored
        stored, now = noted, now + 5
    return written, stored


def test_a_rest_is_noted_once() -> None:
    assert _writes([0.0], IDLE_S, 10 * 3600) == (1, NOW_S)


def test_steady_work_is_noted_not_at_all() -> None:
    assert _writes([float(at) for at in range(0, 36000, 20)], IDLE_S, 36000) == (0, 0)


def test_seldom_work_is_noted_seldom() -> None:
    for apart in (90, 210, 500):
        uses = [float(at) for at in range(0, 36000, apart)]
        written, _ = _writes(uses, IDLE_S, 36000)
        assert written <= 2 * 36000 / sleep.noted_after_s(IDLE_S)
        assert written == 0 or apart > sleep.noted_after_s(IDLE_S)


@given(st.lists(st.floats(0, 5000), max_size=30), st.sampled_from([8.0, 120.0, 800.0, 86400.0]))
def test_who_starts_anew_never_takes_a_model_for_idle_too_long(
    uses: list[float], idle_s: float
) -> None:
    _, stored = _writes(uses, idle_s, 5000)
    used = max((at for at in uses if at <= 4995), default=0.0)
    assumed = sleep.assumed_used_s(stored, NOW_S + 5000, idle_s=idle_s)
    assert assumed >= min(NOW_S + used - 5, NOW_S + 5000 - idle_s)
    if stored:
        assert assumed <= max(NOW_S + used + 3 * GRAIN_S, NOW_S + 5000 - idle_s + GRAIN_S)


def test_who_starts_anew_listens_for_a_while_before_a_model_may_sleep() -> None:
    assumed = sleep.assumed_used_s(NOW_S - 100_000, NOW_S, idle_s=IDLE_S)
    assert assumed == NOW_S - IDLE_S + GRAIN_S
    assert sleep.assumed_used_s(0, NOW_S, idle_s=IDLE_S) == NOW_S


@pytest.mark.parametrize(
    ("known", "took", "usual"), [(0, 12.4, 12), (0, 0.2, 1), (12, 20.0, 16), (60, 1.0, 30)]
)
def test_the_usual_cold_start_is_half_the_latest(known: int, took: float, usual: int) -> None:
    assert sleep.averaged_s(known, took) == usual


@given(st.integers(1, 10_000))
def test_routes_have_steps_near_the_cold_start(seconds: int) -> None:
    rounded = sleep.rounded_s(seconds)
    assert rounded > 0
    assert abs(rounded - seconds) <= max(1, seconds / 3) or seconds > 3600


def test_an_unknown_cold_start_stays_unknown() -> None:
    assert sleep.rounded_s(0) == 0
    assert sleep.usual_s({}) == 0
    assert sleep.usual_s({"status": {"autoscaling": {"coldStartSeconds": 7}}}) == 7


def test_messages_say_since_when_and_how_long_it_usually_takes() -> None:
    waking = Waking("2026-11-01T00:00:00Z")
    assert sleep.asleep_text(Autoscaled()) == "asleep: the first request wakes it"
    assert sleep.asleep_text(Autoscaled(1)).endswith("which usually takes 1 second")
    text = sleep.waking_text(Autoscaled(12), waking, "pod a runs and is not ready yet")
    assert text == (
        "waking since 2026-11-01T00:00:00Z, usually ready after 12 seconds; "
        "pod a runs and is not ready yet"
    )
    late = sleep.waking_text(Autoscaled(12), Waking(waking.since, late=True), "x")
    assert "by now more than 2 times that" in late


def _facts(replicas: int, available: int = 0, **changes: Any) -> ModelFacts:
    deployment = replace(
        NO_DEPLOYMENT,
        observed=True,
        wanted=replicas,
        replicas=replicas,
        updated=replicas,
        ready=available,
        available=available,
    )
    values: dict[str, Any] = {
        "generation": 1,
        "replicas": replicas,
        "deployment": deployment,
        "diagnosis": Diagnosis(Reason.LOADING_WEIGHTS, "pod a runs and is not ready yet"),
        "routes": RouteView(proxies=1, pods_ready=1, pods_serving=1, names=("m",)),
        "autoscaled": Autoscaled(12),
    }
    return ModelFacts(**{**values, **changes})


def _told(facts: ModelFacts) -> dict[str, str]:
    return {
        str(kind): f"{verdict.status}/{verdict.reason}"
        for kind, verdict in model_verdicts(facts, None).items()
    }


WAKING = Autoscaled(12, Waking("2026-11-01T00:00:00Z"))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param(
            _facts(0),
            {
                "Ready": "True/ScaledToZero",
                "Available": "False/ScaledToZero",
                "Routed": "True/Serving",
                "Reconciling": "False/Settled",
                "Stalled": "False/Settled",
            },
            id="asleep",
        ),
        pytest.param(
            _facts(0, autoscaled=None),
            {"Ready": "True/SwitchedOff", "Available": "False/SwitchedOff"},
            id="switched off",
        ),
        pytest.param(
            _facts(0, routes=RouteView(proxies=1)),
            {"Ready": "False/ProxyNotReady", "Available": "False/ScaledToZero"},
            id="asleep, and nobody can wake it",
        ),
        pytest.param(
            _facts(0, routes=RouteView()),
            {"Ready": "True/ScaledToZero", "Routed": "Unknown/NoProxy"},
            id="asleep without a proxy",
        ),
        pytest.param(
            _facts(1, autoscaled=WAKING),
            {
                "Ready": "False/Waking",
                "Available": "False/Waking",
                "Reconciling": "True/Waking",
                "Stalled": "False/Progressing",
            },
            id="waking",
        ),
        pytest.param(
            _facts(1, autoscaled=WAKING, diagnosis=Diagnosis(Reason.WAITING_FOR_GPU, "x")),
            {"Ready": "False/WaitingForGPU", "Reconciling": "True/WaitingForGPU"},
            id="waking in vain",
        ),
        pytest.param(_facts(1), {"Ready": "False/LoadingWeights"}, id="started, not woken"),
        pytest.param(_facts(1, 1, autoscaled=WAKING), {"Ready": "True/Serving"}, id="awake"),
        pytest.param(
            _facts(0, problem=Problem(Reason.INVALID_SPEC, "x", stalled=True)),
            {"Ready": "False/InvalidSpec", "Stalled": "True/InvalidSpec"},
            id="asleep and wrong",
        ),
    ],
)
def test_conditions_tell_sleep_from_being_switched_off(
    facts: ModelFacts, expected: dict[str, str]
) -> None:
    told = _told(facts)
    assert {kind: told[kind] for kind in expected} == expected
