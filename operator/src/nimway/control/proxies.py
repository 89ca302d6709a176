"""Reconciles one NIMProxy: its routing table first, then its rights, its pods and its status."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from nimway.api.status import ConditionType, Reason
from nimway.control import claims, conditions
from nimway.control.apply import OwnerGoneError
from nimway.control.backchannel import state_address
from nimway.control.candidates import Candidates
from nimway.control.claims import NO_MEMORY, RESERVED_ANNOTATION, Memory
from nimway.control.client import ConflictError, NamespaceTerminatingError, NotFoundError
from nimway.control.conditions import Problem, ProxyFacts, TableView
from nimway.control.context import Context
from nimway.control.desired import names
from nimway.control.desired import proxy as desired
from nimway.control.diagnosis import Workload, diagnose
from nimway.control.facts import PodFacts, deployment_facts, pod_facts
from nimway.control.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
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

_WORKLOAD = Workload(is_proxy=True)
_log = logging.getLogger(__name__)

TABLE_UNCHANGED_HOLD_S = 0.05
KEPT_NAME_RECHECK_S = 5.0

REFUSED_FIRST_S = 1.0
REFUSED_MAX_S = 30.0
"""Rights that are refused in another's namespace are asked for again, ever more seldom."""

REFUSED_TOLD_MAX = 3
"""Of many namespaces that refuse them."""


@dataclass(frozen=True, slots=True)
class _Decided:
    """A decision, and what it was made of."""

    generation: int
    namespaces: tuple[str, ...] | None
    models: tuple[Candidate, ...]
    decision: Decision


@dataclass(frozen=True, slots=True)
class Refused:
    """A namespace in which a proxy gets no rights: what is told of it, and when to try again."""

    problem: Problem
    delay_s: float
    due_s: float


