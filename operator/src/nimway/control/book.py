"""Which proxy pod serves which table: the memory behind `Routed`.

Owns, for each NIMProxy, what it is to serve, the tables it wrote lately by revision, and what each
of its ready pods last reported. Kept in memory only: after a restart the tables are decided again
from the same specs, and the pods report again; until they did, nothing is concluded. Pure but for
being mutable; time comes in as an argument.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nimway.control.claims import namespace_of
from nimway.control.conditions import RouteView, TableView
from nimway.control.routing import Candidate, Decision, changed_keys
from nimway.routes import Route
from nimway.state import ProxyState

REVISIONS_MAX = 64
"""A pod that is further behind than this counts as serving nothing."""

FIRST_REPORT_S = 10.0
"""How long a ready pod's first report is waited for before its silence counts."""

CURRENT_S = 10.0
"""How long a pod may serve a table that is not the latest any more before that is told."""


@dataclass(slots=True)
class _Pod:
    name: str
    since_s: float
    state: ProxyState | None = None
    is_noted: bool = False
    """Whether the models know of its silence."""

    def is_silent(self, now_s: float) -> bool:
        return self.state is None and now_s - self.since_s >= FIRST_REPORT_S


@dataclass(slots=True)
class _Table:
    """Routes of one revision, and when another one took its place."""

    routes: Mapping[str, Route]
    superseded_s: float | None = None


@dataclass(slots=True)
class _Proxy:
    """What was published, and who serves it."""

    decision: Decision
    since_s: float
    tables: OrderedDict[str, _Table] = field(default_factory=OrderedDict)
    pods: dict[str, _Pod] = field(default_factory=dict)

    def served(self, pod: ProxyState) -> Mapping[str, Route]:
        table = self.tables.get(pod.revision)
        return table.routes if table else {}

    def late_s(self, pod: _Pod) -> float | None:
        """Return from when on a pod that does not serve the latest table is late; None if it does.

        Who serves a table that nobody knows has been behind since there was one to serve.
        """
        if pod.state is None:
            return pod.since_s + FIRST_REPORT_S
        if pod.state.revision == self.decision.table.revision:
            return None
        table = self.tables.get(pod.state.revision)
        since_s = table.superseded_s if table else None
        return CURRENT_S + (max(pod.since_s, self.since_s) if since_s is None else since_s)


@dataclass(slots=True)
class _Wanted:
    """What a proxy is to serve, published or not.

    `claims` are the models it was decided from, by key; the decision is None before the first, and
    of a spec that cannot work. `why` tells what kept it from being published. `tableless` is a
    proxy that never got a table and cannot get one now. `blind` are namespaces whose pods the proxy
    may not see, and why. `awaited` are models that were told to wait for it.
    """

    decision: Decision | None = None
    claims: Mapping[str, Candidate] = field(default_factory=dict)
    why: str = ""
    tableless: bool = False
    blind: Mapping[str, str] = field(default_factory=dict)
    awaited: set[str] = field(default_factory=set)

    def take_awaited(self) -> set[str]:
        """Return who waits, and begin anew: who still does says so when it is looked at."""
        awaited, self.awaited = self.awaited, set()
        return awaited


