"""What live objects say, reduced to the facts that conditions are made of. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from nimway.control.clock import unix_s
from nimway.control.desired import names
from nimway.control.kinds import Manifest


@dataclass(frozen=True, slots=True)
class DeploymentFacts:
    """A Deployment's progress; `observed` tells whether its controller saw the current spec.

    `deadline_s` is what it may take, as it declares itself (`progressDeadlineSeconds`). `paused`
    tells that somebody keeps its controller from going on (`kubectl rollout pause`).
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
    paused: bool = False

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

    Of several containers the NIM's or the proxy's tells whether it is `running` and since when, and
    what its `last_exit` was; a trouble may be of any, with that one's `restarts`. `ended` tells
    that it will not run again and stays as a record (evicted, refused by its kubelet).
    `gone_by_s` is the end of its grace period in Unix seconds, 0 while it is not being deleted.
    `cut_off` tells that its containers were ready when its node was last heard, and that it is not.
    `begun_s` is when it was scheduled, or when its container ran first (Unix seconds), 0 before.
    `gates` are what keeps the scheduler from it, `node` is where it was put. `equipped` tells
    whether its volumes and its network are there, None of a kubelet that does not say so (before
    Kubernetes 1.29; core/v1, condition PodReadyToStartContainers). `claims` are those it mounts.
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
    claims: tuple[str, ...] = ()
    ended: bool = False
    last_exit: str = ""


@dataclass(frozen=True, slots=True)
class ClaimFacts:
    """A claim that has no volume yet, and who has to make one.

    `node` is where the scheduler wants it, "" as long as it has not decided; `provisioner` is the
    driver of the StorageClass, "" until the volume controller has named it.
    """

    name: str
    storage_class: str
    node: str
    provisioner: str


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
        paused=live.get("spec", {}).get("paused", False),
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
    # A mesh or a secrets' agent adds containers of its own, before ours or behind.
    main = [each for each in containers if each.get("name") in _MAIN] or containers
    ended = status.get("phase") in {"Failed", "Succeeded"}
    reason, message, restarts = _trouble(containers, main)
    if ended:
        reason, message = status.get("reason") or reason, status.get("message") or message
    if scheduled.get("status") == "False":
        reason, message = scheduled.get("reason", ""), scheduled.get("message", "")
    return PodFacts(
        name=metadata["name"],
        uid=metadata["uid"],
        address=status.get("podIP", ""),
        ready=conditions.get("Ready", {}).get("status") == "True",
        deleting="deletionTimestamp" in metadata,
        scheduled=scheduled.get("status") == "True",
        running=any("running" in each.get("state", {}) for each in main),
        reason=reason,
        message=message,
        restarts=restarts,
        gone_by_s=unix_s(metadata.get("deletionTimestamp")),
        cut_off=_is_cut_off(conditions),
        begun_s=_begun_s(scheduled, main),
        gates=tuple(each["name"] for each in spec.get("schedulingGates", ())),
        node=spec.get("nodeName", ""),
        equipped=None if equipped is None else equipped["status"] == "True",
        claims=claims_of(spec),
        ended=ended,
        last_exit=next(filter(None, map(_last_exit, main)), ""),
    )


def claim_facts(live: Manifest) -> ClaimFacts | None:
    """Read a claim (core/v1, PersistentVolumeClaimStatus); None if it has its volume."""
    if live.get("status", {}).get("phase") == "Bound":
        return None
    annotations = live["metadata"].get("annotations", {})
    return ClaimFacts(
        name=live["metadata"]["name"],
        storage_class=live.get("spec", {}).get("storageClassName", ""),
        node=annotations.get("volume.kubernetes.io/selected-node", ""),
        provisioner=annotations.get("volume.kubernetes.io/storage-provisioner", ""),
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
    coming = [pod for pod in pods if not (pod.deleting or pod.ready or pod.ended or pod.reason)]
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


def claims_of(spec: Manifest) -> tuple[str, ...]:
    """Return the names of the claims that a pod mounts (core/v1, PodSpec)."""
    volumes = (each.get("persistentVolumeClaim") for each in spec.get("volumes", ()))
    return tuple(each["claimName"] for each in volumes if each)


_MAIN = frozenset({names.MODEL_CONTAINER, names.PROXY_CONTAINER})
_UNTROUBLED = frozenset({"ContainerCreating", "PodInitializing", ""})


def _trouble(containers: list[Manifest], main: list[Manifest]) -> tuple[str, str, int]:
    """Return the reason, the message and the restarts of the first container that has a trouble."""
    for each in containers:
        state = each.get("state", {})
        waiting, terminated = state.get("waiting", {}), state.get("terminated", {})
        whose = "" if each in main else f"container {each.get('name')}: "
        restarts = each.get("restartCount", 0)
        if waiting.get("reason", "") not in _UNTROUBLED:
            last = _last_exit(each)
            text = waiting.get("message", "") + (last and f"; {last}")
            return waiting["reason"], whose + text, restarts
        if terminated.get("exitCode", 0) != 0:
            return "Terminated", whose + _exit_text(terminated), restarts
    return "", "", sum(each.get("restartCount", 0) for each in main)


def _last_exit(container: Manifest) -> str:
    last = container.get("lastState", {}).get("terminated")
    return _exit_text(last) if last else ""


def _exit_text(terminated: Manifest) -> str:
    text = f"last exit: code {terminated.get('exitCode')}"
    if terminated.get("reason") and terminated["reason"] not in {"Error", "Completed"}:
        text += f", {terminated['reason']}"
    if terminated.get("message"):
        text += f", {terminated['message'].strip()[-300:]}"
    return text