class ProxyReconciler:
    """Makes a NIMProxy's table, children and status follow its spec and the models."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._candidates = Candidates(context.store)
        self._decided: dict[str, _Decided] = {}
        self._packed: dict[str, dict[str, str]] = {}
        self._refused: dict[str, dict[str, Refused]] = {}

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
            for memory in (self._decided, self._packed, self._refused):
                memory.pop(key, None)
            await self.sweep()
            return
        if "deletionTimestamp" in live["metadata"]:
            context.mark_models(context.book.leave(key))
            self._listen(live, key)
            return
        problem, retry = None, None
        try:
            problem = await self._apply(live, key)
        except OwnerGoneError:
            context.workers.mark(ref)
            return
        except REPORTED as error:
            previous = live.get("status", {}).get("conditions", ())
            outcome = outcome_of(error, conditions.verdict_of(previous, ConditionType.RECONCILING))
            problem, retry = outcome.problem, outcome.retry
            if outcome.recheck_s is not None:
                context.workers.mark(ref, delay_s=outcome.recheck_s)
        if problem is not None:
            self._tell_of(problem, ref, live["metadata"]["uid"])
        await self._report(live, key, problem)
        if retry is not None:
            raise retry

    def _tell_of(self, problem: Problem, ref: Ref, uid: str) -> None:
        """Have the models say why they are not in the table, if it could not be written.

        None waits for a proxy that has no table and cannot get one now. Where there is one its pods
        may serve it: what was known of it stays.
        """
        context, key = self._context, f"{ref.namespace}/{ref.name}"
        table = Ref(CONFIG_MAP.kind, ref.namespace, names.routes_name(ref.name))
        lasts = problem.reason is not Reason.TERMINATING
        tableless = lasts and context.store.owner_uid(table) != uid
        context.mark_models(context.book.fail(key, problem.message, tableless=tableless))

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
        context.book.intend(key, decision, self._decided[key].models)
        rights = desired.build_rights(proxy, decision.table.namespaces, context.settings.proxy)
        tables, problem = self._build_tables(key, proxy, decision)
        workload = desired.build_workload(proxy, context.settings.proxy)
        monitor = desired.build_proxy_monitor(proxy)
        if monitor is not None and context.monitors.served:
            workload.append((SERVICE_MONITOR, monitor))
        everything = [*rights, *tables, *workload]
        await context.applier.confirm(proxy.owner, everything)
        refused = await self._bind(key, rights, proxy.owner)
        if problem is None:
            await self._publish(proxy.owner, key, decision, tables)
        await self._bind_again(refused, rights, proxy.owner)
        context.mark_models(context.book.blind(key, self._blind(refused, rights, proxy.owner)))
        await context.applier.apply_all(workload, proxy.owner)
        await context.applier.prune(everything, proxy.owner)
        return refusal or problem or refused_problem(refused)

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

    async def _bind(
        self, key: str, children: list[tuple[Kind, Manifest]], owner: Owner
    ) -> dict[str, Refused]:
        """Make the rights, and return what is refused elsewhere: no table waits for that."""
        namespaces = {manifest["metadata"]["namespace"] for _, manifest in children}
        before = self._refused.get(key, {})
        refused = {name: each for name, each in before.items() if name in namespaces}
        self._refused[key] = refused
        for kind, manifest in children:
            if manifest["metadata"]["namespace"] == owner.namespace:
                await self._context.applier.apply(kind, manifest, owner)
            elif manifest["metadata"]["namespace"] not in refused:
                await self._bind_elsewhere(refused, (kind, manifest), owner)
        return refused

    async def _bind_again(
        self, refused: dict[str, Refused], children: list[tuple[Kind, Manifest]], owner: Owner
    ) -> None:
        """Try again where it was refused: one at a time, for a webhook may take long to refuse."""
        context = self._context
        due = min(refused, key=lambda name: refused[name].due_s, default=None)
        if due is not None and refused[due].due_s <= context.clock():
            child = next(each for each in children if each[1]["metadata"]["namespace"] == due)
            await self._bind_elsewhere(refused, child, owner)
        if refused:
            next_s = min(each.due_s for each in refused.values()) - context.clock()
            ref = Ref(PROXY.kind, owner.namespace, owner.name)
            context.workers.mark(ref, delay_s=max(0.0, next_s))

    async def _bind_elsewhere(
        self, refused: dict[str, Refused], child: tuple[Kind, Manifest], owner: Owner
    ) -> None:
        kind, manifest = child
        namespace = manifest["metadata"]["namespace"]
        before = refused.pop(namespace, None)
        try:
            await self._context.applier.apply(kind, manifest, owner)
        except (NamespaceTerminatingError, NotFoundError):
            return  # its models go with it
        except (*REPORTED, ConflictError) as error:
            refused[namespace] = refused_again(before, error, self._context.clock())

    def _blind(
        self, refused: dict[str, Refused], children: list[tuple[Kind, Manifest]], owner: Owner
    ) -> dict[str, str]:
        """Return where a proxy cannot see pods, and why; a binding of before is as good."""
        store, found = self._context.store, {}
        for kind, manifest in children:
            metadata = manifest["metadata"]
            if metadata["namespace"] in refused:
                live = store.get(kind, metadata["namespace"], metadata["name"])
                if live is None or not is_ours(kind, live, owner):
                    found[metadata["namespace"]] = refused[metadata["namespace"]].problem.message
        return found

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
        context.mark_models(context.book.decide(key, decision, context.clock()))

    async def _report(self, live: Manifest, key: str, problem: Problem | None) -> None:
        context, metadata = self._context, live["metadata"]
        pods = self._listen(live, key)
        ready = {
            pod.uid: f"{pod.name} at {state_address(pod.address)}"
            for pod in pods
            if pod.ready and pod.address and not pod.deleting
        }
        affected = context.book.pods(key, ready, context.clock())
        for uid in ready:
            if (state := context.loads.state(key, uid)) is not None:
                affected |= context.book.report(key, uid, state, context.clock())
        context.mark_models(affected | context.book.fell_silent(key, context.clock()))
        facts = self._facts(live, key, pods, problem)
        status = self._status(live, key, facts)
        verdicts = conditions.proxy_verdicts(facts)
        await context.reporter.report(PROXY, live, verdicts, status)
        ref = Ref(PROXY.kind, metadata["namespace"], metadata["name"])
        fight = context.applier.fight(metadata["uid"])
        again_s = fight.again_s if fight is not None else None
        for recheck_s in (facts.diagnosis.recheck_s, facts.table.recheck_s, again_s):
            if recheck_s is not None:
                context.workers.mark(ref, delay_s=recheck_s)

    def _listen(self, live: Manifest, key: str) -> list[PodFacts]:
        """Hear all pods of a proxy, and return them.

        One that drains is heard until it is gone: its requests count as well.
        """
        context, uid = self._context, live["metadata"]["uid"]
        pods = [pod_facts(pod) for _, pod in context.store.children(uid, POD)]
        wanted = live.get("spec", {}).get("replicas", 2)
        context.channel.follow(key, context.loads.follow(key, pods, wanted=wanted))
        return pods

    def _facts(
        self, live: Manifest, key: str, pods: list[PodFacts], problem: Problem | None
    ) -> ProxyFacts:
        context, metadata = self._context, live["metadata"]
        name = names.proxy_name(metadata["name"])
        deployment = deployment_facts(context.store.get(DEPLOYMENT, metadata["namespace"], name))
        decision = context.book.decision(key)
        fight = context.applier.fight(metadata["uid"])
        return ProxyFacts(
            generation=metadata["generation"],
            replicas=live.get("spec", {}).get("replicas", 2),
            models=len(decision.routes) if decision else 0,
            table=context.book.table(key, context.clock()),
            deployment=deployment,
            diagnosis=diagnose(deployment, pods, _WORKLOAD, context.wall().timestamp()),
            problem=problem,
            fight=fight.text if fight is not None else "",
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
        if revision := self._revision(live, key, facts.table):
            status["revision"] = revision
        return status

    def _revision(self, live: Manifest, key: str, table: TableView) -> str | None:
        """Return the revision that every ready pod serves, None if there is none.

        For the moments that a change takes it is the one before: one status instead of two.
        """
        before: str | None = live.get("status", {}).get("revision")
        decision = self._context.book.decision(key)
        if decision is None:
            return before
        if table.pods_ready == 0 or table.late:
            return None
        return decision.table.revision if table.pods_current == table.pods_ready else before


def refused_again(before: Refused | None, error: Exception, now_s: float) -> Refused:
    """Return what follows a refusal in another's namespace, in the words of the one before it."""
    problem = outcome_of(error, before.problem if before else None).problem
    delay_s = min(2 * before.delay_s, REFUSED_MAX_S) if before else REFUSED_FIRST_S
    return Refused(problem, delay_s, now_s + delay_s)


def refused_problem(refused: Mapping[str, Refused]) -> Problem | None:
    """Return what to tell of namespaces that a proxy cannot serve; all others it does."""
    if not refused:
        return None
    found = sorted(refused)
    texts = [f"cannot serve namespace {name}: {refused[name].problem.message}" for name in found]
    more = [f"and {len(found) - REFUSED_TOLD_MAX} more"] if len(found) > REFUSED_TOLD_MAX else []
    text = "; ".join((*texts[:REFUSED_TOLD_MAX], *more))
    return Problem(refused[found[0]].problem.reason, text, stalled=False)


def _head_name(proxy: ResolvedProxy) -> str:
    return names.routes_name(proxy.owner.name)
