from dataclasses import replace
from typing import Any

import pytest

from nimway.control.book import CURRENT_S, FIRST_REPORT_S, REVISIONS_MAX, RouteBook
from nimway.control.routing import Candidate, Decision, decide
from nimway.routes import build_table
from nimway.state import ProxyState

PROXY = "n/p"
ONE, TWO = {"1": "one at 10.0.0.1:8001"}, {"2": "two at 10.0.0.2:8001"}


def _candidate(key: str, *aliases: str, **changes: Any) -> Candidate:
    namespace, _, name = key.partition("/")
    return replace(Candidate(namespace, name, key, "", key, aliases, {}), **changes)


def _decide(*keys: str, aliases: tuple[str, ...] = ()) -> Decision:
    return decide([_candidate(key, *aliases) for key in keys], None, None)


def _state(decision: Decision) -> ProxyState:
    return ProxyState(revision=decision.table.revision, ready=True, draining=False)


def test_a_model_is_routed_when_every_ready_pod_serves_its_route() -> None:
    book, decision = RouteBook(), _decide("a/x")
    assert book.decide(PROXY, decision) == {"a/x"}
    assert book.pods(PROXY, ONE | TWO, 0.0) == {"a/x"}
    assert book.report(PROXY, "1", _state(decision), 0.0) == {"a/x"}
    view = book.view("a/x", [PROXY], 0.0)
    assert (view.pods_ready, view.pods_serving, view.pending) == (2, 1, True)
    book.report(PROXY, "2", _state(decision), 0.0)
    view = book.view("a/x", [PROXY], 0.0)
    assert (view.pods_ready, view.pods_serving, view.pending) == (2, 2, False)


def test_a_pod_behind_serves_the_models_whose_route_did_not_change() -> None:
    book, old = RouteBook(), _decide("a/x")
    book.decide(PROXY, old)
    book.pods(PROXY, ONE, 0.0)
    book.report(PROXY, "1", _state(old), 0.0)
    new = _decide("a/x", "a/y")
    assert book.decide(PROXY, new) == {"a/y"}
    assert book.view("a/x", [PROXY], 0.0).pods_serving == 1
    assert book.view("a/y", [PROXY], 0.0).pods_serving == 0
    assert book.report(PROXY, "1", _state(new), 0.0) == {"a/y"}
    assert book.view("a/y", [PROXY], 0.0).pods_serving == 1


def test_a_changed_route_counts_as_served_only_with_its_change() -> None:
    book, old = RouteBook(), _decide("a/x")
    book.decide(PROXY, old)
    book.pods(PROXY, ONE, 0.0)
    book.report(PROXY, "1", _state(old), 0.0)
    book.decide(PROXY, _decide("a/x", aliases=("alias",)))
    assert book.view("a/x", [PROXY], 0.0).pods_serving == 0


def test_silence_is_unknown_at_first_and_counts_later() -> None:
    book = RouteBook()
    book.decide(PROXY, _decide("a/x"))
    book.pods(PROXY, ONE, 0.0)
    assert book.view("a/x", [PROXY], FIRST_REPORT_S - 0.1).pending
    assert not book.view("a/x", [PROXY], FIRST_REPORT_S).pending


def test_a_broken_connection_is_unknown_and_marks_nothing() -> None:
    book, decision = RouteBook(), _decide("a/x")
    book.decide(PROXY, decision)
    book.pods(PROXY, ONE, 0.0)
    book.report(PROXY, "1", _state(decision), 0.0)
    assert book.report(PROXY, "1", None, 5.0) == set()
    assert book.view("a/x", [PROXY], 5.0).pending


def test_a_proxy_that_is_not_decided_yet_is_unknown() -> None:
    assert RouteBook().view("a/x", [PROXY], 0.0).pending
    assert RouteBook().view("a/x", [], 0.0).proxies == 0


