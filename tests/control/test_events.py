from typing import Any

import pytest

from nimway.control.events import BURST, PER_S, Budget, Transition, event_name, transitions

Seen = dict[str, str]
"""Conditions as `Status/Reason`."""

SERVING = {
    "Ready": "True/Serving",
    "Routed": "True/Serving",
    "Available": "True/Serving",
    "Reconciling": "False/Settled",
    "Stalled": "False/Settled",
}


def _conditions(**seen: str) -> list[dict[str, Any]]:
    found = []
    for kind, text in seen.items():
        status, _, reason = text.partition("/")
        found.append({"type": kind, "status": status, "reason": reason, "message": f"of {kind}"})
    return found


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (SERVING, SERVING, []),
        ({}, SERVING, []),
        ({}, {**SERVING, "Ready": "False/Progressing"}, []),
        (
            {},
            {"Ready": "False/InvalidSpec", "Stalled": "True/InvalidSpec"},
            ["Warning/InvalidSpec/of Ready"],
        ),
        (
            {"Ready": "False/Progressing", "Reconciling": "True/Progressing"},
            {"Ready": "False/LoadingWeights", "Reconciling": "True/LoadingWeights"},
            ["Normal/LoadingWeights/of Ready"],
        ),
        (
            {**SERVING, "Ready": "False/LoadingWeights", "Reconciling": "True/LoadingWeights"},
            SERVING,
            ["Normal/Serving/of Ready"],
        ),
        (
            SERVING,
            {**SERVING, "Reconciling": "True/Progressing", "Stalled": "False/Progressing"},
            ["Normal/Progressing/of Reconciling"],
        ),
        (
            {**SERVING, "Reconciling": "True/Progressing", "Stalled": "False/Progressing"},
            SERVING,
            ["Normal/Settled/of Reconciling"],
        ),
        (
            SERVING,
            {**SERVING, "Reconciling": "False/CrashLoop", "Stalled": "True/CrashLoop"},
            ["Warning/CrashLoop/of Stalled"],
        ),
        (
            SERVING,
            {
                **SERVING,
                "Ready": "False/CrashLoop",
                "Available": "False/CrashLoop",
                "Routed": "False/ProxyNotReady",
                "Reconciling": "True/CrashLoop",
            },
            ["Warning/CrashLoop/of Ready", "Warning/ProxyNotReady/of Routed"],
        ),
        (
            {**SERVING, "Routed": "False/ProxyNotReady", "Ready": "False/ProxyNotReady"},
            SERVING,
            ["Normal/Serving/of Ready"],
        ),
        (SERVING, {**SERVING, "Routed": "Unknown/NoProxy"}, []),
    ],
)
def test_a_transition_is_told_once_for_each_reason(
    before: Seen, after: Seen, expected: list[str]
) -> None:
    told = transitions(_conditions(**before), _conditions(**after))
    assert [f"{each.type}/{each.reason}/{each.message}" for each in told] == expected


def test_a_new_message_alone_is_no_transition() -> None:
    before, after = _conditions(**SERVING), _conditions(**SERVING)
    after[0]["message"] = "2 of 3 replicas serve"
    assert transitions(before, after) == []


def test_a_long_message_is_cut() -> None:
    after = _conditions(Ready="False/InvalidSpec")
    after[0]["message"] = "x" * 5000
    [told] = transitions([], after)
    assert told == Transition("Warning", "InvalidSpec", "x" * 1000)


def test_an_events_name_is_made_of_the_object_and_the_reason() -> None:
    name = event_name("llama", "u1", "CrashLoop")
    assert name == event_name("llama", "u1", "CrashLoop")
    assert name.startswith("llama.")
    assert len({name, event_name("llama", "u2", "CrashLoop"), event_name("llama", "u1", "X")}) == 3
    assert len(event_name("a" * 253, "u1", "CrashLoop")) <= 253


def test_events_are_limited_in_a_burst_and_over_time() -> None:
    budget = Budget(0.0)
    assert [budget.take(0.0) for _ in range(BURST + 1)] == [True] * BURST + [False]
    assert budget.take(1 / PER_S)
    assert not budget.take(1 / PER_S)
    assert sum(budget.take(1e6) for _ in range(2 * BURST)) == BURST
