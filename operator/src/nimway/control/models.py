"""Reconciles one NIMModel: observe, resolve, desired, apply, report."""

from dataclasses import dataclass, replace

from nimway.api.nimmodel import Storage
from nimway.api.status import ConditionType
from nimway.control import conditions
from nimway.control.apply import OwnerGoneError
from nimway.control.claims import refusals_of, refused_names
from nimway.control.conditions import ModelFacts, Problem, RouteView
from nimway.control.context import STATUS_DELAY_S, Context
from nimway.control.desired import names
from nimway.control.desired.model import build_model, build_model_monitor
from nimway.control.diagnosis import Workload, diagnose
from nimway.control.facts import claim_facts, deployment_facts, pod_facts
from nimway.control.kinds import (
    CLAIM,
    DEPLOYMENT,
    MODEL,
    POD,
    SERVICE,
    SERVICE_MONITOR,
    Manifest,
    Ref,
)
from nimway.control.problems import REPORTED, outcome_of
from nimway.control.resolve import ResolvedModel, resolve_model
from nimway.control.routing import Candidate, candidate
from nimway.control.scaling import Autoscaler
from nimway.control.sleep import rounded_s, usual_s

REFUSED_NAMES_MAX = 512
"""As the schema allows: six proxies may refuse all names of a model with the most."""

BEHIND_S = 1.0
"""How long a report waits for a proxy to publish the model's names: typically it takes 0.1 s."""

ORDINARY_FINALIZERS = frozenset({"foregroundDeletion", "orphan"})
"""The garbage collector's own: what it does next takes moments."""

_NOT_OF_LEAVING = frozenset({"conditions", "observedGeneration", "servedModels"})


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of the children: the Deployment as the server holds it, or a problem.

    `unfinished_s` is after how long the rest is to be done, None if all is.
    """

    deployment: Manifest | None
    unfinished_s: float | None
    problem: Problem | None = None
    retry: Exception | None = None
    recheck_s: float | None = None


class ModelReconciler:
    """Makes a NIMModel's children and status follow its spec."""

    def __init__(self, context: Context, autoscaler: Autoscaler) -> None:
        self._context = context
        self._autoscaler = autoscaler
        self._behind: dict[Ref, tuple[Candidate, float]] = {}

    async def reconcile(self, ref: Ref) -> None:
        """Do it once.

        Raises:
            Exception: it has to be tried again; what its user should know is reported.
        """
        live = self._context.store.get(MODEL, ref.namespace, ref.name)
        if live is None or "deletionTimestamp" in live["metadata"]:
            self._autoscaler.forget(f"{ref.namespace}/{ref.name}")
            self._behind.pop(ref, None)
            if live is not None:
                await self._report_leaving(live)
            return  # the garbage collector takes the children, the proxies drop the route
        model: ResolvedModel | None = None
        try:
            model = resolve_model(live)
            applied = await self._apply(model)
        except OwnerGoneError:
            self._context.mark_proxies()
            return
        except REPORTED as error:
            previous = live.get("status", {}).get("conditions", ())
            outcome = outcome_of(error, conditions.verdict_of(previous, ConditionType.RECONCILING))
            deployment = self._own_deployment(ref, live["metadata"]["uid"])
            applied = Applied(deployment, None, outcome.problem, outcome.retry, outcome.recheck_s)
        if applied.unfinished_s is not None:
            # Of many new models each gets its Deployment first: the pods take the longest.
            self._context.workers.defer(ref)
            self._context.workers.mark(ref, delay_s=applied.unfinished_s)
            return
        await self._report(live, model, applied)
        self._autoscaler.changed(live)
        if applied.recheck_s is not None:
            self._context.workers.mark(ref, delay_s=applied.recheck_s)
        if fight := self._context.applier.fight(live["metadata"]["uid"]):
            self._context.workers.mark(ref, delay_s=fight.again_s)
        if applied.retry is not None:
            raise applied.retry

    def _own_deployment(self, ref: Ref, uid: str) -> Manifest | None:
        """Return its Deployment; what another object's of that name says is not about it."""
        store, name = self._context.store, names.slug(ref.name)
        owner = store.owner_uid(Ref(DEPLOYMENT.kind, ref.namespace, name))
        return store.get(DEPLOYMENT, ref.namespace, name) if owner == uid else None

    async def _apply(self, model: ResolvedModel) -> Applied:
        context, owner = self._context, model.owner
        live = context.store.get(DEPLOYMENT, owner.namespace, names.slug(owner.name))
        claim = context.store.get(CLAIM, owner.namespace, names.claim_name(owner.name))
        children = build_model(model, live, claim)
        monitor = build_model_monitor(model)
        if monitor is not None and context.monitors.served:
            children.append((SERVICE_MONITOR, monitor))
        await context.applier.confirm(owner, children)
        if live is None:
            # Nothing goes before it but a claim, which it shall mount only if that is its own.
            while children[0][0] != DEPLOYMENT:
                await context.applier.apply(*children.pop(0), owner)
            return Applied(await context.applier.apply(*children[0], owner), unfinished_s=0.0)
        service = Ref(SERVICE.kind, owner.namespace, names.slug(owner.name))
        lacked = service not in context.store
        await context.applier.apply_all(children, owner)
        await context.applier.prune(children, owner)
        deployment = context.store.get(DEPLOYMENT, owner.namespace, names.slug(owner.name))
        # The pods' first news is a moment away: one status instead of two.
        is_new = lacked and service in context.store
        return Applied(deployment, unfinished_s=STATUS_DELAY_S if is_new else None)

    async def _report(self, live: Manifest, model: ResolvedModel | None, applied: Applied) -> None:
        context, metadata = self._context, live["metadata"]
        key = f"{metadata['namespace']}/{metadata['name']}"
        claim = candidate(live)
        view = context.book.view(key, context.proxy_keys(), context.clock(), claim)
        ref = Ref(MODEL.kind, metadata["namespace"], metadata["name"])
        if self._is_a_moment_behind(ref, claim, view):
            if applied.problem is None:
                return
            view = replace(view, behind=())
        facts = self._facts(live, model, applied, view)
        previous = live.get("status", {})
        kept = conditions.verdict_of(previous.get("conditions", ()), ConditionType.ROUTED)
        if view.behind and previous.get("observedGeneration") != metadata["generation"]:
            kept = None  # it spoke of another spec, which a table of before may have
        verdicts = conditions.model_verdicts(facts, kept)
        if view.pending and "servedModels" in previous:
            served = tuple(previous["servedModels"])
        else:
            served = view.names
        if verdicts[ConditionType.ROUTED].status != "True":
            served = ()
        status = status_fields(live, model, facts, served)
        if facts.autoscaled is not None:
            scaled = self._autoscaler.status(live, facts.replicas, facts.autoscaled)
            status["autoscaling"] = scaled
        await context.reporter.report(MODEL, live, verdicts, status)
        if facts.diagnosis.recheck_s is not None:
            context.workers.mark(ref, delay_s=facts.diagnosis.recheck_s)
        if rounded_s(usual_s({"status": status})) != rounded_s(usual_s(live)):
            context.mark_proxies()  # the routes say how long a cold start takes

    def _is_a_moment_behind(self, ref: Ref, claim: Candidate | None, view: RouteView) -> bool:
        """Tell whether a proxy is about to take the model's names over, and then look again.

        What is told meanwhile would be another status, and one that the next moment belies.
        """
        if claim is None or not view.behind:
            self._behind.pop(ref, None)
            return False
        now_s = self._context.clock()
        before, since_s = self._behind.get(ref, (None, 0.0))
        if before != claim:
            self._behind[ref], since_s = (claim, now_s), now_s
        left_s = since_s + BEHIND_S - now_s
        if left_s > 0:
            self._context.workers.mark(ref, delay_s=left_s)
        return left_s > 0

    async def _report_leaving(self, live: Manifest) -> None:
        """Say of a model that somebody's finalizers keep that it is not served any more."""
        finalizers = set(live["metadata"].get("finalizers", ())) - ORDINARY_FINALIZERS
        if not finalizers:
            return
        previous = live.get("status", {})
        available = conditions.verdict_of(previous.get("conditions", ()), ConditionType.AVAILABLE)
        fields = {key: value for key, value in previous.items() if key not in _NOT_OF_LEAVING}
        verdicts = conditions.leaving_verdicts(finalizers, available)
        await self._context.reporter.report(MODEL, live, verdicts, fields)

    def _facts(
        self, live: Manifest, model: ResolvedModel | None, applied: Applied, view: RouteView
    ) -> ModelFacts:
        metadata = live["metadata"]
        deployment = deployment_facts(applied.deployment)
        children = list(self._context.store.children(metadata["uid"], POD, CLAIM))
        pods = [pod_facts(each) for kind, each in children if kind == POD]
        claims = [claim_facts(each) for kind, each in children if kind == CLAIM]
        fight = self._context.applier.fight(metadata["uid"])
        workload = workload_of(model)
        replicas = model.replicas if model else live.get("spec", {}).get("replicas", 1)
        return ModelFacts(
            generation=metadata["generation"],
            replicas=replicas,
            deployment=deployment,
            diagnosis=diagnose(
                deployment,
                pods,
                workload,
                self._context.wall().timestamp(),
                unbound=filter(None, claims),
            ),
            routes=view,
            problem=applied.problem,
            workload=workload,
            autoscaled=self._autoscaler.view(live, replicas, deployment),
            fight=fight.text if fight is not None else "",
        )