def test_a_proxy_that_cannot_be_made_is_not_waited_for() -> None:
    book, decision = RouteBook(), _decide("a/x")
    book.decide(PROXY, decision)
    book.pods(PROXY, ONE, 0.0)
    book.report(PROXY, "1", _state(decision), 0.0)
    assert book.view("a/x", [PROXY, "team/bad"], 0.0).pending
    assert book.fail("team/bad", "no", tableless=True) == {"a/x"}, "who waits is told"
    assert not book.fail("team/bad", "no", tableless=True), "once"
    view = book.view("a/x", [PROXY, "team/bad"], 0.0)
    assert (view.pending, view.undecided, view.proxies) == (False, frozenset(), 1)
    book.decide("team/bad", decision)
    assert book.view("a/x", [PROXY, "team/bad"], 0.0).proxies == 2
    assert book.fail(PROXY, "no", tableless=True) == set(), "what it serves is known"


def test_a_proxy_without_ready_pods_keeps_no_other_from_serving() -> None:
    book, decision = RouteBook(), _decide("a/x")
    more = _decide("a/x", aliases=("alias",))
    book.decide(PROXY, decision)
    book.decide("team/own", more)
    view = book.view("a/x", [PROXY, "team/own"], 0.0)
    assert (view.proxies, view.pods_ready, view.names) == (2, 0, ("a/x", "alias"))
    book.pods(PROXY, ONE, 0.0)
    book.report(PROXY, "1", _state(decision), 0.0)
    view = book.view("a/x", [PROXY, "team/own"], 0.0)
    assert (view.proxies, view.pods_ready, view.pods_serving) == (2, 1, 1)
    assert view.names == ("a/x",), "nobody can use the other proxy's"


def test_a_pod_that_is_not_followed_any_more_is_forgotten() -> None:
    book, decision = RouteBook(), _decide("a/x")
    book.decide(PROXY, decision)
    book.pods(PROXY, ONE | TWO, 0.0)
    book.pods(PROXY, TWO, 0.0)
    assert book.report(PROXY, "1", _state(decision), 0.0) == set()
    assert book.table(PROXY, 0.0).pods_ready == 1


def test_pods_of_the_latest_table_are_counted() -> None:
    book, decision = RouteBook(), _decide("a/x")
    book.decide(PROXY, decision)
    book.pods(PROXY, ONE | TWO, 0.0)
    book.report(PROXY, "1", _state(decision), 0.0)
    assert book.table(PROXY, 0.0).pods_current == 1


def test_old_revisions_are_dropped() -> None:
    book, first = RouteBook(), _decide("a/x")
    book.decide(PROXY, first)
    for number in range(REVISIONS_MAX + 1):
        book.decide(PROXY, _decide("a/x", f"a/m{number}"))
    book.pods(PROXY, ONE, 0.0)
    book.report(PROXY, "1", _state(first), 0.0)
    assert book.view("a/x", [PROXY], 0.0).pods_serving == 0


def test_another_cold_start_is_no_other_route() -> None:
    book, decision = RouteBook(), _decide("a/x")
    book.decide(PROXY, decision)
    book.pods(PROXY, ONE, 0.0)
    book.report(PROXY, "1", _state(decision), 0.0)
    routes = {key: replace(route, cold_start_s=30) for key, route in decision.routes.items()}
    book.decide(PROXY, replace(decision, table=build_table(routes), routes=routes))
    assert book.view("a/x", [PROXY], 0.0).pods_serving == 1
    assert book.table(PROXY, 0.0).pods_current == 0


def test_a_deleted_proxy_affects_the_models_it_selected() -> None:
    book = RouteBook()
    book.decide(PROXY, _decide("a/x", "a/y"))
    assert book.forget(PROXY) == {"a/x", "a/y"}
    assert book.forget(PROXY) == set()


def test_what_a_model_lost_is_told_of_each_proxy_that_selects_it() -> None:
    book = RouteBook()
    found = [
        Candidate("a", "x", "1", "2026-11-01T00:00:00Z", "m", (), {}),
        Candidate("b", "y", "2", "2026-11-01T00:00:01Z", "own", ("m",), {}),
    ]
    for proxy in ("n/p", "n/q"):
        book.decide(proxy, decide(found, None, None, proxy=proxy))
    view = book.view("b/y", ["n/p", "n/q", "n/new"], 0.0)
    assert [(each.proxy, each.name, each.holder) for each in view.refused] == [
        ("n/p", "m", "a/x"),
        ("n/q", "m", "a/x"),
    ]
    assert view.undecided == {"n/new"}
    assert not view.nameless
    assert book.view("a/x", ["n/p"], 0.0).refused == ()


