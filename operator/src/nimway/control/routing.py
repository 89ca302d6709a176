"""Who is served under which name by one NIMProxy: the decision behind the routing table.

Pure. A served name belongs to one model per proxy, compared without regard to case: names that
differ only in case would let one team answer for another. In one namespace the oldest object wins;
across namespaces the order of `NIMProxy.spec.namespaces` decides, else the oldest. The loser of a
name keeps its other names.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nimway.api.kubernetes import LabelSelector
from nimway.control.clock import unix_s
from nimway.control.desired import names
from nimway.control.kinds import Manifest
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

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Decision:
    """A proxy's table, its routes by model key, and the names each model lost, with the winner."""

    table: RoutingTable
    routes: Mapping[str, Route]
    refused: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def selects(self, key: str) -> bool:
        """Tell whether the proxy is to serve this model at all."""
        return key in self.routes or key in self.refused


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
) -> Decision:
    """Decide the table of a proxy that serves `namespaces` (None for all) through `selector`."""
    order = {name: rank for rank, name in enumerate(namespaces or ())}
    selected = [
        each
        for each in candidates
        if (namespaces is None or each.namespace in order) and matches(selector, each.labels)
    ]
    selected.sort(key=lambda each: (order.get(each.namespace, 0), each.created, each.uid))
    holders: dict[str, str] = {}
    routes: dict[str, Route] = {}
    refused: dict[str, dict[str, str]] = {}
    for each in selected:
        won = []
        for name in (each.model, *each.aliases, *each.adapters):
            holder = holders.setdefault(name.casefold(), each.key)
            if holder == each.key:
                won.append(name)
            else:
                refused.setdefault(each.key, {})[name] = holder
        if won:
            routes[each.key] = Route(
                namespace=each.namespace,
                name=each.name,
                model=each.model,
                names=tuple(name for name in dict.fromkeys(won) if name not in each.adapters),
                service=names.slug(each.name),
                created_s=unix_s(each.created),
                adapters=tuple(name for name in each.adapters if name in won),
                policy=each.policy,
            )
    return Decision(table=build_table(routes), routes=routes, refused=refused)


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
