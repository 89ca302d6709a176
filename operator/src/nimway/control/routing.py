"""Who is served under which name by one NIMProxy: the decision behind the routing table.

Pure. A served name belongs to one model per proxy, compared without regard to case: names that
differ only in case would let one team answer for another. In one namespace the oldest object wins;
across namespaces the order of `NIMProxy.spec.namespaces` decides, else the oldest. The loser of a
name keeps its other names; it gets the name with the holder's end if that was in its own namespace,
and else not: what is remembered of that, claims.py says.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nimway.api.kubernetes import LabelSelector
from nimway.control.claims import (
    HOLD_S,
    NO_MEMORY,
    Memory,
    Refusal,
    Reservation,
    claim_of,
    namespace_of,
    refusals_of,
)
from nimway.control.clock import unix_s
from nimway.control.desired import names
from nimway.control.kinds import Manifest
from nimway.control.sleep import rounded_s, usual_s
from nimway.routes import DEFAULT_POLICY, Policy, Route, RoutingTable, build_table


@dataclass(frozen=True, slots=True)
class Candidate:
    """What routing needs of one NIMModel."""

    namespace: str
    name: str
    uid: str
    created: str
    model: str
    aliases: tuple[str, ...]
    labels: Mapping[str, str]
    adapters: tuple[str, ...] = ()
    policy: Policy = DEFAULT_POLICY
    cold_start_s: int = 0
    claim: str = ""
    refusals: tuple[Refusal, ...] = ()

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def names(self) -> tuple[str, ...]:
        """All names that it claims."""
        return (self.model, *self.aliases, *self.adapters)


@dataclass(frozen=True, slots=True)
class Decision:
    """A proxy's table, its routes by model key, and the names each model lost.

    `holders` and `reservations`, by case-folded name, are what the next decision has to know.
    """

    table: RoutingTable
    routes: Mapping[str, Route]
    refused: Mapping[str, Mapping[str, Refusal]] = field(default_factory=dict)
    holders: Mapping[str, str] = field(default_factory=dict)
    reservations: Mapping[str, Reservation] = field(default_factory=dict)

    def selects(self, key: str) -> bool:
        """Tell whether the proxy is to serve this model at all."""
        return key in self.routes or key in self.refused

    def lost(self, key: str) -> tuple[Refusal, ...]:
        """Return the names that a model lost."""
        return tuple(self.refused.get(key, {}).values())

    @property
    def memory(self) -> Memory:
        """What the next decision has to know of this one."""
        return Memory(self.holders, self.reservations, self.refused, complete=True)

    @property
    def due_s(self) -> int | None:
        """When a name that is claimed becomes free (Unix seconds), so when to decide again."""
        times = [
            each.until_s
            for lost in self.refused.values()
            for each in lost.values()
            if each.until_s is not None
        ]
        return min(times, default=None)


def candidate(manifest: Manifest) -> Candidate | None:
    """Return what routing needs of a NIMModel; None if it is being deleted or names no model."""
    metadata, spec = manifest["metadata"], manifest.get("spec", {})
    model = spec.get("model")
    if "deletionTimestamp" in metadata or not model:
        return None
    return Candidate(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        created=metadata.get("creationTimestamp", ""),
        model=model,
        aliases=tuple(spec.get("aliases") or ()),
        labels=metadata.get("labels") or {},
        adapters=tuple(each["name"] for each in spec.get("adapters") or ()),
        policy=policy(spec.get("routing") or {}),
        cold_start_s=rounded_s(usual_s(manifest)),
        claim=claim_of(manifest),
        refusals=refusals_of(manifest.get("status") or {}),
    )


def policy(routing: Mapping[str, Any]) -> Policy:
    """Return `NIMModel.spec.routing`, as the API server stored it, as the proxies need it."""
    timeouts, queue = routing.get("timeouts") or {}, routing.get("queue") or {}
    return Policy(
        strategy=routing.get("strategy", DEFAULT_POLICY.strategy),
        timeout_connect_s=timeouts.get("connectSeconds"),
        timeout_first_byte_s=timeouts.get("firstByteSeconds"),
        timeout_idle_s=timeouts.get("idleSeconds"),
        timeout_total_s=timeouts.get("totalSeconds"),
        max_concurrency=routing.get("maxConcurrency"),
        queue_requests_max=queue.get("maxRequests"),
        queue_wait_max_s=queue.get("maxWaitSeconds"),
        retries=routing.get("retries", DEFAULT_POLICY.retries),
        apis=tuple(routing.get("apis") or ()),
    )


def decide(
    candidates: Iterable[Candidate],
    namespaces: tuple[str, ...] | None,
    selector: LabelSelector | None,
    *,
    proxy: str = "",
    memory: Memory = NO_MEMORY,
    now_s: float = 0.0,
) -> Decision:
    """Decide the table of `proxy`, which serves `namespaces` (None for all) through `selector`.

    `memory` is its last decision's, `now_s` Unix seconds.
    """
    order = {name: rank for rank, name in enumerate(namespaces or ())}
    selected = [
        each
        for each in candidates
        if (namespaces is None or each.namespace in order) and matches(selector, each.labels)
    ]
    selected.sort(key=lambda each: (order.get(each.namespace, 0), each.created, each.uid))
    court = _Court(proxy, namespaces, memory, _reserved(selected, memory, now_s), now_s)
    holders: dict[str, str] = {}
    barred: dict[tuple[str, str], Refusal] = {}
    for each in selected:
        for name in each.names:
            if name.casefold() in holders:
                continue
            if (bar := court.bar(each, name)) is not None:
                barred[each.key, name] = bar
            else:
                holders[name.casefold()] = each.key
    won: dict[str, list[str]] = {}
    refused: dict[str, dict[str, Refusal]] = {}
    for each in selected:
        won[each.key] = []
        for name in each.names:
            holder = holders.get(name.casefold())
            if holder == each.key:
                won[each.key].append(name)
            elif holder is not None:
                refusal = Refusal(proxy, name, holder, each.claim)
                refused.setdefault(each.key, {})[name] = refusal
            else:
                refused.setdefault(each.key, {})[name] = barred[each.key, name]
    routes = {each.key: _route(each, won[each.key]) for each in selected if won[each.key]}
    return Decision(
        table=build_table(routes),
        routes=routes,
        refused=refused,
        holders=holders,
        reservations=court.kept(holders),
    )


def _route(each: Candidate, won: list[str]) -> Route:
    return Route(
        namespace=each.namespace,
        name=each.name,
        model=each.model,
        names=tuple(name for name in dict.fromkeys(won) if name not in each.adapters),
        service=names.slug(each.name),
        created_s=unix_s(each.created),
        adapters=tuple(name for name in each.adapters if name in won),
        policy=each.policy,
        cold_start_s=each.cold_start_s,
    )


def _reserved(selected: list[Candidate], memory: Memory, now_s: float) -> dict[str, Reservation]:
    """Return the known reservations, and new ones for the names of holders that are gone.

    A holder that is still there and claims the name no more has given it up: nothing is kept.
    """
    found = dict(memory.reservations)
    present = {each.key for each in selected}
    vacant = {name: key for name, key in memory.holders.items() if key not in present}
    if not vacant:
        return found
    claims: dict[str, dict[str, str]] = {name: {} for name in vacant}
    for each in selected:
        for name in each.names:
            # Without a complete memory whoever claims the name may have been refused it.
            before = memory.refused.get(each.key, {}).get(name)
            if name.casefold() in vacant and (
                not memory.complete or (before is not None and before.claim == each.claim)
            ):
                claims[name.casefold()][each.key] = each.claim
    until_s = int(now_s) + HOLD_S
    return found | {name: Reservation(key, until_s, claims[name]) for name, key in vacant.items()}


@dataclass(frozen=True, slots=True)
class _Court:
    """Says who may not have a name, by what is remembered."""

    proxy: str
    namespaces: tuple[str, ...] | None
    memory: Memory
    reserved: Mapping[str, Reservation]
    now_s: float

    def bar(self, each: Candidate, name: str) -> Refusal | None:
        """Return why a model may not have a name that nobody before it holds; None if it may."""
        for known in (*self._remembered(each, name), *each.refusals):
            if (
                (known.proxy, known.name, known.claim) == (self.proxy, name, each.claim)
                and known.until_s is None
                and self._yields(each, known.holder)
            ):
                return Refusal(self.proxy, name, known.holder, each.claim, gone=True)
        kept = self.reserved.get(name.casefold())
        if kept is None or not self._yields(each, kept.holder):
            return None
        if kept.claims.get(each.key) == each.claim:
            return Refusal(self.proxy, name, kept.holder, each.claim, gone=True)
        if kept.until_s > self.now_s:
            return Refusal(self.proxy, name, kept.holder, each.claim, kept.until_s, gone=True)
        return None

    def kept(self, holders: Mapping[str, str]) -> dict[str, Reservation]:
        """Return the reservations to remember.

        Those that have ended go when the table changes anyway: at rest nothing is written.
        """
        if self.namespaces is not None and len(self.namespaces) == 1:
            return {}  # there is no other namespace to keep a name from
        changed = holders != self.memory.holders
        return {
            name: each
            for name, each in self.reserved.items()
            if name not in holders
            and self._serves(namespace_of(each.holder))
            and (each.until_s > self.now_s or not changed)
        }

    def _remembered(self, each: Candidate, name: str) -> tuple[Refusal, ...]:
        found = self.memory.refused.get(each.key, {}).get(name)
        return (found,) if found is not None else ()

    def _serves(self, namespace: str) -> bool:
        return self.namespaces is None or namespace in self.namespaces

    def _yields(self, each: Candidate, holder: str) -> bool:
        """Tell whether a model gives way to the namespace of a holder that is not there."""
        other = namespace_of(holder)
        if other == each.namespace or not self._serves(other):
            return False
        if self.namespaces is None:
            return True
        return self.namespaces.index(other) < self.namespaces.index(each.namespace)


def changed_keys(before: Mapping[str, object], after: Mapping[str, object]) -> set[str]:
    """Return the keys whose values differ, absence included."""
    missing = object()
    return {
        key
        for key in before.keys() | after.keys()
        if before.get(key, missing) != after.get(key, missing)
    }


def matches(selector: LabelSelector | None, labels: Mapping[str, str]) -> bool:
    """Evaluate a label selector (meta/v1); None and an empty one match everything."""
    if selector is None:
        return True
    for key, value in (selector.match_labels or {}).items():
        if labels.get(key) != value:
            return False
    for term in selector.match_expressions or ():
        present, values = term.key in labels, term.values or []
        holds = {
            "In": present and labels.get(term.key) in values,
            "NotIn": not present or labels.get(term.key) not in values,
            "Exists": present,
            "DoesNotExist": not present,
        }[term.operator]
        if not holds:
            return False
    return True