def _served(*candidates: Candidate) -> tuple[RouteBook, Decision]:
    """Return a book in which one pod serves the table of these models."""
    book, decision = RouteBook(), decide(candidates, None, None)
    book.intend(PROXY, decision, candidates)
    book.decide(PROXY, decision)
    book.pods(PROXY, ONE, 0.0)
    book.report(PROXY, "1", _state(decision), 0.0)
    return book, decision


def test_a_model_waits_for_the_proxy_to_take_over_its_new_names() -> None:
    before, after = _candidate("a/x"), _candidate("a/x", "alias")
    book, _ = _served(before)
    assert book.view("a/x", [PROXY], 0.0, before).behind == ()
    assert book.view("a/x", [PROXY], 0.0, after).behind == (
        "NIMProxy n/p has not taken over the current names and routing yet",
    )
    decision = decide([after], None, None)
    book.intend(PROXY, decision, [after])
    assert book.view("a/x", [PROXY], 0.0, after).behind == (
        "the table of NIMProxy n/p does not have the current route yet",
    )
    assert book.fail(PROXY, "too large", tableless=False) == {"a/x"}
    assert book.view("a/x", [PROXY], 0.0, after).behind == (
        "the table of NIMProxy n/p does not have the current route yet; "
        "it could not be written: too large",
    )
    assert book.decide(PROXY, decision) == {"a/x"}
    assert book.view("a/x", [PROXY], 0.0, after).behind == ()


def test_a_new_model_of_a_table_that_cannot_be_written_is_selected() -> None:
    book, _ = _served(_candidate("a/x"))
    both = [_candidate("a/x"), _candidate("a/y")]
    book.intend(PROXY, decide(both, None, None), both)
    assert book.fail(PROXY, "no", tableless=False) == {"a/y"}
    assert "could not be written: no" in book.view("a/y", [PROXY], 0.0, both[1]).behind[0]
    assert book.view("a/x", [PROXY], 0.0, both[0]).behind == ()


def test_a_first_table_that_cannot_be_written_is_told_where_no_other_proxy_serves() -> None:
    model = _candidate("a/x")
    book, decision = _served(model)
    book.intend("n/new", decide([model], None, None), [model])
    assert book.view("a/x", [PROXY, "n/new"], 0.0, model).behind == (), "it may come in a moment"
    book.fail("n/new", "no", tableless=True)
    assert book.view("a/x", [PROXY, "n/new"], 0.0, model).behind == ()
    assert "NIMProxy n/new" in book.view("a/x", ["n/new"], 0.0, model).behind[0]
    del decision


@pytest.mark.parametrize("change", ["claim", "cold_start_s", "refusals"])
def test_what_asks_for_no_other_route_is_waited_for_by_nobody(change: str) -> None:
    model = _candidate("a/x")
    book, _ = _served(model)
    values: dict[str, Any] = {"claim": "new", "cold_start_s": 30, "refusals": ()}
    changed = replace(model, **{change: values[change]})
    assert book.view("a/x", [PROXY], 0.0, changed).behind == ()


def test_a_model_that_another_selector_leaves_out_is_not_waited_for() -> None:
    model = _candidate("a/x")
    book, _ = _served(model)
    book.view("a/x", [PROXY], 0.0, replace(model, labels={"team": "b"}))
    decision = decide([], None, None)
    book.intend(PROXY, decision, [replace(model, labels={"team": "b"})])
    assert book.decide(PROXY, decision) == {"a/x"}
    view = book.view("a/x", [PROXY], 0.0, replace(model, labels={"team": "b"}))
    assert (view.proxies, view.behind) == (0, ())


