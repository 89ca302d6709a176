"""Reconciles one NIMProxy: its routing table first, then its rights, its pods and its status."""

from dataclasses import dataclass

from nimway.api.status import Reason
from nimway.control import conditions
from nimway.control.apply import OwnerGoneError
from nimway.control.client import NamespaceTerminatingError
from nimway.control.conditions import Problem, ProxyFacts
from nimway.control.context import Context
from nimway.control.desired import names
from nimway.control.desired import proxy as desired
from nimway.control.diagnosis import Workload, diagnose
from nimway.control.facts import PodFacts, deployment_facts, pod_facts
from nimway.control.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    MODEL,
    POD,
    PROXY,
    ROLE_BINDING,
    Kind,
    Manifest,
    Ref,
)
from nimway.control.problems import REPORTED, outcome_of
from nimway.control.resolve import Owner, ResolvedProxy, resolve_proxy
from nimway.control.routing import Candidate, Decision, candidate, decide

TABLE_UNCHANGED_HOLD_S = 0.05
NAMESPACES_LISTED_MAX = 4
"""Up to so many namespaces are listed one by one; beyond, one list of all is cheaper."""


@dataclass(frozen=True, slots=True)
class _Listed:
    """The models of a fresh list, and the state of the store when it was asked for."""

    changes: int
    namespaces: tuple[str, ...] | None
    candidates: list[Candidate]


