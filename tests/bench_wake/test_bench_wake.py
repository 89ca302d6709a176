"""The arithmetic, the trace, the plan and the verdicts of the benchmark; nothing is measured."""

import json
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.bench_control.bench import summary
from tests.bench_wake import executions, goals, picture, plan, trace
from tests.bench_wake.asking import LEFT, LOST, REFUSED, UNKNOWN_MODEL, Asked, Question, Tally, take
from tests.bench_wake.cycles import judge
from tests.bench_wake.fairness import overtaken
from tests.bench_wake.usage import Life, gpu_seconds, levels
from tests.support.proxy_wire import Answer

QUESTION = Question("one", "wake/a")
STREAM = Question("two", "wake/a", stream=True)


def an_answer(status: int, body: bytes = b"{}", *fields: str, clean: bool = True) -> Answer:
    head = "\r\n".join((f"HTTP/1.1 {status} x", *fields)).encode()
    return Answer(head, body, clean)


def fate(question: Question, answer: Answer) -> str:
    asked = Asked(question)
    take(asked, answer)
    return asked.fate


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        (QUESTION, an_answer(200), "answered"),
        (QUESTION, an_answer(200, b'{"id": "c'), LOST),
        (QUESTION, an_answer(200, b"{}", clean=False), LOST),
        (STREAM, an_answer(200, b"data: {}\n\ndata: [DONE]\n\n"), "answered"),
        (STREAM, an_answer(200, b"data: {}\n\n"), LOST),
        (STREAM, an_answer(200, b"event: error\ndata: {}\n\n", clean=False), LOST),
        (QUESTION, an_answer(503, b"{}", "Retry-After: 5"), REFUSED),
        (QUESTION, an_answer(503), LOST),
        (QUESTION, an_answer(503, b"{}", "Retry-After: 61"), LOST),
        (QUESTION, an_answer(503, b"{}", "Retry-After: 0"), LOST),
        (QUESTION, an_answer(503, b"{}", "Retry-After: soon"), LOST),
        (QUESTION, an_answer(502, b"{}", "Retry-After: 5"), LOST),
        (QUESTION, an_answer(404), UNKNOWN_MODEL),
    ],
)
def test_only_a_whole_200_and_an_honest_503_are_not_lost(
    question: Question, answer: Answer, expected: str
) -> None:
    assert fate(question, answer) == expected


def test_who_left_or_never_got_an_answer_is_told_apart() -> None:
    left, hung = Asked(QUESTION, left=True), Asked(QUESTION, problem="no answer within 90 s")
    tally = Tally.of([left, hung, Asked(QUESTION, status=404)])
    assert tally.fates == {LEFT: 1, LOST: 1, UNKNOWN_MODEL: 1}
    assert tally.lost == 2
    assert tally.examples == ["one: no answer no answer within 90 s", "one: 404"]


def test_overtaking_counts_those_who_came_later_and_were_served_earlier() -> None:
    arrived = ["a", "b", "c", "d"]
    assert overtaken(arrived, arrived) == {"a": 0, "b": 0, "c": 0, "d": 0}
    assert overtaken(arrived, ["d", "b", "c", "a"]) == {"d": 0, "b": 1, "c": 1, "a": 3}


def test_who_was_not_served_is_not_in_the_order() -> None:
    assert overtaken(["a", "b", "c"], ["c", "b"]) == {"c": 0, "b": 1}


def log(*lines: dict[str, Any]) -> list[str]:
    return [json.dumps(line) for line in lines]


def ran(request_id: str, number: int = 1, *, executed: bool = True) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "number": number,
        "executed": executed,
        "outcome": "answered",
    }


def test_only_executed_requests_of_a_log_count_and_cut_lines_do_not_matter() -> None:
    lines = [*log(ran("a"), ran("b", 2, executed=False), {"message": "ready"}), '{"executed": true']
    found = list(executions.parse("pod", lines))
    assert [(each.request_id, each.number) for each in found] == [("a", 1)]


def test_an_id_that_two_pods_ran_is_repeated() -> None:
    both = [*executions.parse("one", log(ran("a"))), *executions.parse("two", log(ran("a")))]
    assert executions.repeated(both) == ["a"]
    assert executions.repeated(both[:1]) == []


def test_cycles_are_judged_by_clients_and_model_servers_together() -> None:
    answered = Asked(Question("a", "m"), status=200)
    refused = Asked(Question("b", "m"), status=503, retry_after_s=5)
    never_run = Asked(Question("c", "m"), status=200)
    found = judge([answered, refused, never_run], list(executions.parse("p", log(ran("a")))))
    assert (found["lost"], found["executed_twice"]) == (0, 0)
    assert (found["answered_unexecuted"], found["refused_executed"]) == (1, 0)


def test_gpu_time_is_what_pods_hold_within_the_span() -> None:
    lives = [Life(-5, 4), Life(2, 30), Life(11, 12, gpus=4), Life(20, 30)]
    assert gpu_seconds(lives, 0, 10) == 4 + 8
    assert gpu_seconds(lives, 0, 12) == 4 + 10 + 4
    assert levels(lives, 0, 10, 5) == [1, 2, 1, 1, 1]


def test_a_day_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    assert trace.day(trace.FLEET, 1) == trace.day(trace.FLEET, 1)
    assert trace.day(trace.FLEET, 1) != trace.day(trace.FLEET, 2)


def test_a_day_is_in_order_within_bounds_and_asks_every_model() -> None:
    found = trace.day(trace.FLEET)
    assert found == sorted(found, key=lambda each: (each.at, each.model))
    assert all(0 <= each.at < 1 for each in found)
    assert {each.model for each in found} == {habit.name for habit in trace.FLEET}
    assert 500 < len(found) < 4000


