"""How often what somebody else did is undone, and when its user is told."""

import itertools

from nimway.control.contests import (
    CALM_S,
    CONTESTS_MAX,
    FREE_REPAIRS,
    WAIT_MAX_S,
    WHOLE,
    Contest,
    Contests,
)
from nimway.control.kinds import Ref

OWNER = "uid-1"
CHILD = Ref("Deployment", "models", "llama")
FIELD = "spec.replicas"
DECLARED = "hash"


def _fight(contests: Contests, now_s: float, until_s: float, field: str = FIELD) -> list[float]:
    """Put a field back as soon as that is allowed; return when it was."""
    times = []
    while now_s < until_s:
        contest = contests.at(OWNER, CHILD, field, now_s)
        now_s += contest.wait_s(DECLARED, now_s)
        contests.repaired(contest, DECLARED, now_s)
        times.append(now_s)
    return times


def test_repairs_are_free_at_first_and_then_ever_rarer() -> None:
    times = _fight(Contests(), 100.0, 3000.0)
    assert times[:FREE_REPAIRS] == [100.0] * FREE_REPAIRS
    waits = [after - before for before, after in itertools.pairwise(times[9:])]
    assert waits[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, WAIT_MAX_S]
    assert set(waits[9:]) == {WAIT_MAX_S}


def test_a_few_edits_are_no_contest() -> None:
    contests = Contests()
    for now_s in range(FREE_REPAIRS):
        contest = contests.at(OWNER, CHILD, FIELD, now_s)
        assert contest.wait_s(DECLARED, now_s) == 0
        contests.repaired(contest, DECLARED, now_s)
    assert contests.open_for(OWNER, FREE_REPAIRS) is None


def test_it_is_told_until_nobody_changed_the_field_for_long() -> None:
    contests = Contests()
    last_s = _fight(contests, 0.0, 10.0)[-1]
    found = contests.open_for(OWNER, last_s + CALM_S - 1)
    assert found is not None
    assert found.text.startswith("Deployment models/llama: spec.replicas is changed again and")
    assert contests.open_for("another", last_s) is None
    assert contests.open_for(OWNER, last_s + CALM_S) is None
    assert contests.at(OWNER, CHILD, FIELD, last_s + CALM_S).repairs == 0


def test_a_slow_rival_is_told_of_as_well() -> None:
    contests, period_s = Contests(), 180.0
    for blow in range(2 * FREE_REPAIRS):
        contest = contests.at(OWNER, CHILD, FIELD, blow * period_s)
        contests.repaired(contest, DECLARED, blow * period_s)
    assert contests.open_for(OWNER, blow * period_s) is not None


def test_other_fields_other_manifests_and_other_owners_do_not_wait() -> None:
    contests = Contests()
    now_s = _fight(contests, 0.0, 10.0)[-1]
    assert contests.at(OWNER, CHILD, FIELD, now_s).wait_s(DECLARED, now_s) > 0
    assert contests.at(OWNER, CHILD, FIELD, now_s).wait_s("another", now_s) == 0
    assert contests.at(OWNER, CHILD, "spec.selector", now_s).wait_s(DECLARED, now_s) == 0
    assert contests.at("uid-2", CHILD, FIELD, now_s).wait_s(DECLARED, now_s) == 0


def test_what_we_delete_ourselves_is_nobodys_blow() -> None:
    contests = Contests()
    now_s = _fight(contests, 0.0, 10.0, WHOLE)[-1]
    assert contests.open_for(OWNER, now_s) is not None
    contests.forget(CHILD, WHOLE)
    assert contests.open_for(OWNER, now_s) is None
    assert contests.at(OWNER, CHILD, WHOLE, now_s).wait_s(DECLARED, now_s) == 0


def test_what_is_remembered_is_bounded() -> None:
    contests = Contests()
    for number in range(CONTESTS_MAX + 1):
        contests.repaired(Contest(OWNER, CHILD, f"f{number}"), DECLARED, 1.0)
    assert contests.at(OWNER, CHILD, "f0", 1.0).repairs == 0
    assert contests.at(OWNER, CHILD, "f1", 1.0).repairs == 1


def test_the_text_says_who_it_is_and_what_to_do() -> None:
    said = Contest(OWNER, CHILD, FIELD, writer="kube-controller-manager").text
    assert "lately by kube-controller-manager" in said
    assert "at last every 5 minutes" in said
    assert "an autoscaler belongs on the NIMModel" in said
    assert "it is deleted again and again" in Contest(OWNER, CHILD, WHOLE).text
    assert "stop the other writer" in Contest(OWNER, CHILD, "spec.strategy").text
