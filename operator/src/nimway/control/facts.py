"""What live objects say, reduced to the facts that conditions are made of. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from nimway.control.clock import unix_s
from nimway.control.kinds import Manifest


@dataclass(frozen=True, slots=True)
class DeploymentFacts:
    """A Deployment's progress; `observed` tells whether its controller saw the current spec.

    `deadline_s` is what it may take, as it declares itself (`progressDeadlineSeconds`).
    """

    observed: bool
    wanted: int
    replicas: int
    updated: int
    ready: int
    available: int
    failure: str
    deadline_exceeded: bool
    deadline_s: int = 0

    @property
    def settled(self) -> bool:
        """Whether every pod is a current one and available, and no other is left."""
        return (
            self.observed
            and self.updated == self.replicas == self.wanted
            and self.available == self.wanted
        )


@dataclass(frozen=True, slots=True)
class PodFacts:
    """Why a pod does not serve: `reason` and `message` in the words of Kubernetes.

    `gone_by_s` is the end of its grace period in Unix seconds, 0 while it is not being deleted.
    `cut_off` tells that its containers were ready when its node was last heard, and that it is not.
    `begun_s` is when it was scheduled, or when its container ran first (Unix seconds), 0 before.
    `gates` are what keeps the scheduler from it, `node` is where it was put. `equipped` tells
    whether its volumes and its network are there, None of a kubelet that does not say so (before
    Kubernetes 1.29; core/v1, condition PodReadyToStartContainers).
    """

    name: str
    uid: str
    address: str
    ready: bool
    deleting: bool
    scheduled: bool
    running: bool
    reason: str
    message: str
    restarts: int
    gone_by_s: int = 0
    cut_off: bool = False
    begun_s: int = 0
    gates: tuple[str, ...] = ()
    node: str = ""
    equipped: bool | None = None


NO_DEPLOYMENT = DeploymentFacts(
    observed=False,
    wanted=0,
    replicas=0,
    updated=0,
    ready=0,
    available=0,
    failure="",
    deadline_exceeded=False,
)


def deployment_facts(live: Manifest | None) -> DeploymentFacts:
    """Read a Deployment (apps/v1, DeploymentStatus)."""
    if live is None:
        return NO_DEPLOYMENT
    status = live.get("status", {})
    conditions = {each["type"]: each for each in status.get("conditions", ())}
    failure = conditions.get("ReplicaFailure", {})
    progressing = conditions.get("Progressing", {})
    return DeploymentFacts(
        observed=status.get("observedGeneration", 0) >= live["metadata"].get("generation", 0),
        wanted=live.get("spec", {}).get("replicas", 1),
        replicas=status.get("replicas", 0),
        updated=status.get("updatedReplicas", 0),
        ready=status.get("readyReplicas", 0),
        available=status.get("availableReplicas", 0),
        failure=failure.get("message", "") if failure.get("status") == "True" else "",
        deadline_exceeded=progressing.get("reason") == "ProgressDeadlineExceeded",
        deadline_s=live.get("spec", {}).get("progressDeadlineSeconds", 0),
    )


def pod_facts(live: Manifest) -> PodFacts:
    """Read a pod (core/v1, PodStatus)."""
    metadata, spec, status = live["metadata"], live.get("spec", {}), live.get("status", {})
    conditions = {each["type"]: each for each in status.get("conditions", ())}
    scheduled = conditions.get("PodScheduled", {})
    equipped = conditions.get("PodReadyToStartContainers")
    containers = [
        *status.get("initContainerStatuses", ()),
        *status.get("containerStatuses", ()),
    ]
    reason, message = _trouble(containers)
    if scheduled.get("status") == "False":
        reason, message = scheduled.get("reason", ""), scheduled.get("message", "")
    return PodFacts(
        name=metadata["name"],
        uid=metadata["uid"],
        address=status.get("podIP", ""),
        ready=conditions.get("Ready", {}).get("status") == "True",
        deleting="deletionTimestamp" in metadata,
        scheduled=scheduled.get("status") == "True",
        running=any("running" in each.get("state", {}) for each in containers),
        reason=reason,
        message=message,
        restarts=sum(each.get("restartCount", 0) for each in containers),
        gone_by_s=unix_s(metadata.get("deletionTimestamp")),
        cut_off=_is_cut_off(conditions),
        begun_s=_begun_s(scheduled, containers),
        gates=tuple(each["name"] for each in spec.get("schedulingGates", ())),
        node=spec.get("nodeName", ""),
        equipped=None if equipped is None else equipped["status"] == "True",
    )


def late_in_s(deployment: DeploymentFacts, pod: PodFacts, now_s: float) -> float:
    """Return after how long a pod that is not ready is late, 0 if it is; `now_s` in Unix seconds.

    For a Deployment that passed its deadline. That passes while its pods wait for a node or an
    image too, since neither is progress of a Deployment: a pod has all of it once it begins.
    """
    left_s = pod.begun_s + deployment.deadline_s - now_s
    return min(max(left_s, 0.0), float(deployment.deadline_s))


def is_starting(
    replicas: int, deployment: DeploymentFacts, pods: Iterable[PodFacts], now_s: float
) -> bool:
    """Tell whether a replica is on its way to ready, of a model that declares `replicas`.

    A pod that fails or that no node takes is not: waiting for it may be in vain. `now_s` is in
    Unix seconds.
    """
    coming = [pod for pod in pods if not pod.deleting and not pod.ready and not pod.reason]
    if deployment.deadline_exceeded:
        return any(late_in_s(deployment, pod, now_s) > 0 for pod in coming)
    if not deployment.observed or deployment.wanted != replicas:
        return True
    if deployment.replicas < replicas and not deployment.failure:
        return True
    return bool(coming)


def _begun_s(scheduled: Manifest, containers: list[Manifest]) -> int:
    """Return when a pod began; a container that was restarted does not begin again."""
    if scheduled.get("status") != "True":
        return 0
    first = (
        each.get("state", {}).get("running", {}).get("startedAt")
        for each in containers
        if not each.get("restartCount", 0)
    )
    return max(map(unix_s, (scheduled.get("lastTransitionTime"), *first)))


def _is_cut_off(conditions: Manifest) -> bool:
    """Tell whether the node controller took the pod's readiness, which the kubelet cannot renew."""
    statuses = {name: each["status"] for name, each in conditions.items()}
    return statuses.get("Ready") == "False" and statuses.get("ContainersReady") == "True"


_UNTROUBLED = frozenset({"ContainerCreating", "PodInitializing", ""})


def _trouble(containers: list[Manifest]) -> tuple[str, str]:
    for each in containers:
        state = each.get("state", {})
        waiting = state.get("waiting", {})
        if waiting.get("reason", "") not in _UNTROUBLED:
            return waiting["reason"], waiting.get("message", "") + _last_exit(each)
        terminated = state.get("terminated", {})
        if terminated.get("exitCode", 0) != 0:
            return "Terminated", _exit_text(terminated)
    return "", ""


def _last_exit(container: Manifest) -> str:
    last = container.get("lastState", {}).get("terminated")
    return f"; {_exit_text(last)}" if last else ""


def _exit_text(terminated: Manifest) -> str:
    text = f"last exit: code {terminated.get('exitCode')}"
    if terminated.get("reason") and terminated["reason"] not in {"Error", "Completed"}:
        text += f", {terminated['reason']}"
    if terminated.get("message"):
        text += f", {terminated['message'].strip()[-300:]}"
    return text