def test_an_office_sleeps_at_night() -> None:
    hours = {int(each.at * 24) for each in trace.day(trace.FLEET) if each.model == "chat"}
    assert not hours & {1, 2, 3, 4, 5}
    assert {9, 10, 14} <= hours


def test_a_model_more_does_not_change_the_days_of_the_others() -> None:
    alone = trace.day(trace.FLEET[:1])
    assert alone == [each for each in trace.day(trace.FLEET) if each.model == "chat"]


def test_cycles_wake_at_once_and_restart_each_kind_in_turn() -> None:
    planned = plan.cycles(20, "wake/m", seed=1, kinds=("operator", "proxy"))
    assert planned == plan.cycles(20, "wake/m", seed=1, kinds=("operator", "proxy"))
    assert all(cycle.questions[0][0] == 0 for cycle in planned)
    kinds = [{kind for _, kind in cycle.restarts} for cycle in planned]
    assert all(("operator", "proxy")[number % 2] in each for number, each in enumerate(kinds))
    assert any(len(each) == 2 for each in kinds)
    assert {cycle.gone for cycle in planned} == {True, False}


def test_every_request_of_all_cycles_has_its_own_id() -> None:
    planned = plan.cycles(20, "wake/m", seed=1, kinds=("operator",))
    ids = [question.request_id for cycle in planned for _, question in cycle.questions]
    assert len(set(ids)) == len(ids)
    assert any(question.leave_after_s for cycle in planned for _, question in cycle.questions)


def found(**changes: Any) -> dict[str, Any]:
    quick = summary([5.0, 6.0, 9.0])
    cycles = {
        "cycles": 3,
        "restarts": {"proxy": 3},
        "requests": 9,
        "fates": {"answered": 9},
        "lost": 0,
        "executed_twice": 0,
        "not_found": 0,
    }
    waiters = {
        "waiters": 100,
        "queued": 100,
        "lost": 0,
        "executed_twice": 0,
        "not_executed": 0,
        "scale_writes": 1,
        "overtaken_by": summary([0.0] * 95 + [5.0] * 5),
        "memory": {"grown_mb": 1.0, "allowed_mb": 1.7, "bytes_per_waiter": 10_000},
    }
    day = {
        "seed": 6,
        "models": 2,
        "requests": 10,
        "day_s": 240.0,
        "compressed": 360,
        "gpu_s": {"auto": 100.0, "fixed": 480.0},
        "gpu_hours": {"auto": 10.0, "fixed": 48.0},
        "saved": 0.79,
        "added": quick,
        "delayed": 0.1,
        "took": {"auto": quick, "fixed": quick},
        "starts": 4,
        "lost": {"auto": 0, "fixed": 0},
        "levels": {"auto": [0.0, 1.0, 2.0, 0.0], "fixed": [2.0] * 4},
    }
    held = dict.fromkeys(("ready", "patched", "slice", "written", "cold_start"), quick)
    parts: dict[str, Any] = {
        "held": held | {"lost": 0, "wakes": 3},
        "waiters": waiters,
        "cycles": cycles,
        "kills": cycles,
        "day": day,
    }
    for name, change in changes.items():
        parts[name] = parts[name] | change
    return parts


def failed(**changes: Any) -> list[str]:
    return [row.what for row in goals.rows(found(**changes)) if row.met is False]


def test_goals_are_met_by_what_meets_them() -> None:
    assert failed() == []


@pytest.mark.parametrize(
    ("part", "change", "row"),
    [
        ("held", {"ready": summary([12.5, 12.5, 21.5])}, "held request: pod Ready"),
        ("held", {"written": summary([5.0, 5.0])}, "request sent → scale written"),
        ("held", {"written": summary([5.0, 5.0, 51.0])}, "request sent → scale written"),
        ("waiters", {"lost": 1}, "100 waiters"),
        ("waiters", {"executed_twice": 1}, "100 waiters"),
        ("waiters", {"overtaken_by": summary([0.0] * 99 + [6.0])}, "a waiter is overtaken"),
        ("waiters", {"overtaken_by": summary([0.0] * 99)}, "a waiter is overtaken"),
        ("waiters", {"queued": 99}, "the proxy's memory"),
        ("cycles", {"not_found": 1}, "3 sleep/wake cycles"),
        ("cycles", {"executed_twice": 1}, "3 sleep/wake cycles"),
        ("kills", {"executed_twice": 1}, "3 cycles with SIGKILL"),
        ("day", {"lost": {"auto": 1, "fixed": 0}}, "requests of the day"),
    ],
)
def test_a_missed_goal_is_said(part: str, change: dict[str, Any], row: str) -> None:
    (missed,) = failed(**{part: change})
    assert missed.startswith(row)


def test_a_part_that_failed_is_said() -> None:
    (row,) = goals.rows({"failed": {"day": "not within 90 s"}})
    assert (row.what, row.measured, row.met) == ("day", "not measured: not within 90 s", False)


ABOUT = {
    "date": "2026-01-02",
    "machine": "a CPU & more",
    "python": "3.11",
    "kubernetes": "1.36",
    "nimway": "0.1",
    "duration_s": 9,
    "load_before": 0.1,
    "load_after": 0.2,
}


def test_the_report_has_a_row_for_each_goal_and_the_day() -> None:
    text = goals.report(ABOUT, found())
    assert text.count("| yes |") == len([row for row in goals.rows(found()) if row.met])
    assert "| autoscaling from zero | 10.0 | 100 | 6 / 9 | 0 | 4 |" in text


def test_the_picture_is_svg_whatever_was_measured() -> None:
    for parts in (found(), {"day": found()["day"]}, {"held": found()["held"]}, {}):
        root = ET.fromstring(picture.draw(ABOUT, parts))  # noqa: S314 # our own text
        assert root.tag.endswith("svg")
