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
    assert contests.fight(OWNER, FREE_REPAIRS) is None


def test_it_is_told_until_nothing_had_to_be_put_back_for_long() -> None:
    contests = Contests()
    last_s = _fight(contests, 0.0, 10.0)[-1]
    found = contests.fight(OWNER, last_s + 1)
    assert found is not None
    assert found.text.startswith("Deployment models/llama: spec.replicas is changed again and")
    assert found.again_s == CALM_S - 1, "then it is over"
    assert contests.fight("another", last_s) is None
    assert contests.fight(OWNER, last_s + CALM_S) is None
    assert contests.at(OWNER, CHILD, FIELD, last_s + CALM_S).repairs == 0


def test_who_waits_is_looked_at_when_it_is_due() -> None:
    contests = Contests()
    now_s = _fight(contests, 0.0, 10.0)[-1]
    contest = contests.at(OWNER, CHILD, FIELD, now_s)
    contests.wait(contest, now_s + 8.0)
    found = contests.fight(OWNER, now_s + 2.0)
    assert found is not None
    assert found.again_s == 6.0
    later = contests.fight(OWNER, now_s + 8.0)
    assert later is not None
    assert later.again_s == CALM_S - 8.0, "somebody else put it back"


def test_of_several_the_same_one_is_told_whichever_was_last() -> None:
    contests, other = Contests(), Ref("Service", "models", "llama")
    for blow in range(3 * FREE_REPAIRS):
        ref = (CHILD, other)[blow % 2]
        contests.repaired(contests.at(OWNER, ref, FIELD, blow), DECLARED, blow)
    told = contests.fight(OWNER, blow)
    contests.repaired(contests.at(OWNER, CHILD, FIELD, blow), DECLARED, blow)
    again = contests.fight(OWNER, blow)
    assert told is not None
    assert again is not None
    assert told.text == again.text


def test_what_all_traffic_goes_by_never_waits_and_is_told() -> None:
    contests, table = Contests(), Ref("ConfigMap", "models", "routes")
    for _ in range(2 * FREE_REPAIRS):
        contest = contests.at(OWNER, table, "data", 1.0)
        assert contest.wait_s(DECLARED, 1.0) == 0
        contests.repaired(contest, DECLARED, 1.0)
    found = contests.fight(OWNER, 1.0)
    assert found is not None
    assert "Nimway undoes that each time: " in found.text


def test_a_slow_rival_is_told_of_as_well() -> None:
    contests, period_s = Contests(), 180.0
    for blow in range(2 * FREE_REPAIRS):
        contest = contests.at(OWNER, CHILD, FIELD, blow * period_s)
        contests.repaired(contest, DECLARED, blow * period_s)
    assert contests.fight(OWNER, blow * period_s) is not None


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
    assert contests.fight(OWNER, now_s) is not None
    contests.forget(CHILD, WHOLE)
    assert contests.fight(OWNER, now_s) is None
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
