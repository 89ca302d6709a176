"""How many replicas: the decision as a table, and what must hold for every load."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimway.control.autoscale import (
    DOWN_PERIOD_S,
    UNKNOWN_RECHECK_S,
    UP_PERIOD_S,
    UP_REPLICAS_MIN,
    Decision,
    Memory,
    Rules,
    Seen,
    decide,
    first_memory,
)

RULES = Rules(min_replicas=0, max_replicas=8, target=10, down_delay_s=100, idle_s=300)
NOW_S = 1000.0


def _seen(
    replicas: int,
    requests: int = 0,
    *,
    arrived: bool = False,
    known: bool = True,
    starting: bool = False,
) -> Seen:
    return Seen(replicas, requests, arrived, known, starting)


def _calm(replicas: int, idle_s: float = 0.0) -> Memory:
    """Of a model that for long has needed one replica, and was last used `idle_s` ago."""
    return Memory(replicas=replicas, active_s=NOW_S - idle_s)


IDLE = 300.0


@pytest.mark.parametrize(
    ("seen", "memory", "expected"),
    [
        pytest.param(_seen(0), _calm(0, 9e9), 0, id="asleep stays asleep"),
        pytest.param(_seen(0, 1), _calm(0, 9e9), 1, id="a held request wakes"),
        pytest.param(_seen(0, arrived=True), _calm(0), 1, id="a refused request wakes"),
        pytest.param(_seen(0, 1000), _calm(0), 1, id="waking is 0 to 1, whatever waits"),
        pytest.param(_seen(0, 1, known=False), _calm(0), 1, id="waking needs no whole picture"),
        pytest.param(_seen(1, 10), _calm(1), 1, id="at the target"),
        pytest.param(_seen(1, 11), _calm(1), 2, id="one above the target"),
        pytest.param(_seen(1, 1000), _calm(1), 5, id="up in bounded steps"),
        pytest.param(_seen(4, 1000), _calm(4), 8, id="up to twice"),
        pytest.param(_seen(6, 1000), _calm(6), 8, id="not above the maximum"),
        pytest.param(_seen(2, 21, starting=True), _calm(2), 3, id="up while one starts"),
        pytest.param(_seen(2, 21, known=False), _calm(2), 3, id="up with a proxy unheard"),
        pytest.param(_seen(3, 1), _calm(3), 2, id="down"),
        pytest.param(_seen(8, 1), _calm(8), 4, id="down by half"),
        pytest.param(_seen(3, 1, starting=True), _calm(3), 3, id="not while one starts"),
        pytest.param(_seen(3, 1, known=False), _calm(3), 3, id="not with a proxy unheard"),
        pytest.param(_seen(1), _calm(1, IDLE), 0, id="asleep when idle"),
        pytest.param(_seen(1), _calm(1, IDLE - 1), 1, id="not idle for long enough"),
        pytest.param(_seen(1, 1), _calm(1, IDLE), 1, id="not with a request"),
        pytest.param(_seen(1, arrived=True), _calm(1, IDLE), 1, id="not with one just gone"),
        pytest.param(_seen(1, known=False), _calm(1, IDLE), 1, id="unknown is not zero"),
        pytest.param(_seen(1, starting=True), _calm(1, IDLE), 1, id="not while it starts"),
        pytest.param(_seen(9), _calm(9), 8, id="clamped to the maximum"),
        pytest.param(_seen(9, known=False, starting=True), _calm(9), 8, id="clamped in any case"),
    ],
)
def test_the_count(seen: Seen, memory: Memory, expected: int) -> None:
    assert decide(RULES, seen, memory, NOW_S).replicas == expected


def test_a_count_below_the_minimum_is_clamped_and_says_so() -> None:
    rules = replace(RULES, min_replicas=2)
    decision = decide(rules, _seen(0), _calm(0), NOW_S)
    assert (decision.replicas, decision.reason) == (2, "0 replicas declared, below minReplicas: 2")


def test_with_a_minimum_of_one_nothing_sleeps() -> None:
    rules = replace(RULES, min_replicas=1)
    assert decide(rules, _seen(1), _calm(1, 9e9), NOW_S).replicas == 1


def _run(
    rules: Rules, seen: Seen, memory: Memory, *, looks: int, every_s: float = 1.0
) -> list[Decision]:
    """Look again and again at a load that stays; every replica is ready at once."""
    decisions, now_s = [], NOW_S
    for _ in range(looks):
        decision = decide(rules, seen, memory, now_s)
        decisions.append(decision)
        seen, memory = replace(seen, replicas=decision.replicas), decision.memory
        now_s += every_s
    return decisions


def test_down_only_when_less_was_asked_for_the_whole_delay() -> None:
    busy = decide(RULES, _seen(3, 30), _calm(3), NOW_S)
    counts = [each.replicas for each in _run(RULES, _seen(3, 5), busy.memory, looks=110)]
    assert counts[:100] == [3] * 100
    assert 2 in counts[100:103]


def test_a_burst_between_two_looks_counts() -> None:
    """`requests` is the highest since the last look, so what has ended already is in it."""
    assert decide(RULES, _seen(1, 45), _calm(1), NOW_S).replicas == 5


def test_who_scales_by_hand_keeps_it_for_the_delay() -> None:
    """Somebody makes three of one: not needed, but not taken away at once either."""
    counts = [each.replicas for each in _run(RULES, _seen(3, 5), _calm(1), looks=110)]
    assert counts[0] == 3
    assert counts[-1] < 3


def test_after_a_start_nothing_is_taken_away_before_the_delay() -> None:
    memory = first_memory(4, NOW_S)
    counts = [each.replicas for each in _run(RULES, _seen(4), memory, looks=100)]
    assert counts == [4] * 100


def test_a_model_that_woke_sleeps_again_as_soon_as_it_is_idle() -> None:
    """That it slept within the last minute limits nothing: only rest counts for the last pod."""
    woken = replace(_calm(1, IDLE), steps=((NOW_S - 40, -1), (NOW_S - 30, 1)))
    assert decide(RULES, _seen(1), woken, NOW_S).replicas == 0


def test_a_model_that_starts_is_in_use() -> None:
    """An hour of loading is no hour of rest."""
    loading = decide(RULES, _seen(1, starting=True), _calm(1, 9e9), NOW_S)
    assert decide(RULES, _seen(1), loading.memory, NOW_S + IDLE - 1).replicas == 1
    assert decide(RULES, _seen(1), loading.memory, NOW_S + IDLE).replicas == 0


def test_it_looks_again_just_when_time_alone_changes_something() -> None:
    assert decide(RULES, _seen(0), _calm(0), NOW_S).recheck_s is None
    assert decide(replace(RULES, min_replicas=1), _seen(1), _calm(1), NOW_S).recheck_s is None
    resting = decide(RULES, _seen(1), _calm(1, 100.0), NOW_S)
    assert resting.recheck_s == 100.0  # when the demand of until now has left the window
    later = decide(RULES, _seen(1), resting.memory, NOW_S + 100.0)
    assert later.recheck_s == 100.0  # when it has been idle
    assert decide(RULES, _seen(1), later.memory, NOW_S + 200.0).replicas == 0
    unheard = decide(RULES, _seen(1, known=False), _calm(1, 9e9), NOW_S + 1)
    assert unheard.recheck_s is not None
    assert unheard.recheck_s <= max(UNKNOWN_RECHECK_S, RULES.down_delay_s)


bounds = st.integers(0, 20).flatmap(
    lambda low: st.tuples(st.just(low), st.integers(max(1, low), 40))
)
all_rules = st.builds(
    lambda limits, target, delay, idle: Rules(limits[0], limits[1], target, delay, idle),
    bounds,
    st.integers(1, 50),
    st.sampled_from([0.0, 1.0, 60.0, 300.0]),
    st.sampled_from([1.0, 60.0, 900.0]),
)
looks = st.lists(
    st.tuples(
        st.integers(0, 500),  # requests
        st.booleans(),  # known
        st.booleans(),  # starting
        st.sampled_from([0.05, 1.0, 20.0, 400.0]),  # seconds until the next look
        st.integers(0, 45) | st.none(),  # somebody scales by hand
    ),
    max_size=30,
)


@given(all_rules, st.integers(0, 40), looks)
def test_every_step_keeps_the_rules(
    rules: Rules, start: int, history: list[tuple[int, bool, bool, float, int | None]]
) -> None:
    replicas, memory, now_s = start, first_memory(start, NOW_S), NOW_S
    for requests, known, starting, later_s, by_hand in history:
        replicas = replicas if by_hand is None else by_hand
        seen = Seen(replicas, requests, requests > 0, known, starting)
        decision = decide(rules, seen, memory, now_s)
        goal, inside = decision.replicas, rules.clamp(replicas) == replicas
        assert rules.min_replicas <= goal <= rules.max_replicas
        if inside and (not known or starting):
            assert goal >= replicas
        if requests:
            assert goal >= 1
        if inside:
            assert goal <= max(2 * replicas, replicas + UP_REPLICAS_MIN)
            assert goal >= replicas - max(1, replicas // 2)
        assert decision.recheck_s is None or decision.recheck_s >= 0
        assert len(decision.memory.before) <= rules.max_replicas + 45
        replicas, memory, now_s = goal, decision.memory, now_s + later_s


@given(all_rules, st.builds(_seen, st.integers(0, 40)), st.integers(0, 500), st.integers(0, 500))
def test_more_requests_never_give_fewer_replicas(
    rules: Rules, seen: Seen, one: int, other: int
) -> None:
    memory = _calm(seen.replicas, 500.0)
    low, high = sorted((one, other))
    fewer = decide(rules, replace(seen, requests=low), memory, NOW_S)
    more = decide(rules, replace(seen, requests=high), memory, NOW_S)
    assert more.replicas >= fewer.replicas


@given(all_rules, st.integers(0, 40), st.integers(0, 500), st.sampled_from([0.1, 3.0, 61.0]))
def test_on_a_constant_load_it_moves_one_way_and_settles(
    rules: Rules, start: int, requests: int, every_s: float
) -> None:
    seen = _seen(start, requests, arrived=requests > 0)
    decisions = _run(rules, seen, first_memory(start, NOW_S), looks=200, every_s=every_s)
    counts = [rules.clamp(start), *(each.replicas for each in decisions)]
    steps = {(after > before) - (after < before) for before, after in itertools.pairwise(counts)}
    assert not {1, -1} <= steps
    if every_s > DOWN_PERIOD_S:
        wanted = rules.clamp(-(-requests // rules.target)) if requests else rules.min_replicas
        assert counts[-1] == wanted


@given(st.lists(st.tuples(st.floats(0.1, 5.0), st.integers(0, 2000)), max_size=60))
def test_in_no_period_it_grows_by_more_than_allowed(steps: list[tuple[float, int]]) -> None:
    rules = replace(RULES, max_replicas=1000, target=1)
    replicas, memory, now_s = 1, _calm(1), NOW_S
    history = [(now_s, replicas)]
    for later_s, requests in steps:
        now_s += later_s
        decision = decide(rules, _seen(replicas, requests), memory, now_s)
        replicas, memory = decision.replicas, decision.memory
        history.append((now_s, replicas))
        before = [count for at_s, count in history if at_s <= now_s - UP_PERIOD_S]
        begun = (before or [1])[-1]
        assert replicas <= max(2 * begun, begun + UP_REPLICAS_MIN)
