from dataclasses import replace

from nimway.control.book import FIRST_REPORT_S, REVISIONS_MAX, RouteBook
from nimway.control.routing import Candidate, Decision, decide
from nimway.routes import build_table
from nimway.state import ProxyState

PROXY = "n/p"


def _decide(*keys: str, aliases: tuple[str, ...] = ()) -> Decision:
    found = []
    for key in keys:
        namespace, _, name = key.partition("/")
        found.append(Candidate(namespace, name, key, "", key, aliases, {}))
    return decide(found, None, None)


def _state(decision: Decision) -> ProxyState:
    return ProxyState(revision=decision.table.revision, ready=True, draining=False)


def test_a_model_is_routed_when_every_ready_pod_serves_its_route() -> None:
    book, decision = RouteBook(), _decide("a/x")
    assert book.decide(PROXY, decision) == {"a/x"}
    assert book.pods(PROXY, ["1", "2"], 0.0) == {"a/x"}
    assert book.report(PROXY, "1", _state(decision), 0.0) == {"a/x"}
    view = book.view("a/x", [PROXY], 0.0)
    assert (view.pods_ready, view.pods_serving, view.pending) == (2, 1, True)
    book.report(PROXY, "2", _state(decision), 0.0)
    view = book.view("a/x", [PROXY], 0.0)
    assert (view.pods_ready, view.pods_serving, view.pending) == (2, 2, False)


def test_a_pod_behind_serves_the_models_whose_route_did_not_change() -> None:
    book, old = RouteBook(), _decide("a/x")
    book.decide(PROXY, old)
    book.pods(PROXY, ["1"], 0.0)
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
    book.pods(PROXY, ["1"], 0.0)
    book.report(PROXY, "1", _state(old), 0.0)
    book.decide(PROXY, _decide("a/x", aliases=("alias",)))
    assert book.view("a/x", [PROXY], 0.0).pods_serving == 0


def test_silence_is_unknown_at_first_and_counts_later() -> None:
    book = RouteBook()
    book.decide(PROXY, _decide("a/x"))
    book.pods(PROXY, ["1"], 0.0)
    assert book.view("a/x", [PROXY], FIRST_REPORT_S - 0.1).pending
    assert not book.view("a/x", [PROXY], FIRST_REPORT_S).pending


def test_a_broken_connection_is_unknown_and_marks_nothing() -> None:
    book, decision = RouteBook(), _decide("a/x")
    book.decide(PROXY, decision)
    book.pods(PROXY, ["1"], 0.0)
    book.report(PROXY, "1", _state(decision), 0.0)
    assert book.report(PROXY, "1", None, 5.0) == set()
    assert book.view("a/x", [PROXY], 5.0).pending


def test_a_proxy_that_is_not_decided_yet_is_unknown() -> None:
    assert RouteBook().view("a/x", [PROXY], 0.0).pending
    assert RouteBook().view("a/x", [], 0.0).proxies == 0


def test_a_proxy_that_cannot_be_made_is_not_waited_for() -> None:
    book, decision = RouteBook(), _decide("a/x")
    book.decide(PROXY, decision)
    book.pods(PROXY, ["1"], 0.0)
    book.report(PROXY, "1", _state(decision), 0.0)
    assert book.view("a/x", [PROXY, "team/bad"], 0.0).pending
    assert book.pass_over("team/bad")
    assert not book.pass_over("team/bad"), "the models are told once"
    view = book.view("a/x", [PROXY, "team/bad"], 0.0)
    assert (view.pending, view.undecided, view.proxies) == (False, frozenset(), 1)
    book.decide("team/bad", decision)
    assert book.view("a/x", [PROXY, "team/bad"], 0.0).proxies == 2
    assert not book.pass_over(PROXY), "what it serves is known"


def test_a_proxy_without_ready_pods_keeps_no_other_from_serving() -> None:
    book, decision = RouteBook(), _decide("a/x")
    more = _decide("a/x", aliases=("alias",))
    book.decide(PROXY, decision)
    book.decide("team/own", more)
    view = book.view("a/x", [PROXY, "team/own"], 0.0)
    assert (view.proxies, view.pods_ready, view.names) == (2, 0, ("a/x", "alias"))
    book.pods(PROXY, ["1"], 0.0)
    book.report(PROXY, "1", _state(decision), 0.0)
    view = book.view("a/x", [PROXY, "team/own"], 0.0)
    assert (view.proxies, view.pods_ready, view.pods_serving) == (2, 1, 1)
    assert view.names == ("a/x",), "nobody can use the other proxy's"


def test_a_pod_that_is_not_followed_any_more_is_forgotten() -> None:
    book, decision = RouteBook(), _decide("a/x")
    book.decide(PROXY, decision)
    book.pods(PROXY, ["1", "2"], 0.0)
    book.pods(PROXY, ["2"], 0.0)
    assert book.report(PROXY, "1", _state(decision), 0.0) == set()
    assert book.pods_ready(PROXY) == 1


def test_pods_of_the_latest_table_are_counted() -> None:
    book, decision = RouteBook(), _decide("a/x")
    book.decide(PROXY, decision)
    book.pods(PROXY, ["1", "2"], 0.0)
    book.report(PROXY, "1", _state(decision), 0.0)
    assert book.pods_current(PROXY) == 1


def test_old_revisions_are_dropped() -> None:
    book, first = RouteBook(), _decide("a/x")
    book.decide(PROXY, first)
    for number in range(REVISIONS_MAX + 1):
        book.decide(PROXY, _decide("a/x", f"a/m{number}"))
    book.pods(PROXY, ["1"], 0.0)
    book.report(PROXY, "1", _state(first), 0.0)
    assert book.view("a/x", [PROXY], 0.0).pods_serving == 0


def test_another_cold_start_is_no_other_route() -> None:
    book, decision = RouteBook(), _decide("a/x")
    book.decide(PROXY, decision)
    book.pods(PROXY, ["1"], 0.0)
    book.report(PROXY, "1", _state(decision), 0.0)
    routes = {key: replace(route, cold_start_s=30) for key, route in decision.routes.items()}
    book.decide(PROXY, replace(decision, table=build_table(routes), routes=routes))
    assert book.view("a/x", [PROXY], 0.0).pods_serving == 1
    assert book.pods_current(PROXY) == 0


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