class RouteBook:
    """Tables and reports of all proxies, by the proxy's `namespace/name`."""

    def __init__(self) -> None:
        self._proxies: dict[str, _Proxy] = {}
        self._wanted: dict[str, _Wanted] = {}
        self._going: set[str] = set()

    def intend(self, proxy: str, decision: Decision, models: Iterable[Candidate]) -> None:
        """Record what a proxy is to serve, before it is published, and of what it was decided."""
        self._going.discard(proxy)
        wanted = self._wanted.setdefault(proxy, _Wanted())
        if wanted.decision is not decision:
            wanted.decision, wanted.claims = decision, {each.key: each for each in models}

    def decide(self, proxy: str, decision: Decision, now_s: float = 0.0) -> set[str]:
        """Record what a proxy published; return the models for which that is new."""
        wanted = self._wanted.setdefault(proxy, _Wanted())
        if wanted.decision is not decision:
            wanted.decision, wanted.claims = decision, {}
        wanted.why, wanted.tableless = "", False
        known = self._proxies.get(proxy)
        if known is None:
            known = self._proxies[proxy] = _Proxy(decision, now_s)
            affected = set(decision.routes) | set(decision.refused)
        else:
            affected = changed_keys(known.decision.routes, decision.routes)
            affected |= changed_keys(known.decision.refused, decision.refused)
            if known.decision.table.revision != decision.table.revision:
                known.tables[known.decision.table.revision].superseded_s = now_s
            known.decision = decision
        known.tables[decision.table.revision] = _Table(decision.routes)
        known.tables.move_to_end(decision.table.revision)
        while len(known.tables) > REVISIONS_MAX:
            known.tables.popitem(last=False)
        return affected | wanted.take_awaited()

    def fail(self, proxy: str, why: str, *, tableless: bool) -> set[str]:
        """Record why a proxy's work was not done; return the models for which that is new.

        Of one that is `tableless` nothing is expected.
        """
        wanted = self._wanted.setdefault(proxy, _Wanted())
        known = self._proxies.get(proxy)
        if known is not None and known.decision is wanted.decision:
            return set()  # it is published: what failed is no matter of the models
        if (wanted.why, wanted.tableless) == (why, tableless):
            return set()
        wanted.why, wanted.tableless = why, tableless
        affected = wanted.take_awaited()
        if wanted.decision is not None:
            models = wanted.decision.routes.keys() | wanted.decision.refused.keys()
            affected |= {key for key in models if self._is_unpublished(proxy, wanted, key)}
        return affected

    def blind(self, proxy: str, namespaces: Mapping[str, str]) -> set[str]:
        """Record whose pods a proxy may not see, and why; return the models affected."""
        wanted = self._wanted.setdefault(proxy, _Wanted())
        changed = changed_keys(wanted.blind, namespaces)
        wanted.blind = dict(namespaces)
        routes = wanted.decision.routes if changed and wanted.decision else {}
        return {key for key in routes if namespace_of(key) in changed}

    def leave(self, proxy: str) -> set[str]:
        """Count a proxy no more that is being deleted; return, once, the models affected."""
        if proxy in self._going:
            return set()
        self._going.add(proxy)
        known = self._proxies.get(proxy)
        awaited = self._wanted.setdefault(proxy, _Wanted()).take_awaited()
        return awaited | _selected(known) if known else awaited

    def forget(self, proxy: str) -> set[str]:
        """Drop a proxy that is gone; return the models that it selected."""
        self._going.discard(proxy)
        wanted = self._wanted.pop(proxy, None)
        awaited = wanted.awaited if wanted else set()
        known = self._proxies.pop(proxy, None)
        return awaited | _selected(known) if known else awaited

    def pods(self, proxy: str, ready: Mapping[str, str], now_s: float) -> set[str]:
        """Record which pods are ready, as what to call them by uid; return the models affected."""
        known = self._proxies.get(proxy)
        if known is None or ready.keys() == known.pods.keys():
            return set()
        known.pods = {uid: known.pods.get(uid) or _Pod(name, now_s) for uid, name in ready.items()}
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
        pod.is_noted = False
        if before is not None and before.revision == state.revision:
            return set()
        old = known.served(before) if before else {}
        return changed_keys(old, known.served(state)) | (
            set(known.decision.routes) if before is None else set()
        )

    def decision(self, proxy: str) -> Decision | None:
        """Return what a proxy published last, None before that."""
        known = self._proxies.get(proxy)
        return known.decision if known else None

    def table(self, proxy: str, now_s: float) -> TableView:
        """Sum up how the ready pods of a proxy serve its latest table."""
        known = self._proxies.get(proxy)
        if known is None:
            return TableView()
        pods = known.pods.values()
        late_s = [each for each in map(known.late_s, pods) if each is not None]
        return TableView(
            pods_ready=len(pods),
            pods_current=len(pods) - len(late_s),
            unheard=tuple(sorted(pod.name for pod in pods if pod.is_silent(now_s))),
            late=any(each <= now_s for each in late_s),
            recheck_s=min((each - now_s for each in late_s if each > now_s), default=None),
        )

    def fell_silent(self, proxy: str, now_s: float) -> set[str]:
        """Return the models of a proxy of which a ready pod has newly been silent for too long."""
        known = self._proxies.get(proxy)
        silent = [pod for pod in known.pods.values() if pod.is_silent(now_s)] if known else []
        is_news = not all(pod.is_noted for pod in silent)
        for pod in silent:
            pod.is_noted = True
        return set(known.decision.routes) if known and is_news else set()

    def silent(self, now_s: float) -> set[str]:
        """Return the models of proxies of which a ready pod said nothing for too long."""
        return {
            key
            for known in self._proxies.values()
            if any(pod.is_silent(now_s) for pod in known.pods.values())
            for key in known.decision.routes
        }

    def view(
        self, model: str, proxies: Iterable[str], now_s: float, claim: Candidate | None = None
    ) -> RouteView:
        """Sum up how `proxies` (all that exist) see one model, which claims `claim` now.

        A model that has to wait for one of them is among those affected when its wait is over.
        """
        found = _Sum()
        for key in proxies:
            if key in self._going:
                continue
            wanted = self._wanted.setdefault(key, _Wanted())
            proxy = self._proxies.get(key)
            behind = self._behind(key, wanted, model, claim)
            if behind:
                wanted.awaited.add(model)
                (found.behind if proxy and proxy.pods else found.behind_down).append(behind)
            if proxy is not None:
                found.add(proxy, model, now_s, is_current=not behind)
            elif not wanted.tableless:
                # Not decided yet, for this process has just started; or an older table is in force.
                wanted.awaited.add(model)
                found.undecided.add(key)
        return found.view(model)

    def _behind(self, key: str, wanted: _Wanted, model: str, claim: Candidate | None) -> str:
        """Say what a proxy lacks to lead to a model as it now is, "" for nothing."""
        if wanted.decision is None:
            return ""
        is_published = key in self._proxies
        if claim is not None and not _is_same(wanted.claims.get(model), claim):
            told = f"NIMProxy {key} has not taken over the current names and routing yet"
            return told if is_published or wanted.why else ""
        if self._is_unpublished(key, wanted, model):
            told = f"the table of NIMProxy {key} does not have the current route yet"
            if wanted.why:
                return f"{told}; it could not be written: {wanted.why}"
            return told if is_published else ""
        blind = wanted.blind.get(namespace_of(model))
        if blind and model in wanted.decision.routes:
            return f"NIMProxy {key} may not see the pods: {blind}"
        return ""

    def _is_unpublished(self, key: str, wanted: _Wanted, model: str) -> bool:
        """Tell whether a proxy is to lead to a model otherwise than its published table does."""
        if wanted.decision is None or not wanted.decision.selects(model):
            return False
        known = self._proxies.get(key)
        if known is None or not known.decision.selects(model):
            return True
        if known.decision is wanted.decision:
            return False
        route = wanted.decision.routes.get(model)
        return route is not None and not _leads(known.decision.routes.get(model), route)


