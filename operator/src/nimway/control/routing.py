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
from nimway.routes import DEFAULT_POLICY, READY_PATH, Policy, Route, RoutingTable, build_table


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
    ready_path: str = READY_PATH
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
        ready_path=ready_path(spec.get("probes") or {}),
        claim=claim_of(manifest),
        refusals=refusals_of(manifest.get("status") or {}),
    )


def ready_path(probes: Mapping[str, Any]) -> str:
    """Return the path whose answer makes a pod ready; "" if one path alone does not."""
    startup, readiness = (
        (probes.get(kind) or {}).get("path", READY_PATH) for kind in ("startup", "readiness")
    )
    return startup if startup == readiness else ""


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
    gone: frozenset[str] = frozenset(),
) -> Decision:
    """Decide the table of `proxy`, which serves `namespaces` (None for all) through `selector`.

    `memory` is its last decision's, `now_s` Unix seconds. `gone` are namespaces that do not exist
    any more, or not for long: for them no name is kept.
    """
    order = {name: rank for rank, name in enumerate(namespaces or ())}
    selected = [
        each
        for each in candidates
        if (namespaces is None or each.namespace in order) and matches(selector, each.labels)
    ]
    selected.sort(key=lambda each: (order.get(each.namespace, 0), each.created, each.uid))
    court = _Court(
        proxy,
        namespaces,
        memory,
        reserved=_reserved(selected, memory, now_s),
        incumbents=_incumbents(selected, memory),
        now_s=now_s,
        gone=gone,
    )
    holders: dict[str, str] = {}
    for each in selected:
        for name in each.names:
            if name.casefold() not in holders and court.bar(each, name) is None:
                holders[name.casefold()] = each.key
    won: dict[str, list[str]] = {}
    refused: dict[str, dict[str, Refusal]] = {}
    for each in selected:
        won[each.key] = []
        for name in each.names:
            if holders.get(name.casefold()) == each.key:
                won[each.key].append(name)
            else:
                refused.setdefault(each.key, {})[name] = court.refuse(each, name, holders)
    routes = {each.key: _route(each, won[each.key]) for each in selected if won[each.key]}
    return Decision(
        table=build_table(routes),
        routes=routes,
        refused=refused,
        holders=holders,
        reservations=court.kept(holders, selected),
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
        ready_path=each.ready_path,
    )


def _reserved(selected: list[Candidate], memory: Memory, now_s: float) -> dict[str, Reservation]:
    """Return the known reservations, and new ones for the names that their holders left.

    A holder that is still there and claims the name no more has given it up: it is kept for nobody,
    but who was refused it before is not taken by surprise.
    """
    found = dict(memory.reservations)
    present = {each.key for each in selected}
    claimed = {(name.casefold(), each.key) for each in selected for name in each.names}
    left = {name: key for name, key in memory.holders.items() if (name, key) not in claimed}
    if not left:
        return found
    claims: dict[str, dict[str, str]] = {name: {} for name in left}
    for each in selected:
        for name in each.names:
            folded = name.casefold()
            if folded in left and _was_refused(each, name, memory, left[folded] in present):
                claims[folded][each.key] = each.claim
    for name, key in left.items():
        until_s = int(now_s) + (0 if key in present else HOLD_S)
        found[name] = Reservation(key, until_s, claims[name])
    return found


def _was_refused(each: Candidate, name: str, memory: Memory, given_up: bool) -> bool:  # noqa: FBT001 - a fact, no switch
    """Tell whether a model stood by when a name was left; who cannot be known to have, did."""
    if not memory.complete:
        return not given_up
    before = memory.refused.get(each.key, {}).get(name)
    return before is not None and before.claim == each.claim


def _incumbents(selected: list[Candidate], memory: Memory) -> dict[str, str]:
    """Return who keeps a name against other namespaces since nobody remembers who was refused it.

    After a crash the table in force may be all that tells of a refusal.
    """
    if memory.complete:
        return {}
    claimed = ((name.casefold(), each.key) for each in selected for name in each.names)
    return {name: key for name, key in claimed if memory.holders.get(name) == key}


@dataclass(frozen=True, slots=True)
class _Court:
    """Says who may not have a name, by what is remembered."""

    proxy: str
    namespaces: tuple[str, ...] | None
    memory: Memory
    reserved: Mapping[str, Reservation]
    incumbents: Mapping[str, str]
    now_s: float
    gone: frozenset[str]

    def bar(self, each: Candidate, name: str) -> Refusal | None:
        """Return why a model may not have a name that nobody before it holds; None if it may."""
        for known in (*self._remembered(each, name), *each.refusals):
            if (
                (known.proxy, known.name, known.claim) == (self.proxy, name, each.claim)
                and known.until_s is None
                and self._yields(each, known.holder)
            ):
                return Refusal(self.proxy, name, known.holder, each.claim, gone=True)
        incumbent = self.incumbents.get(name.casefold(), each.key)
        if incumbent != each.key and self._yields(each, incumbent):
            return Refusal(self.proxy, name, incumbent, each.claim, gone=True)
        kept = self.reserved.get(name.casefold())
        if kept is None or not self._yields(each, kept.holder):
            return None
        if kept.claims.get(each.key) == each.claim:
            return Refusal(self.proxy, name, kept.holder, each.claim, gone=True)
        if kept.until_s > self.now_s and namespace_of(kept.holder) not in self.gone:
            return Refusal(self.proxy, name, kept.holder, each.claim, kept.until_s, gone=True)
        return None

    def refuse(self, each: Candidate, name: str, holders: Mapping[str, str]) -> Refusal:
        """Return what to tell, and to remember, of a name that a model did not get.

        Who was refused it by another namespace stays so, whoever of its own claims it anew.
        """
        holder = holders.get(name.casefold())
        if holder is None or namespace_of(holder) == each.namespace:
            bar = self.bar(each, name)
            if bar is not None and (holder is None or bar.until_s is None):
                return bar
        return Refusal(self.proxy, name, holders[name.casefold()], each.claim)

    def kept(
        self, holders: Mapping[str, str], selected: Iterable[Candidate]
    ) -> dict[str, Reservation]:
        """Return the reservations to remember.

        Those that have ended go when the table changes anyway, for at rest nothing is written; and
        not before the status of each model that they name says the same.
        """
        if self.namespaces is not None and len(self.namespaces) == 1:
            return {}  # there is no other namespace to keep a name from
        changed = holders != self.memory.holders
        silent = (
            {
                (name.casefold(), each.key, each.claim)
                for each in selected
                for name in each.names
                if not any(
                    (known.proxy, known.name, known.claim) == (self.proxy, name, each.claim)
                    for known in each.refusals
                )
            }
            if changed
            else set()
        )
        return {
            name: each
            for name, each in self.reserved.items()
            if name not in holders
            and self._serves(namespace_of(each.holder))
            and (
                each.until_s > self.now_s
                or not changed
                or any((name, key, claim) in silent for key, claim in each.claims.items())
            )
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
