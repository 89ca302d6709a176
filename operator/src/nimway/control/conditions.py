"""From facts to conditions: what users and tools read about a NIMModel or a NIMProxy.

Pure. `Ready` answers "can I use it?", `Reconciling` and `Stalled` follow kstatus (only
`Stalled=True` makes Flux and Helm give up), every reason has a message a person can act on. While
a rolling update keeps serving, `Ready` stays.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nimway.api.status import ConditionType, Reason
from nimway.control.claims import Refusal
from nimway.control.diagnosis import NO_WORKLOAD, NOTHING_WAITS, Diagnosis, Workload
from nimway.control.facts import DeploymentFacts
from nimway.control.kinds import Manifest
from nimway.control.sleep import Autoscaled, asleep_text, waking_text

NAMES_TOLD_MAX = 10
"""Of many lost names the message has some; `status.refusedNames` has all."""

PODS_TOLD_MAX = 3
"""Of many proxy pods that are not heard."""

_WHY_UNHEARD = "is there a NetworkPolicy or a mesh between the operator and the proxy?"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a reconcile could not do its work; `stalled` if only a person can change that."""

    reason: Reason
    message: str
    stalled: bool


@dataclass(frozen=True, slots=True)
class RouteView:
    """How the proxies see one model.

    `proxies` select it; of the `pods_ready` of those that lead to it `pods_serving` serve its
    current route. `pending` means that some have not been heard yet, so nothing new is known; of
    those in `undecided` not even the table is known. `names` are those of proxies with ready pods,
    of all if none has one; `refused` are the names it lost. `behind` says in words what proxies
    lack to lead to the model as it now is, `unheard` are pods that were silent for too long.
    """

    proxies: int = 0
    pods_ready: int = 0
    pods_serving: int = 0
    pending: bool = False
    names: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    undecided: frozenset[str] = frozenset()
    behind: tuple[str, ...] = ()
    unheard: tuple[str, ...] = ()

    @property
    def nameless(self) -> bool:
        """Whether it lost all its names, at every proxy that selects it."""
        return bool(self.refused) and not self.names and not self.behind


@dataclass(frozen=True, slots=True)
class TableView:
    """How the ready pods of one proxy serve its latest table.

    `unheard` are those that were silent for too long. `late` tells that some pod is behind for
    longer than a change takes, `recheck_s` after how long time alone may make another so.
    """

    pods_ready: int = 0
    pods_current: int = 0
    unheard: tuple[str, ...] = ()
    late: bool = False
    recheck_s: float | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """All that a model's conditions depend on; `fight` says what somebody else keeps changing."""

    generation: int
    replicas: int
    deployment: DeploymentFacts
    diagnosis: Diagnosis
    routes: RouteView
    problem: Problem | None = None
    workload: Workload = NO_WORKLOAD
    autoscaled: Autoscaled | None = None
    fight: str = ""


@dataclass(frozen=True, slots=True)
class ProxyFacts:
    """All that a proxy's conditions depend on; `fight` says what somebody else keeps changing."""

    generation: int
    replicas: int
    models: int
    table: TableView
    deployment: DeploymentFacts
    diagnosis: Diagnosis
    problem: Problem | None = None
    fight: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One condition before it has a time: its status, reason and message."""

    status: str
    reason: Reason
    message: str


def model_verdicts(facts: ModelFacts, kept_routed: Verdict | None) -> dict[str, Verdict]:
    """Decide all conditions of a NIMModel; `kept_routed` stands while proxies are not heard."""
    routed = _routed(facts.routes, kept_routed)
    available = _model_available(facts)
    ready = _model_ready(facts, routed, available)
    return {
        ConditionType.READY: ready,
        ConditionType.ROUTED: routed,
        ConditionType.AVAILABLE: available,
        **_progress(facts, ready, _model_stalled(facts)),
    }


def proxy_verdicts(facts: ProxyFacts) -> dict[str, Verdict]:
    """Decide all conditions of a NIMProxy."""
    available = _available(facts.deployment, facts.diagnosis, facts.replicas)
    if facts.problem is not None and (facts.problem.stalled or available.status == "False"):
        ready = Verdict("False", facts.problem.reason, facts.problem.message)
    elif facts.replicas == 0:
        ready = Verdict("True", Reason.SWITCHED_OFF, available.message)
    elif available.status == "False":
        ready = available
    else:
        ready = Verdict("True", Reason.SERVING, f"serving {facts.models} models")
    return {
        ConditionType.READY: ready,
        ConditionType.AVAILABLE: available,
        **_progress(facts, ready, _stalled(facts.problem, facts.diagnosis), _late(facts.table)),
    }


def leaving_verdicts(finalizers: Iterable[str], kept: Verdict | None) -> dict[str, Verdict]:
    """Decide all conditions of a NIMModel that others' finalizers keep; `kept` is Available."""
    told = ", ".join(sorted(finalizers))
    text = f"deleted, and routed no more; it is kept by the finalizers of others: {told}"
    gone = Verdict("False", Reason.TERMINATING, text)
    return {
        ConditionType.READY: gone,
        ConditionType.ROUTED: gone,
        ConditionType.AVAILABLE: kept or gone,
        ConditionType.RECONCILING: replace(gone, status="True"),
        ConditionType.STALLED: gone,
    }


