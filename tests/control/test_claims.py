"""SEC-1: a name of one namespace is never passed on to another behind its user's back."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nimway.control import claims
from nimway.control.claims import CLAIM_ANNOTATION, HOLD_S, Memory, Refusal, Reservation
from nimway.control.routing import Candidate, Decision, candidate, decide
from nimway.routes import build_table, decode, encode
from tests.control import samples

PROXY = "infra/edge"
NAME = "org/famous"
NOW_S = 1_764_000_000
ORDERS = [None, ("a", "b"), ("a", "b", "c")]


def _candidate(key: str, *names: str, claim: str = "1", created: int = 0) -> Candidate:
    namespace, _, name = key.partition("/")
    stamp = f"2026-11-01T00:00:{created:02d}Z"
    model, *aliases = names or (NAME,)
    return Candidate(namespace, name, f"{key}-{claim}", stamp, model, tuple(aliases), {}, (),
                     claim=claim)  # fmt: skip


class _World:
    """One proxy, the models that exist, and what is stored of its decisions."""

    def __init__(self, namespaces: tuple[str, ...] | None = None) -> None:
        self.namespaces = namespaces
        self.now_s = NOW_S
        self.gone: frozenset[str] = frozenset()
        self.models: dict[str, Candidate] = {}
        self.memory: Memory | None = None
        self.stored: tuple[dict[str, str], str] | None = None

    def put(self, *candidates: Candidate) -> None:
        self.models |= {each.key: each for each in candidates}

    def delete(self, key: str) -> None:
        del self.models[key]

    def restart(self) -> None:
        self.memory = None

    def decide(self, *, reports: bool = True) -> Decision:
        """Decide as the operator does; with `reports` the models' statuses are written too."""
        decision = decide(
            self.models.values(), self.namespaces, None,
            proxy=PROXY, memory=self.memory or self._read(), now_s=self.now_s, gone=self.gone,
        )  # fmt: skip
        self.memory = decision.memory
        self.stored = encode(decision.table), claims.encode(decision.reservations)
        if reports:
            for key, each in self.models.items():
                written = claims.refused_names(decision.lost(key))
                read = claims.refusals_of({"refusedNames": written})
                self.models[key] = replace(each, refusals=read)
        return decision

    def _read(self) -> Memory:
        if self.stored is None:
            return Memory()
        data, reserved = self.stored
        holders = {n.casefold(): r.key for r in decode(data).routes for n in r.names}
        return Memory(holders, claims.decode(reserved))

    def holder(self, name: str = NAME) -> str | None:
        return self.decide().holders.get(name.casefold())


@pytest.mark.parametrize("namespaces", ORDERS)
@pytest.mark.parametrize("claim", [NAME, NAME.upper()], ids=["same", "case"])
@pytest.mark.parametrize("restarts", [False, True], ids=["", "restarted"])
def test_a_loser_of_another_namespace_is_not_promoted(
    namespaces: tuple[str, ...] | None, claim: str, *, restarts: bool
) -> None:
    world = _World(namespaces)
    world.put(_candidate("a/holder"), _candidate("b/thief", "org/own", claim, created=1))
    assert world.holder() == "a/holder"
    world.delete("a/holder")
    for _ in range(3):
        if restarts:
            world.restart()
        decision = world.decide()
        assert decision.routes["b/thief"].names == ("org/own",)
        assert decision.refused["b/thief"][claim].gone
        world.now_s += HOLD_S
    world.put(_candidate("a/holder", claim="2", created=2))
    assert world.holder() == "a/holder"


def test_within_the_namespace_the_loser_is_promoted_at_once() -> None:
    world = _World()
    world.put(_candidate("a/holder"), _candidate("a/next", created=1))
    world.put(_candidate("b/thief", created=2))
    assert world.holder() == "a/holder"
    world.delete("a/holder")
    assert world.holder() == "a/next"


def test_a_refusal_that_no_status_tells_yet_holds_after_a_crash() -> None:
    world = _World()
    world.put(_candidate("a/holder"), _candidate("b/thief", created=1))
    world.decide(reports=False)
    world.delete("a/holder")
    for _ in range(3):
        world.restart()
        assert world.decide(reports=False).lost("b/thief")[0].until_s is None
    world.now_s += 10 * HOLD_S
    world.restart()
    assert world.holder() is None


def test_a_claim_of_the_moment_waits_until_the_name_is_free() -> None:
    world = _World()
    world.put(_candidate("a/holder"))
    world.decide()
    world.delete("a/holder")
    world.put(_candidate("b/thief", created=1))
    decision = world.decide()
    assert decision.due_s == NOW_S + HOLD_S
    assert decision.lost("b/thief")[0].text.endswith("until 2025-11-24T16:10:00Z")
    world.restart()
    world.now_s = NOW_S + HOLD_S - 1
    assert world.holder() is None
    world.now_s += 1
    assert world.holder() == "b/thief"


