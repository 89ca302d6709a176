"""From facts to conditions: what users and tools read about a NIMModel or a NIMProxy.

Pure. `Ready` answers "can I use it?", `Reconciling` and `Stalled` follow kstatus (only
`Stalled=True` makes Flux and Helm give up), every reason has a message a person can act on. While
a rolling update keeps serving, `Ready` stays.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nimway.api.status import ConditionType, Reason
from nimway.control.diagnosis import Diagnosis
from nimway.control.facts import DeploymentFacts
from nimway.control.kinds import Manifest


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a reconcile could not do its work; `stalled` if only a person can change that."""

    reason: Reason
    message: str
    stalled: bool


@dataclass(frozen=True, slots=True)
class RouteView:
    """How the proxies see one model.

    `proxies` select it; of their `pods_ready` pods `pods_serving` serve a table with its current
    route. `pending` means that some have not been heard yet, so nothing new is known.
    `refused` are the names it lost, with the winner's key.
    """

    proxies: int = 0
    pods_ready: int = 0
    pods_serving: int = 0
    proxies_down: int = 0
    pending: bool = False
    names: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """All that a model's conditions depend on."""

    generation: int
    replicas: int
    deployment: DeploymentFacts
    diagnosis: Diagnosis
    routes: RouteView
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class ProxyFacts:
    """All that a proxy's conditions depend on."""

    generation: int
    replicas: int
    models: int
    pods_current: int
    deployment: DeploymentFacts
    diagnosis: Diagnosis
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One condition before it has a time: its status, reason and message."""

    status: str
    reason: Reason
    message: str


def model_verdicts(facts: ModelFacts, kept_routed: Verdict | None) -> dict[str, Verdict]:
    """Decide all conditions of a NIMModel; `kept_routed` stands while proxies are not heard."""
    routed = _routed(facts.routes, kept_routed)
    available = _available(facts.deployment, facts.diagnosis, facts.replicas)
    ready = _model_ready(facts, routed, available)
    return {
        ConditionType.READY: ready,
        ConditionType.ROUTED: routed,
        ConditionType.AVAILABLE: available,
        **_progress(facts.deployment, ready, _model_stalled(facts)),
    }


def proxy_verdicts(facts: ProxyFacts) -> dict[str, Verdict]:
    """Decide all conditions of a NIMProxy."""
    available = _available(facts.deployment, facts.diagnosis, facts.replicas)
    if facts.problem is not None:
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
        **_progress(facts.deployment, ready, _stalled(facts.problem, facts.diagnosis)),
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


def _routed(view: RouteView, kept: Verdict | None) -> Verdict:
    if view.proxies == 0:
        if view.pending and kept is not None:
            return kept
        return Verdict("Unknown", Reason.NO_PROXY, "no NIMProxy selects this model")
    if view.refused and not view.names:
        return Verdict("False", Reason.NAME_CONFLICT, refused_text(view.refused))
    if view.proxies_down:
        return Verdict("False", Reason.PROXY_NOT_READY, "no proxy pod is ready")
    if view.pending:
        return kept or Verdict("False", Reason.NOT_ROUTED, "waiting for the proxies' reports")
    if view.pods_serving < view.pods_ready:
        text = f"{view.pods_serving} of {view.pods_ready} proxy pods serve the current route"
        return Verdict("False", Reason.NOT_ROUTED, text)
    text = f"served by {view.pods_ready} proxy pods as {', '.join(view.names)}"
    if view.refused:
        text += f"; {refused_text(view.refused)}"
    return Verdict("True", Reason.SERVING, text)


def refused_text(refused: Mapping[str, str]) -> str:
    """Say who holds the names that a model lost."""
    return "; ".join(
        f"the name {name} is held by NIMModel {holder}" for name, holder in sorted(refused.items())
    )


def _model_ready(facts: ModelFacts, routed: Verdict, available: Verdict) -> Verdict:
    if facts.problem is not None:
        return Verdict("False", facts.problem.reason, facts.problem.message)
    if routed.reason == Reason.NAME_CONFLICT:
        return routed
    if facts.replicas == 0:
        return Verdict("True", Reason.SWITCHED_OFF, available.message)
    if available.status == "False":
        return available
    if routed.status == "False":
        return Verdict("False", routed.reason, routed.message)
    text = f"{facts.deployment.available} of {facts.replicas} replicas serve"
    return Verdict("True", Reason.SERVING, text)


def _model_stalled(facts: ModelFacts) -> Verdict | None:
    routes = facts.routes
    if facts.problem is None and routes.refused and not routes.names:
        return Verdict("True", Reason.NAME_CONFLICT, refused_text(routes.refused))
    return _stalled(facts.problem, facts.diagnosis)


def _stalled(problem: Problem | None, diagnosis: Diagnosis) -> Verdict | None:
    if problem is not None and problem.stalled:
        return Verdict("True", problem.reason, problem.message)
    if problem is None and diagnosis.stalled:
        return Verdict("True", diagnosis.reason, diagnosis.message)
    return None


def _progress(
    deployment: DeploymentFacts, ready: Verdict, stalled: Verdict | None
) -> dict[str, Verdict]:
    settled = Verdict("False", Reason.SETTLED, "as declared")
    if stalled is not None:
        halted = Verdict("False", stalled.reason, stalled.message)
        return {ConditionType.RECONCILING: halted, ConditionType.STALLED: stalled}
    if ready.status == "True" and deployment.settled:
        return {ConditionType.RECONCILING: settled, ConditionType.STALLED: settled}
    if ready.status == "True":
        text = (
            f"{deployment.updated} of {deployment.wanted} replicas are current, "
            f"{deployment.available} are available"
        )
        moving = Verdict("True", Reason.PROGRESSING, text)
    else:
        moving = Verdict("True", ready.reason, ready.message)
    return {
        ConditionType.RECONCILING: moving,
        ConditionType.STALLED: Verdict("False", Reason.PROGRESSING, "in progress"),
    }