def verdict_of(conditions: Iterable[Manifest], kind: ConditionType) -> Verdict | None:
    """Return what was reported before for one condition type."""
    for each in conditions:
        if each.get("type") == kind:
            return Verdict(each["status"], each["reason"], each["message"])
    return None


def render(
    verdicts: Mapping[str, Verdict], previous: Sequence[Manifest], generation: int, now: str
) -> list[Manifest]:
    """Return meta/v1 conditions; a status that did not change keeps its transition time."""
    before = {each.get("type"): each for each in previous}
    rendered = []
    for kind, verdict in verdicts.items():
        known = before.get(str(kind), {})
        same = known.get("status") == verdict.status
        rendered.append(
            {
                "type": str(kind),
                "status": verdict.status,
                "reason": str(verdict.reason),
                "message": verdict.message,
                "observedGeneration": generation,
                "lastTransitionTime": known["lastTransitionTime"] if same else now,
            }
        )
    return rendered


def _available(deployment: DeploymentFacts, diagnosis: Diagnosis, replicas: int) -> Verdict:
    if replicas == 0:
        return Verdict("False", Reason.SWITCHED_OFF, "switched off: spec.replicas is 0")
    if deployment.available > 0:
        return Verdict(
            "True", Reason.SERVING, f"{deployment.available} of {replicas} replicas are available"
        )
    return Verdict("False", diagnosis.reason, diagnosis.message)


_ON_ITS_WAY = frozenset({Reason.PROGRESSING, Reason.LOADING_WEIGHTS})
"""What a model that wakes, or is updated, is expected to wait for; the rest is told as it is."""


def _model_available(facts: ModelFacts) -> Verdict:
    scaled, deployment = facts.autoscaled, facts.deployment
    verdict = _available(deployment, facts.diagnosis, facts.replicas)
    if scaled is None or verdict.status == "True":
        return verdict
    if facts.replicas == 0:
        return Verdict("False", Reason.SCALED_TO_ZERO, asleep_text(scaled))
    if scaled.waking is not None and verdict.reason in _ON_ITS_WAY:
        text = waking_text(scaled, scaled.waking, verdict.message)
        return Verdict("False", Reason.WAKING, text)
    return verdict


def _routed(view: RouteView, kept: Verdict | None) -> Verdict:
    lost = f"; {refused_text(view.refused)}" if view.refused else ""
    if view.behind and not (view.undecided and kept is not None and kept.status == "True"):
        return Verdict("False", Reason.NOT_ROUTED, f"{'; '.join(view.behind)}{lost}")
    if view.proxies == 0:
        if view.pending and kept is not None:
            return kept
        return Verdict("Unknown", Reason.NO_PROXY, "no NIMProxy selects this model")
    if view.nameless:
        return Verdict("False", Reason.NAME_CONFLICT, refused_text(view.refused))
    if view.pods_ready == 0 and not view.pending:
        return Verdict("False", Reason.PROXY_NOT_READY, f"no proxy pod is ready{lost}")
    if view.pending:
        return kept or Verdict(
            "False", Reason.NOT_ROUTED, f"waiting for the proxies' reports{lost}"
        )
    if view.pods_serving < view.pods_ready:
        text = f"{view.pods_serving} of {view.pods_ready} proxy pods serve the current route"
        if view.unheard:
            text += f"; {_unheard_text(view.unheard)}"
            if older := view.pods_ready - view.pods_serving - len(view.unheard):
                text += f"; {older} serve an older one"
        return Verdict("False", Reason.NOT_ROUTED, f"{text}{lost}")
    text = f"served by {view.pods_ready} proxy pods as {', '.join(view.names)}{lost}"
    return Verdict("True", Reason.SERVING, text)


def _unheard_text(pods: Sequence[str]) -> str:
    more = f" and {len(pods) - PODS_TOLD_MAX} more" if len(pods) > PODS_TOLD_MAX else ""
    return f"not heard: {', '.join(pods[:PODS_TOLD_MAX])}{more} ({_WHY_UNHEARD})"