def test_of_a_deleted_namespace_names_are_free_for_new_claims_alone() -> None:
    world = _World()
    world.put(_candidate("a/holder"), _candidate("b/old", created=1))
    world.decide()
    world.gone = frozenset({"a"})
    world.delete("a/holder")
    world.restart()
    assert world.holder() is None
    world.put(_candidate("b/new", created=2))
    assert world.holder() == "b/new"


def test_after_a_crash_the_holder_keeps_its_name_under_another_order_too() -> None:
    world = _World(("a", "b"))
    world.put(_candidate("b/older"), _candidate("a/holder", created=1))
    assert world.decide(reports=False).holders == {NAME: "a/holder"}
    world.namespaces = None
    for _ in range(2):
        assert world.decide(reports=False).holders == {NAME: "a/holder"}
        world.restart()


def test_who_was_refused_stays_so_when_its_own_namespace_gets_the_name() -> None:
    world = _World(("a", "b"))
    world.put(_candidate("b/older"), _candidate("a/holder", "org/own", NAME, created=1))
    world.decide()
    world.put(_candidate("a/holder", "org/own", claim="2", created=1))
    world.put(_candidate("b/new", created=2))
    for _ in range(2):
        assert world.holder() == "b/new"
        world.restart()


def test_a_name_stays_in_its_namespace_when_a_crash_forgets_who_of_it_was_refused() -> None:
    world = _World(("a", "b"))
    world.put(_candidate("b/refused"), _candidate("a/holder", created=2))
    assert world.decide(reports=False).holders == {NAME: "a/holder"}
    world.namespaces = None
    world.put(_candidate("b/new", created=1))
    assert world.decide(reports=False).holders == {NAME: "b/new"}
    world.restart()
    assert world.decide(reports=False).holders[NAME].startswith("b/")


def test_a_name_that_is_given_up_is_free_for_a_new_claim() -> None:
    world = _World()
    world.put(_candidate("a/holder", "org/own", NAME), _candidate("b/old", created=1))
    world.decide()
    world.put(_candidate("a/holder", "org/own", claim="2"))
    assert world.holder() is None
    world.put(_candidate("b/new", created=2))
    assert world.holder() == "b/new"


def test_a_changed_claim_is_a_new_one() -> None:
    world = _World()
    world.put(_candidate("a/holder"), _candidate("b/next", created=1))
    world.decide()
    world.delete("a/holder")
    world.put(_candidate("b/next", claim="2", created=1))
    decision = world.decide()
    assert decision.lost("b/next")[0].until_s == NOW_S + HOLD_S
    world.now_s += HOLD_S
    assert world.holder() == "b/next"


def test_the_order_of_namespaces_stands_above_what_is_remembered() -> None:
    world = _World(("a", "b"))
    world.put(_candidate("a/holder"), _candidate("b/next", created=1))
    world.decide()
    world.delete("a/holder")
    world.decide()
    world.namespaces = ("b", "a")
    assert world.holder() == "b/next"


def test_a_namespace_that_is_not_served_any_more_keeps_nothing() -> None:
    world = _World(("a", "b"))
    world.put(_candidate("a/holder"), _candidate("b/next", created=1))
    world.decide()
    world.namespaces = ("b",)
    decision = world.decide()
    assert decision.holders == {NAME: "b/next"}
    assert decision.reservations == {}


def test_each_proxy_remembers_for_itself() -> None:
    refused = (Refusal("infra/other", NAME, "a/holder", "1"),)
    thief = replace(_candidate("b/thief"), refusals=refused)
    assert decide([thief], None, None, proxy=PROXY).holders == {NAME: "b/thief"}
    assert decide([thief], None, None, proxy="infra/other").holders == {}


def test_what_has_ended_goes_with_the_next_change_only() -> None:
    world = _World()
    world.put(_candidate("a/holder"), _candidate("c/other", "org/other"))
    world.decide()
    world.delete("a/holder")
    first = world.decide()
    world.now_s += HOLD_S + 1
    world.restart()
    assert world.decide() == first, "at rest nothing is written"
    world.put(_candidate("c/more", "org/more"))
    assert world.decide().reservations == {}