def test_who_waited_is_told_when_a_proxy_decides_the_same_again() -> None:
    model = _candidate("a/x")
    book, _ = _served(model)
    labelled = replace(model, labels={"team": "b"})
    assert book.view("a/x", [PROXY], 0.0, labelled).behind
    decision = decide([labelled], None, None)
    book.intend(PROXY, decision, [labelled])
    assert book.decide(PROXY, decision) == {"a/x"}
    assert book.decide(PROXY, decision) == set()


def test_models_of_a_namespace_that_a_proxy_may_not_see_are_told_why() -> None:
    book, _ = _served(_candidate("a/x"), _candidate("b/y"))
    assert book.blind(PROXY, {"b": "forbidden"}) == {"b/y"}
    assert book.blind(PROXY, {"b": "forbidden"}) == set()
    assert book.view("a/x", [PROXY], 0.0).behind == ()
    assert book.view("b/y", [PROXY], 0.0).behind == (
        "NIMProxy n/p may not see the pods: forbidden",
    )
    assert book.blind(PROXY, {}) == {"b/y"}
    assert book.view("b/y", [PROXY], 0.0).behind == ()


def test_what_fails_besides_the_table_is_no_matter_of_the_models() -> None:
    book, decision = _served(_candidate("a/x"))
    assert book.fail(PROXY, "no Service", tableless=False) == set()
    assert book.decide(PROXY, decision) == set()
    assert book.view("a/x", [PROXY], 0.0, _candidate("a/x")).behind == ()


def test_a_proxy_that_is_being_deleted_counts_no_more_and_is_still_known() -> None:
    model = _candidate("a/x")
    book, decision = _served(model)
    assert book.leave(PROXY) == {"a/x"}
    assert book.leave(PROXY) == set(), "its models are told once"
    assert book.view("a/x", [PROXY], 0.0, model).proxies == 0
    assert not book.view("a/x", [PROXY], 0.0, model).pending
    assert book.decision(PROXY) is decision, "its pods still have requests"
    assert book.forget(PROXY) == {"a/x"}
    book.intend(PROXY, decision, [model])
    assert book.view("a/x", [PROXY], 0.0, model).pending, "another one of its name"


def test_pods_that_are_not_heard_are_named_and_told_once() -> None:
    book, decision = _served(_candidate("a/x"))
    book.pods(PROXY, ONE | TWO, 1.0)
    table = book.table(PROXY, 1.0)
    assert (table.pods_ready, table.pods_current, table.late) == (2, 1, False)
    assert table.recheck_s == FIRST_REPORT_S
    assert book.fell_silent(PROXY, 1.0) == set()
    late_s = 1.0 + FIRST_REPORT_S
    table = book.table(PROXY, late_s)
    assert (table.late, table.unheard, table.recheck_s) == (True, ("two at 10.0.0.2:8001",), None)
    assert book.fell_silent(PROXY, late_s) == {"a/x"}
    assert book.fell_silent(PROXY, late_s) == set()
    view = book.view("a/x", [PROXY], late_s)
    assert (view.pods_serving, view.unheard) == (1, ("two at 10.0.0.2:8001",))
    assert book.report(PROXY, "2", _state(decision), late_s) == {"a/x"}
    assert not book.table(PROXY, late_s).late


def test_a_pod_is_late_when_its_table_has_been_old_for_long_however_often_new_ones_come() -> None:
    book, _ = _served(_candidate("a/x"))
    for second in range(1, int(CURRENT_S) + 1):
        book.decide(PROXY, _decide("a/x", f"a/m{second}"), float(second))
        assert not book.table(PROXY, float(second)).late
    table = book.table(PROXY, 1.0 + CURRENT_S)
    assert (table.late, table.unheard, table.pods_current) == (True, (), 0)


def test_a_pod_with_a_table_of_before_this_process_is_late_after_the_first_one() -> None:
    book = RouteBook()
    book.decide(PROXY, _decide("a/x"), 5.0)
    book.pods(PROXY, ONE, 5.0)
    book.report(PROXY, "1", ProxyState("older", ready=True, draining=False), 5.0)
    assert book.table(PROXY, 5.0).recheck_s == CURRENT_S
    assert book.table(PROXY, 5.0 + CURRENT_S).late
