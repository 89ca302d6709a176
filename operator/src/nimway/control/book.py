"""Which proxy pod serves which table: the memory behind `Routed`.

Owns, for each NIMProxy, the tables it wrote lately by revision, and what each of its ready pods
last reported. Kept in memory only: after a restart the tables are decided again from the same
specs, and the pods report again; until they did, nothing is concluded. Pure but for being mutable;
time comes in as an argument.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nimway.control.conditions import RouteView
from nimway.control.routing import Decision, changed_keys
from nimway.routes import Route
from nimway.state import ProxyState

REVISIONS_MAX = 64
"""A pod that is further behind than this counts as serving nothing."""

FIRST_REPORT_S = 10.0
"""How long a ready pod's first report is waited for before its silence counts."""


@dataclass(slots=True)
class _Pod:
    since_s: float
    state: ProxyState | None = None


@dataclass(slots=True)
class _Proxy:
    decision: Decision
    revisions: OrderedDict[str, Mapping[str, Route]] = field(default_factory=OrderedDict)
    pods: dict[str, _Pod] = field(default_factory=dict)


class RouteBook:
    """Tables and reports of all proxies, by the proxy's `namespace/name`."""

    def __init__(self) -> None:
        self._proxies: dict[str, _Proxy] = {}
        self._tableless: set[str] = set()

    def decide(self, proxy: str, decision: Decision) -> set[str]:
        """Record what a proxy is to serve; return the models for which that is new."""
        self._tableless.discard(proxy)
        known = self._proxies.get(proxy)
        if known is None:
            known = self._proxies[proxy] = _Proxy(decision)
            affected = set(decision.routes) | set(decision.refused)
        else:
            affected = changed_keys(known.decision.routes, decision.routes)
            affected |= changed_keys(known.decision.refused, decision.refused)
            known.decision = decision
        known.revisions[decision.table.revision] = decision.routes
        known.revisions.move_to_end(decision.table.revision)
        while len(known.revisions) > REVISIONS_MAX:
            known.revisions.popitem(last=False)
        return affected

    def pass_over(self, proxy: str) -> bool:
        """Expect nothing of a proxy that never got a table; tell whether that is new."""
        if proxy in self._proxies or proxy in self._tableless:
            return False
        self._tableless.add(proxy)
        return True

    def forget(self, proxy: str) -> set[str]:
        """Drop a proxy that is gone; return the models that it selected."""
        self._tableless.discard(proxy)
        known = self._proxies.pop(proxy, None)
        return set(known.decision.routes) | set(known.decision.refused) if known else set()

    def pods(self, proxy: str, ready: Iterable[str], now_s: float) -> set[str]:
        """Record which pods are ready, by uid; return the models affected by a change."""
        known = self._proxies.get(proxy)
        if known is None:
            return set()
        uids = set(ready)
        if uids == known.pods.keys():
            return set()
        known.pods = {uid: known.pods.get(uid) or _Pod(now_s) for uid in uids}
        return set(known.decision.routes)

    def report(self, proxy: str, uid: str, state: ProxyState | None, now_s: float) -> set[str]:
        """Record a pod's report (None: the connection broke); return the models affected."""
        known = self._proxies.get(proxy)
        pod = known.pods.get(uid) if known else None
        if known is None or pod is None:
            return set()
        before, pod.state = pod.state, state
        if state is None:
            pod.since_s = now_s
            return set()
        if before is not None and before.revision == state.revision:
            return set()
        old = known.revisions.get(before.revision, {}) if before else {}
        return changed_keys(old, known.revisions.get(state.revision, {})) | (
            set(known.decision.routes) if before is None else set()
        )

    def decision(self, proxy: str) -> Decision | None:
        """Return what a proxy is to serve, None before that is decided."""
        known = self._proxies.get(proxy)
        return known.decision if known else None

    def pods_ready(self, proxy: str) -> int:
        """Return how many pods of a proxy are ready."""
        known = self._proxies.get(proxy)
        return len(known.pods) if known else 0

    def pods_current(self, proxy: str) -> int:
        """Return how many ready pods serve the proxy's latest table."""
        known = self._proxies.get(proxy)
        if known is None:
            return 0
        revision = known.decision.table.revision
        return sum(1 for pod in known.pods.values() if pod.state and pod.state.revision == revision)

    def silent(self, now_s: float) -> set[str]:
        """Return the models of proxies of which a ready pod said nothing for too long."""
        return {
            key
            for known in self._proxies.values()
            if any(
                pod.state is None and now_s - pod.since_s >= FIRST_REPORT_S
                for pod in known.pods.values()
            )
            for key in known.decision.routes
        }

    def view(self, model: str, proxies: Iterable[str], now_s: float) -> RouteView:
        """Sum up how `proxies` (all that exist) see one model."""
        ready = serving = 0
        pending = False
        names: dict[str, None] = {}
        names_down: dict[str, None] = {}
        selecting = []
        undecided = set()
        for key in proxies:
            proxy = self._proxies.get(key)
            if key in self._tableless:
                continue
            if proxy is None:
                pending = True  # not decided yet: this process has just started
                undecided.add(key)
                continue
            if not proxy.decision.selects(model):
                continue
            selecting.append(proxy.decision)
            route = proxy.decision.routes.get(model)
            if route is None:
                continue
            (names if proxy.pods else names_down).update(dict.fromkeys(route.names))
            ready += len(proxy.pods)
            for pod in proxy.pods.values():
                if pod.state is None:
                    pending = pending or now_s - pod.since_s < FIRST_REPORT_S
                elif _leads(proxy.revisions.get(pod.state.revision, {}).get(model), route):
                    serving += 1
        return RouteView(
            proxies=len(selecting),
            pods_ready=ready,
            pods_serving=serving,
            pending=pending,
            names=tuple(names or names_down),
            refused=tuple(each for one in selecting for each in one.lost(model)),
            undecided=frozenset(undecided),
        )


def _leads(served: Route | None, route: Route) -> bool:
    """Tell whether a served route leads where `route` does: a cold start's length is a hint."""
    return served == route or (
        served is not None and replace(served, cold_start_s=route.cold_start_s) == route
    )