def _late(table: TableView) -> Verdict | None:
    """Say which pods have not come to serve the latest table."""
    if not table.late:
        return None
    text = f"{table.pods_current} of {table.pods_ready} pods serve the table"
    if table.unheard:
        text += f"; {_unheard_text(table.unheard)}"
    if table.pods_ready - table.pods_current > len(table.unheard):
        text += "; the others serve an older one: read their logs"
    return Verdict("True", Reason.NOT_ROUTED, text)


def refused_text(refused: Iterable[Refusal]) -> str:
    """Say why a model did not get its names."""
    found = sorted({each.text for each in refused})
    more = f"; and {len(found) - NAMES_TOLD_MAX} more" if len(found) > NAMES_TOLD_MAX else ""
    return "; ".join(found[:NAMES_TOLD_MAX]) + more


def _nameless(facts: ModelFacts) -> Verdict:
    """Say that no proxy leads to a model, and what it costs meanwhile."""
    text, pods = refused_text(facts.routes.refused), facts.deployment.replicas
    if pods:
        gpus, resource = pods * facts.workload.gpus, facts.workload.gpu_resource
        held = f", holding {gpus} {resource}" if gpus else ""
        text += (
            f"; no proxy leads to this model, but its pods run on ({pods}{held}): "
            "give it an alias of its own, or set spec.replicas to 0, where model can be changed too"
        )
    return Verdict("False", Reason.NAME_CONFLICT, text)


def _model_ready(facts: ModelFacts, routed: Verdict, available: Verdict) -> Verdict:
    problem = facts.problem
    if problem is not None and (problem.stalled or available.status == "False"):
        return Verdict("False", problem.reason, problem.message)
    if routed.reason == Reason.NAME_CONFLICT:
        return _nameless(facts)
    asleep = facts.replicas == 0 and facts.autoscaled is not None
    if facts.replicas == 0 and not asleep:
        return Verdict("True", Reason.SWITCHED_OFF, available.message)
    if available.status == "False" and not asleep:
        return available
    if routed.status == "False":
        return Verdict("False", routed.reason, routed.message)
    if asleep:  # whom no proxy leads to nobody can wake
        return Verdict("True", Reason.SCALED_TO_ZERO, available.message)
    text = f"{facts.deployment.available} of {facts.replicas} replicas serve"
    return Verdict("True", Reason.SERVING, text)


def _model_stalled(facts: ModelFacts) -> Verdict | None:
    view = facts.routes
    if facts.problem is None and view.nameless and any(r.until_s is None for r in view.refused):
        return Verdict("True", Reason.NAME_CONFLICT, _nameless(facts).message)
    return _stalled(facts.problem, facts.diagnosis)


def _stalled(problem: Problem | None, diagnosis: Diagnosis) -> Verdict | None:
    if problem is not None and problem.stalled:
        return Verdict("True", problem.reason, problem.message)
    if problem is None and diagnosis.stalled:
        return Verdict("True", diagnosis.reason, diagnosis.message)
    return None


def _progress(
    facts: ModelFacts | ProxyFacts,
    ready: Verdict,
    stalled: Verdict | None,
    late: Verdict | None = None,
) -> dict[str, Verdict]:
    deployment, problem = facts.deployment, facts.problem
    if problem is None and facts.fight:
        problem = Problem(Reason.CONTESTED, facts.fight, stalled=False)
    settled = Verdict("False", Reason.SETTLED, "as declared")
    if stalled is not None:
        halted = Verdict("False", stalled.reason, stalled.message)
        return {ConditionType.RECONCILING: halted, ConditionType.STALLED: stalled}
    if problem is None and late is None and ready.status == "True" and deployment.settled:
        return {ConditionType.RECONCILING: settled, ConditionType.STALLED: settled}
    if problem is not None:
        moving = Verdict("True", problem.reason, problem.message)
    elif late is not None and deployment.settled:
        moving = late
    elif ready.status == "True":
        text = (
            f"{deployment.updated} of {deployment.wanted} replicas are current, "
            f"{deployment.available} are available"
        )
        moving = Verdict("True", Reason.PROGRESSING, text)
        if ready.reason is Reason.SERVING and facts.diagnosis != NOTHING_WAITS:
            # Nobody notices an update that hangs while the old pods serve, unless it says why.
            cause = facts.diagnosis
            reason = Reason.PROGRESSING if cause.reason in _ON_ITS_WAY else cause.reason
            moving = Verdict("True", reason, f"{text}; {cause.message}")
    else:
        moving = Verdict("True", ready.reason, ready.message)
    return {
        ConditionType.RECONCILING: moving,
        ConditionType.STALLED: Verdict("False", Reason.PROGRESSING, "in progress"),
    }