@dataclass(slots=True)
class _Sum:
    """What a view of one model is added up from; `_down` is of proxies without ready pods."""

    pods_ready: int = 0
    pods_serving: int = 0
    current: int = 0
    pending: bool = False
    names: dict[str, None] = field(default_factory=dict)
    names_down: dict[str, None] = field(default_factory=dict)
    behind: list[str] = field(default_factory=list)
    behind_down: list[str] = field(default_factory=list)
    unheard: list[str] = field(default_factory=list)
    selecting: list[Decision] = field(default_factory=list)
    undecided: set[str] = field(default_factory=set)

    def add(self, proxy: _Proxy, model: str, now_s: float, *, is_current: bool) -> None:
        """Add a proxy that has published a table."""
        if not proxy.decision.selects(model):
            return
        self.selecting.append(proxy.decision)
        self.current += is_current
        route = proxy.decision.routes.get(model)
        if route is None:
            return
        (self.names if proxy.pods else self.names_down).update(dict.fromkeys(route.names))
        self.pods_ready += len(proxy.pods)
        for pod in proxy.pods.values():
            if pod.is_silent(now_s):
                self.unheard.append(pod.name)
            elif pod.state is None:
                self.pending = True
            elif _leads(proxy.served(pod.state).get(model), route):
                self.pods_serving += 1

    def view(self, model: str) -> RouteView:
        """Return it; what a proxy without pods lacks is told where no other one can be used."""
        return RouteView(
            proxies=len(self.selecting),
            pods_ready=self.pods_ready,
            pods_serving=self.pods_serving,
            pending=self.pending or bool(self.undecided),
            names=tuple(self.names or self.names_down),
            refused=tuple(each for one in self.selecting for each in one.lost(model)),
            undecided=frozenset(self.undecided),
            behind=tuple(self.behind or ([] if self.current else self.behind_down)),
            unheard=tuple(sorted(self.unheard)),
        )


def _selected(proxy: _Proxy) -> set[str]:
    return set(proxy.decision.routes) | set(proxy.decision.refused)


def _is_same(before: Candidate | None, now: Candidate) -> bool:
    """Tell whether two states of a model ask for the same route, whatever else changed."""
    return before is not None and _asked(before) == _asked(now)


def _asked(each: Candidate) -> tuple[object, ...]:
    return (
        each.uid,
        each.model,
        each.aliases,
        each.adapters,
        each.labels,
        each.policy,
        each.ready_path,
    )


def _leads(served: Route | None, route: Route) -> bool:
    """Tell whether a served route leads where `route` does: a cold start's length is a hint."""
    return served == route or (
        served is not None and replace(served, cold_start_s=route.cold_start_s) == route
    )
