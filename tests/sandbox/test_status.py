"""A pod's reported status, and the back-off between restarts."""

import datetime as dt
from typing import Any

import pytest

from nimway.sandbox.node import status
from nimway.sandbox.node.status import ContainerState
from nimway.sandbox.node.timing import BackOff

MOMENT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
RUNNING = status.running(MOMENT)
DONE = status.terminated(0, MOMENT, MOMENT, "sandbox://1")
FAILED = status.terminated(1, MOMENT, MOMENT, "sandbox://1")
CREATING = status.waiting("ContainerCreating")
CRASHING = status.waiting("CrashLoopBackOff")


def _container(state: dict[str, Any], last: dict[str, Any] | None = None, **more: Any) -> Any:
    return ContainerState(name="c", image="i", state=state, last_state=last or {}, **more)


@pytest.mark.parametrize(
    ("policy", "states", "phase"),
    [
        ("Always", [(CREATING, None)], "Pending"),
        ("Always", [(RUNNING, None)], "Running"),
        ("Always", [(RUNNING, None), (CREATING, None)], "Pending"),
        ("Always", [(CRASHING, FAILED)], "Running"),
        ("Always", [(DONE, None)], "Running"),
        ("OnFailure", [(DONE, None)], "Succeeded"),
        ("OnFailure", [(FAILED, None)], "Running"),
        ("Never", [(FAILED, None), (RUNNING, None)], "Running"),
        ("Never", [(FAILED, None), (DONE, None)], "Failed"),
        ("Never", [(DONE, None)], "Succeeded"),
    ],
)
def test_the_phase_follows_the_containers_and_the_restart_policy(
    policy: str, states: list[tuple[dict[str, Any], dict[str, Any] | None]], phase: str
) -> None:
    pod = {"spec": {"restartPolicy": policy}}
    containers = [_container(state, last) for state, last in states]
    assert status.phase(pod, containers, [], ending=False) == phase


@pytest.mark.parametrize(
    ("policy", "init", "phase"),
    [
        ("Always", RUNNING, "Pending"),
        ("Always", FAILED, "Pending"),
        ("Never", FAILED, "Failed"),
        ("Never", DONE, "Pending"),
    ],
)
def test_init_containers_hold_the_phase(policy: str, init: dict[str, Any], phase: str) -> None:
    pod = {"spec": {"restartPolicy": policy}}
    inits = [_container(init)]
    assert status.phase(pod, [_container(CREATING)], inits, ending=False) == phase


def test_a_pod_that_ends_is_succeeded_only_if_every_container_was() -> None:
    pod = {"spec": {"restartPolicy": "Always"}}
    assert status.phase(pod, [_container(DONE)], [], ending=True) == "Succeeded"
    assert status.phase(pod, [_container(DONE), _container(FAILED)], [], ending=True) == "Failed"
    assert status.phase(pod, [_container(CREATING)], [], ending=True) == "Failed"


def _conditions(pod: dict[str, Any], *containers: ContainerState) -> dict[str, Any]:
    found = status.conditions(pod, list(containers), "Running", initialized=True, sandboxed=True)
    return {each["type"]: (each["status"], each["reason"]) for each in found}


def test_ready_needs_every_container_and_every_readiness_gate() -> None:
    ready, unready = _container(RUNNING, ready=True), _container(RUNNING)
    plain: dict[str, Any] = {"spec": {}}
    assert _conditions(plain, ready)["Ready"] == ("True", None)
    assert _conditions(plain, ready, unready)["Ready"] == ("False", "ContainersNotReady")
    gated: dict[str, Any] = {"spec": {"readinessGates": [{"conditionType": "gate"}]}}
    assert _conditions(gated, ready)["Ready"] == ("False", "ReadinessGatesNotReady")
    assert _conditions(gated, ready)["ContainersReady"] == ("True", None)
    gated["status"] = {"conditions": [{"type": "gate", "status": "True"}]}
    assert _conditions(gated, ready)["Ready"] == ("True", None)


def test_a_transition_time_changes_with_the_status_alone() -> None:
    later = MOMENT + dt.timedelta(seconds=9)
    first = status.keep_transition_times([{"type": "Ready", "status": "False"}], {}, MOMENT)
    previous = {"Ready": first[0]}
    same = status.keep_transition_times([{"type": "Ready", "status": "False"}], previous, later)
    changed = status.keep_transition_times([{"type": "Ready", "status": "True"}], previous, later)
    assert same[0]["lastTransitionTime"] == "2026-01-02T03:04:05Z"
    assert changed[0]["lastTransitionTime"] == "2026-01-02T03:04:14Z"


def test_back_off_starts_at_once_doubles_to_five_minutes_and_resets_after_ten() -> None:
    backoff = BackOff(10.0)
    delays = [backoff.next_delay_s(1.0) for _ in range(8)]
    assert delays == [0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]
    assert backoff.next_delay_s(601.0) == 0.0
    assert backoff.next_delay_s(1.0) == 10.0
