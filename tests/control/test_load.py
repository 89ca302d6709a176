"""The load of a model over all pods of all proxies: counted, and unknown where one is not heard."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimway.control.facts import (
    NO_DEPLOYMENT,
    DeploymentFacts,
    PodFacts,
    is_starting,
    pod_facts,
)
from nimway.control.load import Load, LoadBook
from nimway.state import ModelLoad, ProxyState

MODEL = "models/llama"
PROXY = "nimway-system/default"
NOW_S = 1_800_000_000.0


def _pod(uid: str, *, ready: bool = True, running: bool = True, gone_by_s: int = 0) -> PodFacts:
    return PodFacts(
        name=uid,
        uid=uid,
        address="10.0.0.1",
        ready=ready,
        deleting=bool(gone_by_s),
        scheduled=True,
        running=running,
        reason="",
        message="",
        restarts=0,
        gone_by_s=gone_by_s,
    )


def _state(in_flight: int = 0, queued: int = 0, demand: int = 0) -> ProxyState:
    load = ModelLoad(in_flight, queued, demand)
    return ProxyState("r", ready=True, draining=False, models={MODEL: load})


def _book(*uids: str) -> LoadBook:
    book = LoadBook()
    book.follow(PROXY, [_pod(uid) for uid in uids], wanted=len(uids))
    return book


def _take(book: LoadBook) -> Load:
    return book.take(MODEL, known=book.is_heard(PROXY, NOW_S))


def test_the_pods_counts_are_added_up() -> None:
    book = _book("a", "b")
    assert book.report(PROXY, "a", _state(2, 1, 3)) == {MODEL}
    assert not _take(book).known
    book.report(PROXY, "b", _state(4, 0, 4))
    assert _take(book) == Load(requests=7, current=7, arrived=4, known=True)


def test_what_came_and_went_between_two_looks_counts() -> None:
    book = _book("a")
    book.report(PROXY, "a", _state())
    _take(book)
    book.report(PROXY, "a", _state(9, 0, 9))
    book.report(PROXY, "a", _state(0, 0, 9))
    assert _take(book) == Load(requests=9, current=0, arrived=9, known=True)
    assert _take(book) == Load(known=True)


def test_a_refused_request_counts_as_arrived() -> None:
    book = _book("a")
    book.report(PROXY, "a", _state(demand=5))
    _take(book)
    assert book.report(PROXY, "a", _state(demand=6)) == {MODEL}
    assert _take(book) == Load(arrived=1, known=True)


def test_what_a_pod_counted_before_us_is_no_news_but_what_it_holds_is() -> None:
    book = _book("a", "b")
    book.report(PROXY, "a", _state(demand=500))
    assert _take(book).arrived == 0
    book.report(PROXY, "b", _state(queued=2, demand=500))
    assert _take(book).arrived == 2


def test_a_pod_that_came_after_us_counts_from_nothing() -> None:
    book = _book("a")
    book.report(PROXY, "a", _state())
    book.follow(PROXY, [_pod("a"), _pod("b")], wanted=2)
    book.report(PROXY, "b", _state(demand=3))
    assert _take(book).arrived == 3


def test_a_count_that_fell_began_anew() -> None:
    book = _book("a")
    book.report(PROXY, "a", _state(demand=7))
    book.report(PROXY, "a", _state(demand=2))
    assert _take(book).arrived == 2


def test_a_broken_connection_is_unknown_and_keeps_its_requests() -> None:
    book = _book("a")
    book.report(PROXY, "a", _state(3, 0, 3))
    assert book.report(PROXY, "a", None) == {MODEL}
    _take(book)
    assert _take(book) == Load(requests=3, current=3, known=False)
    assert book.report(PROXY, "a", _state(3, 0, 3)) == {MODEL}
    assert _take(book).known


def test_requests_that_came_while_a_connection_was_broken_are_seen_after_it() -> None:
    book = _book("a")
    book.report(PROXY, "a", _state(demand=3))
    book.report(PROXY, "a", None)
    _take(book)
    book.report(PROXY, "a", _state(demand=4))
    assert _take(book).arrived == 1


def test_a_draining_pod_counts_until_it_is_gone() -> None:
    book = _book("a", "b")
    book.report(PROXY, "a", _state(1))
    book.report(PROXY, "b", _state(1))
    going = _pod("b", ready=False, gone_by_s=int(NOW_S) + 600)
    assert set(book.follow(PROXY, [_pod("a"), going], wanted=1)) == {"a", "b"}
    assert _take(book).current == 2
    book.follow(PROXY, [_pod("a")], wanted=1)
    assert _take(book).current == 1


def test_a_draining_pod_is_listened_to_by_who_has_just_started() -> None:
    book = LoadBook()
    going = _pod("b", ready=False, gone_by_s=int(NOW_S) + 600)
    assert set(book.follow(PROXY, [going], wanted=0)) == {"b"}
    assert not book.is_heard(PROXY, NOW_S)


def test_a_pod_of_a_lost_node_is_not_waited_for_beyond_its_grace() -> None:
    book = _book("a")
    book.report(PROXY, "a", _state())
    lost = _pod("b", gone_by_s=int(NOW_S) + 30)
    book.follow(PROXY, [_pod("a"), lost], wanted=1)
    assert not book.is_heard(PROXY, NOW_S)
    assert book.is_heard(PROXY, NOW_S + 31)


def test_a_pod_that_was_never_ready_is_not_waited_for() -> None:
    book = _book("a")
    book.report(PROXY, "a", _state())
    assert set(book.follow(PROXY, [_pod("a"), _pod("b", ready=False)], wanted=2)) == {"a"}
    assert book.is_heard(PROXY, NOW_S)


def test_a_pod_that_was_ready_still_counts_when_it_is_not() -> None:
    book = _book("a")
    assert set(book.follow(PROXY, [_pod("a", ready=False)], wanted=1)) == {"a"}
    assert not book.is_heard(PROXY, NOW_S)


def test_a_proxy_without_the_pods_it_wants_is_unknown_and_one_that_wants_none_is_not() -> None:
    book = LoadBook()
    assert not book.is_heard(PROXY, NOW_S)
    assert not book.is_empty(PROXY)
    book.follow(PROXY, [], wanted=2)
    assert not book.is_heard(PROXY, NOW_S)
    assert book.is_empty(PROXY)
    book.follow(PROXY, [], wanted=0)
    assert book.is_heard(PROXY, NOW_S)


def test_a_proxy_that_is_gone_takes_its_requests_with_it() -> None:
    book = _book("a")
    book.report(PROXY, "a", _state(5))
    book.forget(PROXY)
    _take(book)
    assert _take(book).current == 0
    assert book.report(PROXY, "a", _state(1)) == set()


def test_a_deletions_deadline_is_read_from_the_pod() -> None:
    metadata = {"name": "a", "uid": "u", "deletionTimestamp": "2026-11-01T00:00:30Z"}
    assert pod_facts({"metadata": metadata}).gone_by_s == 1793491230
    del metadata["deletionTimestamp"]
    assert pod_facts({"metadata": metadata}).gone_by_s == 0


counts = st.builds(ModelLoad, st.integers(0, 9), st.integers(0, 9), st.integers(0, 99))
reports = st.tuples(
    st.sampled_from("ab"),
    st.none() | st.dictionaries(st.sampled_from(["x/m", "x/n"]), counts, max_size=2),
)


@given(st.lists(reports, max_size=20))
def test_the_sum_is_that_of_the_last_reports(
    history: list[tuple[str, dict[str, ModelLoad] | None]],
) -> None:
    book = _book("a", "b")
    last: dict[str, dict[str, ModelLoad]] = {}
    for uid, models in history:
        state = (
            None if models is None else ProxyState("", ready=True, draining=False, models=models)
        )
        book.report(PROXY, uid, state)
        if models is not None:
            last[uid] = models
    for model in ("x/m", "x/n"):
        loads = [each.get(model, ModelLoad()) for each in last.values()]
        taken = book.take(model, known=True)
        assert taken.current == sum(each.in_flight + each.queued for each in loads)
        assert taken.requests >= taken.current
        assert book.take(model, known=True).requests == taken.current


SETTLED = replace(NO_DEPLOYMENT, observed=True, wanted=2, replicas=2, updated=2, ready=2)
LATE = replace(SETTLED, deadline_exceeded=True, deadline_s=600)


@pytest.mark.parametrize(
    ("deployment", "pods", "expected"),
    [
        (SETTLED, [_pod("a"), _pod("b")], False),
        (SETTLED, [_pod("a"), _pod("b", ready=False)], True),
        (SETTLED, [_pod("a"), replace(_pod("b", ready=False), reason="CrashLoopBackOff")], False),
        (SETTLED, [_pod("a"), replace(_pod("b", ready=False), reason="Unschedulable")], False),
        (SETTLED, [_pod("a"), _pod("b"), _pod("c", ready=False, gone_by_s=1)], False),
        (SETTLED, [_pod("a"), _pod("b"), replace(_pod("c", ready=False), ended=True)], False),
        (replace(SETTLED, observed=False), [_pod("a"), _pod("b")], True),
        (replace(SETTLED, wanted=1), [_pod("a"), _pod("b")], True),
        (replace(SETTLED, replicas=1), [_pod("a")], True),
        (replace(SETTLED, replicas=1, failure="exceeded quota"), [_pod("a")], False),
        (LATE, [_pod("a"), _pod("b", ready=False)], False),
        (LATE, [_pod("a"), replace(_pod("b", ready=False), begun_s=1000)], True),
    ],
    ids=[
        "all are ready",
        "one loads",
        "one crashes",
        "one finds no node",
        "one goes",
        "one ended for good",
        "the controller has not seen it",
        "the Deployment is behind",
        "one is not there yet",
        "one may not be created",
        "one had its time",
        "one got its node late",
    ],
)
def test_a_replica_starts_until_it_is_ready_or_fails(
    deployment: DeploymentFacts, pods: list[PodFacts], *, expected: bool
) -> None:
    assert is_starting(2, deployment, pods, 1500.0) is expected