def workload_of(model: ResolvedModel | None) -> Workload:
    """Return what diagnosing a model's pods needs of its spec."""
    if model is None:
        return Workload()
    spec = model.spec
    return Workload(
        gpus=spec.gpus, gpu_resource=spec.gpu_resource, single_node=_is_for_one_node(spec.storage)
    )


def _is_for_one_node(storage: Storage | None) -> bool | None:
    claim = storage.pvc if storage else None
    if claim is None:
        return False
    if claim.size is None:
        return None
    return claim.access_mode in {None, "ReadWriteOnce", "ReadWriteOncePod"}


def status_fields(
    live: Manifest, model: ResolvedModel | None, facts: ModelFacts, served: tuple[str, ...]
) -> Manifest:
    """Return the status beside conditions; what an invalid spec cannot tell stays as it was."""
    previous = live.get("status", {})
    status: Manifest = {
        "replicas": facts.deployment.replicas,
        "readyReplicas": facts.deployment.ready,
        "ready": f"{facts.deployment.ready}/{facts.replicas}",
    }
    if model is None:
        for key in ("selector", "endpoint", "image"):
            if key in previous:
                status[key] = previous[key]
    else:
        owner, spec = model.owner, model.spec
        selector = names.selector_labels(names.MODEL_COMPONENT, owner.name)
        status["selector"] = names.selector_text(selector)
        status["endpoint"] = f"http://{names.slug(owner.name)}.{owner.namespace}.svc:{spec.port}"
        status["image"] = spec.image
    if served:
        status["servedModels"] = list(served)
    if refused := _refused(previous, facts.routes):
        status["refusedNames"] = refused
    return status


def _refused(previous: Manifest, view: RouteView) -> list[Manifest]:
    """Return the names that it lost; of a proxy that is not decided yet what was known stays."""
    known = (each for each in refusals_of(previous) if each.proxy in view.undecided)
    return refused_names((*view.refused, *known))[:REFUSED_NAMES_MAX]