class ProxyReconciler:
    """Makes a NIMProxy's table, children and status follow its spec and the models."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._listed: dict[str, _Listed] = {}

    async def reconcile(self, ref: Ref) -> None:
        """Do it once.

        Raises:
            Exception: it has to be tried again; what its user should know is reported.
        """
        context, key = self._context, f"{ref.namespace}/{ref.name}"
        live = context.store.get(PROXY, ref.namespace, ref.name)
        if live is None:
            context.mark_models(context.book.forget(key))
            context.channel.follow(key, {})
            self._listed.pop(key, None)
            await self.sweep()
            return
        if "deletionTimestamp" in live["metadata"]:
            return
        problem, retry = None, None
        try:
            problem = await self._apply(live, key)
        except OwnerGoneError:
            context.workers.mark(ref)
            return
        except REPORTED as error:
            outcome = outcome_of(error)
            problem, retry = outcome.problem, outcome.retry
        await self._report(live, key, problem)
        if retry is not None:
            raise retry

    async def sweep(self) -> None:
        """Delete bindings whose NIMProxy is gone: no garbage collector sees across namespaces."""
        context = self._context
        orphans = []
        for ref in context.store.refs(ROLE_BINDING):
            live = context.store.get(ROLE_BINDING, ref.namespace, ref.name)
            if live is not None and self._is_orphan(live):
                orphans.append(live)
        if not orphans:
            return
        scope = context.settings.namespaces
        namespaces: list[str | None] = [None] if scope is None else [*sorted(scope)]
        uids = {
            item["metadata"]["uid"]
            for namespace in namespaces
            async for page, _ in context.client.pages(PROXY, namespace)
            for item in page
        }
        for live in orphans:
            if live["metadata"]["labels"][names.OWNER_LABEL] not in uids:
                await context.applier.delete(
                    ROLE_BINDING, live, reason="its NIMProxy does not exist any more"
                )

    def _is_orphan(self, live: Manifest) -> bool:
        labels = live["metadata"].get("labels", {})
        uid, namespace = labels.get(names.OWNER_LABEL), labels.get(names.OWNER_NAMESPACE_LABEL)
        if not uid or not namespace or live["metadata"].get("ownerReferences"):
            return False
        known = self._context.store.owner_of(uid) is not None
        return not known and self._context.settings.watches(namespace)

    async def _apply(self, live: Manifest, key: str) -> Problem | None:
        context = self._context
        proxy = resolve_proxy(live, trusted=context.settings.trusted)
        models = await self._models(key, proxy)
        decision = decide(models, proxy.namespaces, proxy.spec.model_selector)
        children = desired.build_rights(proxy, decision.table.namespaces, context.settings.proxy)
        table = desired.build_routes(proxy, decision.table)
        workload = desired.build_workload(proxy, context.settings.proxy)
        everything = [*children, (CONFIG_MAP, table), *workload]
        await context.applier.confirm(proxy.owner, everything)
        await self._bind(children, proxy.owner)
        problem = await self._publish(proxy, key, decision, table)
        await context.applier.apply_all(workload, proxy.owner)
        await context.applier.prune(everything, proxy.owner)
        return problem

    async def _bind(self, children: list[tuple[Kind, Manifest]], owner: Owner) -> None:
        """Make the rights; a served namespace that is going must not keep the table waiting."""
        for kind, manifest in children:
            try:
                await self._context.applier.apply(kind, manifest, owner)
            except NamespaceTerminatingError:
                if manifest["metadata"]["namespace"] == owner.namespace:
                    raise

    async def _publish(
        self, proxy: ResolvedProxy, key: str, decision: Decision, table: Manifest
    ) -> Problem | None:
        """Write the table; one that does not fit leaves the last good one in force."""
        context, owner = self._context, proxy.owner
        size = desired.table_bytes(table)
        if size > desired.TABLE_BYTES_MAX:
            text = (
                f"the routing table of {len(decision.routes)} models has {size} bytes, more than "
                f"{desired.TABLE_BYTES_MAX}: spread the models over several NIMProxies"
            )
            return Problem(Reason.TABLE_TOO_LARGE, text, stalled=True)
        before = context.store.get(CONFIG_MAP, owner.namespace, names.routes_name(owner.name))
        answer = await context.applier.apply(CONFIG_MAP, table, owner)
        written = before is None or (
            before["metadata"]["resourceVersion"] != answer["metadata"]["resourceVersion"]
        )
        hold_s = context.settings.table_period_s if written else TABLE_UNCHANGED_HOLD_S
        context.workers.hold(Ref(PROXY.kind, owner.namespace, owner.name), hold_s)
        context.metrics.routes.labels(owner.namespace, owner.name).set(len(decision.routes))
        context.mark_models(context.book.decide(key, decision))
        return None

    async def _models(self, key: str, proxy: ResolvedProxy) -> list[Candidate]:
        """Return the models of a list that is fresh since the last known change of any model.

        What others depend on is never built from a cache; but status writes and the proxies' own
        news change no table, and a list for each would cost more than all else in a burst.
        """
        changes = self._context.store.changes(MODEL)
        known = self._listed.get(key)
        if known and (known.changes, known.namespaces) == (changes, proxy.namespaces):
            return known.candidates
        candidates = await self._candidates(proxy)
        self._listed[key] = _Listed(changes, proxy.namespaces, candidates)
        return candidates

    async def _candidates(self, proxy: ResolvedProxy) -> list[Candidate]:
        scope = self._context.settings.namespaces
        wanted = proxy.namespaces if scope is None else tuple(sorted(scope))
        if wanted is not None and scope is not None and proxy.namespaces is not None:
            wanted = tuple(name for name in proxy.namespaces if name in scope)
        few = wanted is not None and (scope is not None or len(wanted) <= NAMESPACES_LISTED_MAX)
        found = []
        for namespace in wanted if few and wanted is not None else (None,):
            async for page, _ in self._context.client.pages(MODEL, namespace):
                found += [each for item in page if (each := candidate(item)) is not None]
        return found

    async def _report(self, live: Manifest, key: str, problem: Problem | None) -> None:
        context, metadata = self._context, live["metadata"]
        pods = [pod_facts(pod) for _, pod in context.store.children(metadata["uid"], POD)]
        ready = [pod for pod in pods if pod.ready and pod.address and not pod.deleting]
        affected = context.book.pods(key, (pod.uid for pod in ready), context.clock())
        context.mark_models(affected)
        context.channel.follow(key, {pod.uid: pod.address for pod in ready})
        facts = self._facts(live, key, pods, problem)
        status = self._status(live, key, facts)
        verdicts = conditions.proxy_verdicts(facts)
        await context.reporter.report(PROXY, live, verdicts, status)

    def _facts(
        self, live: Manifest, key: str, pods: list[PodFacts], problem: Problem | None
    ) -> ProxyFacts:
        context, metadata = self._context, live["metadata"]
        name = names.proxy_name(metadata["name"])
        deployment = deployment_facts(context.store.get(DEPLOYMENT, metadata["namespace"], name))
        decision = context.book.decision(key)
        return ProxyFacts(
            generation=metadata["generation"],
            replicas=live.get("spec", {}).get("replicas", 2),
            models=len(decision.routes) if decision else 0,
            pods_current=context.book.pods_current(key),
            deployment=deployment,
            diagnosis=diagnose(deployment, pods, Workload()),
            problem=problem,
        )

    def _status(self, live: Manifest, key: str, facts: ProxyFacts) -> Manifest:
        metadata, spec = live["metadata"], live.get("spec", {})
        port = (spec.get("service") or {}).get("port", desired.PORT)
        name = names.proxy_name(metadata["name"])
        selector = names.selector_labels(names.PROXY_COMPONENT, metadata["name"])
        status: Manifest = {
            "replicas": facts.deployment.replicas,
            "readyReplicas": facts.deployment.ready,
            "ready": f"{facts.deployment.ready}/{facts.replicas}",
            "selector": names.selector_text(selector),
            "endpoint": f"http://{name}.{metadata['namespace']}.svc:{port}",
            "image": spec.get("image") or self._context.settings.proxy.image,
            "models": facts.models,
        }
        revision = self._revision(key) or live.get("status", {}).get("revision")
        if revision:
            status["revision"] = revision
        return status

    def _revision(self, key: str) -> str | None:
        """Return the revision that every ready pod serves; None if they differ or are unknown."""
        book = self._context.book
        decision = book.decision(key)
        current = book.pods_current(key)
        if decision is None or current == 0 or current < book.pods_ready(key):
            return None
        return decision.table.revision