class Teams(RuleBasedStateMachine):
    """Two teams' models under one proxy. Team a owns the names, team b claims them.

    Whatever happens, and whenever the operator dies, a name that was refused to a claim of b is not
    given to that claim, and no claim of b gets a name within `HOLD_S` of a's having it. But for a
    name that another claim of b has when the operator dies: it stays with b, and who of b was
    refused it before is known no more if no status tells it yet.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = _World()
        self.clock = 0
        self.refused: set[tuple[str, str]] = set()
        self.silent = False
        self.had: dict[str, tuple[int, str]] = {}

    @rule(order=st.sampled_from([None, ("a", "b")]))
    def choose_order(self, order: tuple[str, ...] | None) -> None:
        self.world.namespaces = order

    @rule(
        key=st.sampled_from(["a/x", "a/y", "b/x", "b/y"]),
        names=st.lists(
            st.sampled_from(["m", "M", "n", "N"]), min_size=1, max_size=2, unique_by=str.casefold
        ),
    )
    def apply(self, key: str, names: list[str]) -> None:
        self.clock += 1
        known = self.world.models.get(key)
        if known is not None and known.names == tuple(names):
            return
        if key.startswith("a/") and self.silent:
            return  # what is given up while nothing but the table tells of a refusal is given up
        created = (
            known.created
            if known
            else f"2026-11-01T00:{self.clock // 60:02d}:{self.clock % 60:02d}Z"
        )
        made = replace(_candidate(key, *names, claim=f"{key}-{self.clock}"), created=created)
        self.world.put(replace(made, uid=known.uid if known else made.uid,
                               refusals=known.refusals if known else ()))  # fmt: skip

    @precondition(lambda self: self.world.models)
    @rule(data=st.data())
    def delete(self, data: Any) -> None:
        self.world.delete(data.draw(st.sampled_from(sorted(self.world.models))))

    @rule(reports=st.booleans(), dies=st.booleans())
    def decide(self, *, reports: bool, dies: bool) -> None:
        decision = self.world.decide(reports=reports)
        for key, each in self.world.models.items():
            for lost in decision.lost(key):
                if lost.until_s is None and lost.holder[0] != key[0] == "b":
                    self.refused.add((each.claim, lost.name.casefold()))
        self._check(decision)
        again = decide(
            self.world.models.values(),
            self.world.namespaces,
            None,
            proxy=PROXY,
            memory=decision.memory,
            now_s=self.world.now_s,
        )
        assert again == decision, "deciding again decides the same"
        self.silent = dies and not reports
        if self.silent:
            models = self.world.models.values()
            told = {(each.claim, lost.name.casefold()) for each in models for lost in each.refusals}
            of_b = {name for name, key in decision.holders.items() if key.startswith("b/")}
            self.refused = {
                known for known in self.refused if known in told or known[1] not in of_b
            }
        if dies:
            self.world.restart()

    @rule(passed_s=st.sampled_from([1, HOLD_S // 2, HOLD_S]))
    def wait(self, passed_s: int) -> None:
        self.world.now_s += passed_s

    def _check(self, decision: Decision) -> None:
        now_s, models = self.world.now_s, self.world.models
        for name, (since_s, key) in list(self.had.items()):
            holder = decision.holders.get(name, "")
            if holder.startswith("b/"):
                assert key in models or now_s - since_s >= HOLD_S, f"{name} was {key}'s just now"
            if key in models and holder != key:
                del self.had[name]  # given up, or won by an older model
        for name, key in decision.holders.items():
            if key.startswith("a/"):
                self.had[name] = now_s, key
            else:
                assert (models[key].claim, name) not in self.refused, "a refused claim was promoted"

    @invariant()
    def a_name_has_one_holder(self) -> None:
        routes = decode(self.world.stored[0]).routes if self.world.stored else ()
        taken = [name.casefold() for route in routes for name in route.names]
        assert len(taken) == len(set(taken))


TestTeams = Teams.TestCase
TestTeams.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)


def test_a_claim_changes_with_the_spec_and_the_annotation_but_not_with_replicas() -> None:
    manifest = samples.model()
    first = claims.claim_of(manifest)
    assert claims.claim_of(samples.model(replicas=7)) == first
    assert claims.claim_of(samples.model(aliases=["x"])) != first
    assert claims.claim_of(samples.model(startupTimeoutSeconds=60)) != first
    manifest["metadata"]["annotations"] = {"unrelated": "x"}
    assert claims.claim_of(manifest) == first
    manifest["metadata"]["annotations"] = {CLAIM_ANNOTATION: "please"}
    assert claims.claim_of(manifest) != first
    manifest = samples.model()
    manifest["metadata"]["uid"] = "another"
    assert claims.claim_of(manifest) != first


def test_a_models_status_is_read_back() -> None:
    refusals = (
        Refusal(PROXY, "m", "a/x", "1"),
        Refusal(PROXY, "n", "a/x", "1", until_s=NOW_S),
    )
    manifest = {**samples.model(), "status": {"refusedNames": claims.refused_names(refusals)}}
    made = candidate(manifest)
    assert made is not None
    assert made.refusals == refusals


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=9),
        st.builds(
            Reservation,
            st.just("a/x"),
            st.integers(0, 1 << 40),
            st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=2),
        ),
        max_size=5,
    )
)
def test_reservations_are_read_back(reservations: dict[str, Reservation]) -> None:
    assert claims.decode(claims.encode(reservations)) == reservations


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": ["x", "y", {}]}'])
def test_a_damaged_annotation_counts_as_nothing(text: str) -> None:
    assert claims.decode(text) == {}


def test_of_too_many_reservations_the_newest_are_stored() -> None:
    many = {f"{'m' * 200}{number}": Reservation("a/x", number) for number in range(1000)}
    text = claims.encode(many)
    stored = claims.decode(text)
    assert len(text) <= claims.ANNOTATION_BYTES_MAX
    assert 200 < len(stored) < 1000
    assert min(each.until_s for each in stored.values()) == 1000 - len(stored)


def test_no_reservation_is_no_annotation() -> None:
    assert claims.encode({}) == ""
    assert build_table([]).routes == ()
