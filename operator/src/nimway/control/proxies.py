"""Reconciles one NIMProxy: its routing table first, then its rights, its pods and its status."""

import logging
from dataclasses import dataclass

from nimway.api.status import Reason
from nimway.control import claims, conditions
from nimway.control.apply import OwnerGoneError
from nimway.control.candidates import Candidates
from nimway.control.claims import NO_MEMORY, RESERVED_ANNOTATION, Memory
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
    NAMESPACE,
    POD,
    PROXY,
    ROLE_BINDING,
    SERVICE_MONITOR,
    Kind,
    Manifest,
    Ref,
)
from nimway.control.plan import is_ours
from nimway.control.problems import REPORTED, outcome_of
from nimway.control.resolve import (
    NamespaceNotAllowedError,
    Owner,
    ResolvedProxy,
    resolve_proxy,
)
from nimway.control.routing import Candidate, Decision, decide, matches
from nimway.routes import KEY_PACKED, RoutesError, TableTooLargeError, decode, decode_shard

_log = logging.getLogger(__name__)

TABLE_UNCHANGED_HOLD_S = 0.05
KEPT_NAME_RECHECK_S = 5.0


@dataclass(frozen=True, slots=True)
class _Decided:
    """A decision, and what it was made of."""

    generation: int
    namespaces: tuple[str, ...] | None
    models: tuple[Candidate, ...]
    decision: Decision


class ProxyReconciler:
    """Makes a NIMProxy's table, children and status follow its spec and the models."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._candidates = Candidates(context.store)
        self._decided: dict[str, _Decided] = {}
        self._packed: dict[str, dict[str, str]] = {}

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
            context.loads.forget(key)
            for memory in (self._decided, self._packed):
                memory.pop(key, None)
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
            outcome = outcome_of(error, live.get("status", {}).get("conditions", ()))
            problem, retry = outcome.problem, outcome.retry
            if outcome.recheck_s is not None:
                context.workers.mark(ref, delay_s=outcome.recheck_s)
        if problem is not None and problem.reason is not Reason.TERMINATING:
            self._pass_over(ref, live["metadata"]["uid"])
        await self._report(live, key, problem)
        if retry is not None:
            raise retry

    def _pass_over(self, ref: Ref, uid: str) -> None:
        """Have no model wait for a proxy that has no table and cannot get one now."""
        context = self._context
        table = Ref(CONFIG_MAP.kind, ref.namespace, names.routes_name(ref.name))
        if context.store.owner_uid(table) == uid:
            return  # its pods may serve that one: what was known of it stays
        if context.book.pass_over(f"{ref.namespace}/{ref.name}"):
            models = context.store.refs(MODEL)
            context.mark_models({f"{each.namespace}/{each.name}" for each in models})

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
        context, refusal = self._context, None
        try:
            proxy = resolve_proxy(live, trusted=context.settings.trusted)
        except NamespaceNotAllowedError as error:
            proxy, refusal = error.confined, outcome_of(error).problem
            if not context.store.get(CONFIG_MAP, proxy.owner.namespace, _head_name(proxy)):
                raise
            # It could once, or asked for less before: others are served no more, its own are.
        decision = self._decide(key, proxy)
        rights = desired.build_rights(proxy, decision.table.namespaces, context.settings.proxy)
        tables, problem = self._build_tables(key, proxy, decision)
        workload = desired.build_workload(proxy, context.settings.proxy)
        monitor = desired.build_proxy_monitor(proxy)
        if monitor is not None and context.monitors.served:
            workload.append((SERVICE_MONITOR, monitor))
        everything = [*rights, *tables, *workload]
        await context.applier.confirm(proxy.owner, everything)
        await self._bind(rights, proxy.owner)
        if problem is None:
            await self._publish(proxy.owner, key, decision, tables)
        await context.applier.apply_all(workload, proxy.owner)
        await context.applier.prune(everything, proxy.owner)
        return refusal or problem

    def _decide(self, key: str, proxy: ResolvedProxy) -> Decision:
        """Decide the table; reports of pods and status writes alone lead to no other."""
        context, namespaces = self._context, self._namespaces(proxy)
        models = self._candidates.all()
        now_s = context.wall().timestamp()
        known = self._decided.get(key)
        if (
            known is not None
            and known.models is models
            and (known.generation, known.namespaces) == (proxy.generation, namespaces)
            and known.decision.due_s is None
        ):
            return known.decision
        spec, served, chosen = proxy.spec, models, None
        if spec.namespace_selector is not None and namespaces is not None:
            # No order among them decides about names: the oldest model does.
            chosen = frozenset(namespaces)
            served = tuple(each for each in models if each.namespace in chosen)
        memory = self._memory(key, proxy.owner)
        decision = decide(
            served,
            proxy.namespaces,
            spec.model_selector,
            proxy=key,
            memory=memory,
            now_s=now_s,
            gone=self._gone(memory, chosen),
        )
        self._decided[key] = _Decided(proxy.generation, namespaces, models, decision)
        return decision

    def _gone(self, memory: Memory, chosen: frozenset[str] | None) -> frozenset[str]:
        """Return which of the namespaces that names may be kept for are deleted, or going.

        So are those that a selector of namespaces does not choose any more.
        """
        store, found = self._context.store, set()
        kept = (each.holder for each in memory.reservations.values())
        for name in {claims.namespace_of(key) for key in (*kept, *memory.holders.values())}:
            live = store.get(NAMESPACE, "", name)
            left = chosen is not None and name not in chosen
            if left or live is None or "deletionTimestamp" in live["metadata"]:
                found.add(name)
        return frozenset(found)

    def _memory(self, key: str, owner: Owner) -> Memory:
        """Return what the last decision left: this process's, else what the table in force says."""
        context = self._context
        last = context.book.decision(key)
        if last is not None:
            return last.memory
        head_name = names.routes_name(owner.name)
        head = context.store.get(CONFIG_MAP, owner.namespace, head_name)
        if head is None or not is_ours(CONFIG_MAP, head, owner):
            return NO_MEMORY
        holders = {}
        try:
            shards = {
                digest: decode_shard(digest, each["binaryData"][KEY_PACKED])
                for _, each in context.store.children(owner.uid, CONFIG_MAP)
                if KEY_PACKED in each.get("binaryData", {})
                and (digest := each["metadata"]["name"].removeprefix(f"{head_name}-"))
            }
            for route in decode(head.get("data", {}), shards).routes:
                for name in (*route.names, *route.adapters):
                    holders[name.casefold()] = route.key
        except RoutesError as error:
            _log.warning("the table in force tells no holders of names: error=%s", error)
        annotations = head["metadata"].get("annotations", {})
        return Memory(holders, claims.decode(annotations.get(RESERVED_ANNOTATION, "")))

    def _namespaces(self, proxy: ResolvedProxy) -> tuple[str, ...] | None:
        """Return the namespaces that a proxy serves, None for all."""
        selector, store = proxy.spec.namespace_selector, self._context.store
        if selector is None:
            return proxy.namespaces
        found = []
        for ref in store.refs(NAMESPACE):
            live = store.get(NAMESPACE, ref.namespace, ref.name)
            if live is not None and matches(selector, live["metadata"].get("labels") or {}):
                found.append(ref.name)
        return tuple(sorted(found))

    def _build_tables(
        self, key: str, proxy: ResolvedProxy, decision: Decision
    ) -> tuple[list[tuple[Kind, Manifest]], Problem | None]:
        """Return the table's ConfigMaps, the head last; if it does not fit, those in force."""
        try:
            head = desired.build_routes(proxy, decision.table)
        except TableTooLargeError as error:
            text = f"{error}: spread the models over several NIMProxies"
            kept = list(self._context.store.children(proxy.owner.uid, CONFIG_MAP))
            return kept, Problem(Reason.TABLE_TOO_LARGE, text, stalled=True)
        if reserved := claims.encode(decision.reservations):
            head["metadata"]["annotations"] = {RESERVED_ANNOTATION: reserved}
        shards = desired.build_shards(proxy, decision.table, self._packed.get(key, {}))
        self._packed[key] = {
            digest: shard["binaryData"][KEY_PACKED] for digest, shard in shards.items()
        }
        return [(CONFIG_MAP, each) for each in (*shards.values(), head)], None

    async def _bind(self, children: list[tuple[Kind, Manifest]], owner: Owner) -> None:
        """Make the rights; a served namespace that is going must not keep the table waiting."""
        for kind, manifest in children:
            try:
                await self._context.applier.apply(kind, manifest, owner)
            except NamespaceTerminatingError:
                if manifest["metadata"]["namespace"] == owner.namespace:
                    raise

    async def _publish(
        self, owner: Owner, key: str, decision: Decision, tables: list[tuple[Kind, Manifest]]
    ) -> None:
        """Write the table: its shards, then the head that names them. Old shards go later."""
        context = self._context
        *shards, (_, head) = tables
        for kind, shard in shards:
            await context.applier.apply(kind, shard, owner)
        before = context.store.get(CONFIG_MAP, owner.namespace, names.routes_name(owner.name))
        answer = await context.applier.apply(CONFIG_MAP, head, owner)
        written = before is None or (
            before["metadata"]["resourceVersion"] != answer["metadata"]["resourceVersion"]
        )
        hold_s = context.settings.table_period_s if written else TABLE_UNCHANGED_HOLD_S
        ref = Ref(PROXY.kind, owner.namespace, owner.name)
        context.workers.hold(ref, hold_s)
        if decision.due_s is not None:
            # Earlier, if the namespace that a name is kept for goes: nothing else tells of that.
            delay_s = max(0.0, decision.due_s - context.wall().timestamp())
            context.workers.mark(ref, delay_s=min(delay_s, KEPT_NAME_RECHECK_S))
        context.metrics.routes.labels(owner.namespace, owner.name).set(len(decision.routes))
        context.mark_models(context.book.decide(key, decision))

    async def _report(self, live: Manifest, key: str, problem: Problem | None) -> None:
        context, metadata = self._context, live["metadata"]
        pods = [pod_facts(pod) for _, pod in context.store.children(metadata["uid"], POD)]
        ready = [pod for pod in pods if pod.ready and pod.address and not pod.deleting]
        affected = context.book.pods(key, (pod.uid for pod in ready), context.clock())
        wanted = live.get("spec", {}).get("replicas", 2)
        # A pod that drains is heard until it is gone: its requests count as well.
        context.channel.follow(key, context.loads.follow(key, pods, wanted=wanted))
        for pod in ready:
            if (state := context.loads.state(key, pod.uid)) is not None:
                affected |= context.book.report(key, pod.uid, state, context.clock())
        context.mark_models(affected)
        facts = self._facts(live, key, pods, problem)
        status = self._status(live, key, facts)
        verdicts = conditions.proxy_verdicts(facts)
        await context.reporter.report(PROXY, live, verdicts, status)
        if facts.diagnosis.recheck_s is not None:
            ref = Ref(PROXY.kind, metadata["namespace"], metadata["name"])
            context.workers.mark(ref, delay_s=facts.diagnosis.recheck_s)

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
            diagnosis=diagnose(deployment, pods, Workload(), context.wall().timestamp()),
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


def _head_name(proxy: ResolvedProxy) -> str:
    return names.routes_name(proxy.owner.name)
