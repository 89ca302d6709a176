"""Why a Deployment's pods do not serve, in words a user can act on. Pure.

The reasons come from what Kubernetes itself says of the pods: the scheduler's message, the
kubelet's waiting reasons, the last exit. Of several pods the one whose trouble needs a person
soonest speaks for all.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from nimway.api.status import Reason
from nimway.control.clock import timestamp
from nimway.control.facts import ClaimFacts, DeploymentFacts, PodFacts, late_in_s

MESSAGE_CHARS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A reason with its message; `stalled` if waiting longer will not help.

    `recheck_s` is after how long time alone may make it another one, None if it cannot.
    """

    reason: Reason
    message: str
    stalled: bool = False
    recheck_s: float | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """What the messages need of the spec.

    `single_node` tells whether one node alone can mount the model's claim at a time, None of a
    claim of the user's own, whose access modes are not looked at. `is_proxy`: no model, a proxy.
    """

    gpus: int = 0
    gpu_resource: str = ""
    single_node: bool | None = False
    is_proxy: bool = False


NO_WORKLOAD = Workload()
NOTHING_WAITS = Diagnosis(Reason.PROGRESSING, "waiting for the pods to be created")
"""Of a Deployment that has no pod that is not ready."""

_PAUSED = Diagnosis(
    Reason.PROGRESSING,
    "the Deployment is paused (spec.paused) and replaces no pod: kubectl rollout resume",
)

_SEVERITY = (
    Reason.IMAGE_PULL_FAILED,
    Reason.SECRET_NOT_FOUND,
    Reason.CONTAINER_CONFIG_ERROR,
    Reason.CRASH_LOOP,
    Reason.PVC_PENDING,
    Reason.NODE_NOT_READY,
    Reason.WAITING_FOR_GPU,
    Reason.UNSCHEDULABLE,
    Reason.LOADING_WEIGHTS,
    Reason.WAITING_FOR_TABLE,
    Reason.PROGRESSING,
)
_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_CRASH = frozenset({"CrashLoopBackOff", "Terminated"})
_GATED = "SchedulingGated"
_PATIENT = frozenset(
    {
        Reason.WAITING_FOR_GPU,
        Reason.UNSCHEDULABLE,
        Reason.PVC_PENDING,
        Reason.NODE_NOT_READY,
        Reason.IMAGE_PULL_FAILED,
        Reason.QUOTA_EXCEEDED,
        Reason.PROGRESSING,
    }
)
"""Never stalled: what they wait for may come at any time, and costs no GPU meanwhile."""

_ONE_NODE = (
    "use a claim with accessMode ReadWriteMany, or keep the pods on one node; with one replica let "
    "the old pod go first (rollout: maxSurge 0, maxUnavailable 1)"
)
_NODES = re.compile(r"(\d+)/(\d+) nodes are available")
_SECRET = re.compile(r'secret "[^"]+" not found')


def diagnose(
    deployment: DeploymentFacts,
    pods: Iterable[PodFacts],
    workload: Workload,
    now_s: float,
    *,
    unbound: Iterable[ClaimFacts] = (),
) -> Diagnosis:
    """Say what the pods that do not serve wait for; `now_s` is in Unix seconds.

    `unbound` are the claims that were made for them and have no volume.
    """
    if deployment.failure:
        quota = "exceeded quota" in deployment.failure
        reason = Reason.QUOTA_EXCEEDED if quota else Reason.PODS_REFUSED
        return Diagnosis(reason, _cut(deployment.failure))
    known = list(pods)
    everyone = [pod for pod in known if not pod.ended]
    volumeless = {claim.name: claim for claim in unbound}
    waiting = [pod for pod in everyone if not pod.deleting and not pod.ready]
    found = [(_pod(pod, everyone, workload, volumeless), pod) for pod in waiting]
    if not found:
        return _PAUSED if deployment.paused else NOTHING_WAITS
    worst, pod = min(found, key=lambda each: (_SEVERITY.index(each[0].reason), each[1].begun_s))
    if was := max((each for each in known if each.ended), key=_begun, default=None):
        text = f"{worst.message}; pod {was.name} before it ended: {was.reason} {was.message}"
        worst = replace(worst, message=_cut(text.rstrip(" :")))
    if deployment.deadline_exceeded and worst.reason not in _PATIENT:
        left_s = late_in_s(deployment, pod, now_s)
        if left_s > 0:
            return replace(worst, recheck_s=left_s)
        reason = Reason.STARTUP_TIMEOUT if worst.reason is Reason.LOADING_WEIGHTS else worst.reason
        limit = f"{deployment.deadline_s} s" if workload.is_proxy else "startupTimeoutSeconds"
        text = f"not ready within {limit}; {worst.message}"
        return Diagnosis(reason, _cut(text), stalled=True)
    return worst


def _begun(pod: PodFacts) -> int:
    return pod.begun_s


def _pod(
    pod: PodFacts,
    everyone: list[PodFacts],
    workload: Workload,
    volumeless: Mapping[str, ClaimFacts],
) -> Diagnosis:
    text = _cut(pod.message or pod.reason)
    if not pod.scheduled and not pod.reason:
        return _unplaced(pod, volumeless)
    if not pod.scheduled:
        return _unscheduled(pod, everyone, workload)
    if pod.reason in _IMAGE:
        return Diagnosis(Reason.IMAGE_PULL_FAILED, text)
    if pod.reason in _CONFIG:
        missing = _SECRET.search(pod.message)
        reason = Reason.SECRET_NOT_FOUND if missing else Reason.CONTAINER_CONFIG_ERROR
        return Diagnosis(reason, text)
    if pod.reason in _CRASH:
        return Diagnosis(
            Reason.CRASH_LOOP, f"pod {pod.name} restarted {pod.restarts} times: {text}"
        )
    if pod.cut_off:
        return Diagnosis(
            Reason.NODE_NOT_READY,
            f"the node of pod {pod.name} does not answer; the pod is replaced some minutes later",
        )
    if pod.running:
        return _running(pod, workload)
    if pod.equipped:
        return Diagnosis(Reason.PROGRESSING, f"pod {pod.name} is being created: pulling its image")
    text = f"pod {pod.name} is being created: preparing its volumes and its network"
    if pod.equipped is None:
        text += ", or pulling its image"
    holder = _holder(pod, everyone)
    if holder is None or workload.single_node is False:
        return Diagnosis(Reason.PROGRESSING, text)
    mounted = f"pod {holder.name} on node {holder.node} has the model's claim mounted"
    if workload.single_node is None:
        text += f"; {mounted}, which keeps it waiting if the claim is ReadWriteOnce: {_ONE_NODE}"
        return Diagnosis(Reason.PROGRESSING, text)
    return Diagnosis(
        Reason.PVC_PENDING,
        f"pod {pod.name} on node {pod.node} waits while {mounted}: a ReadWriteOnce claim is for "
        f"one node at a time; {_ONE_NODE}",
    )


def _running(pod: PodFacts, workload: Workload) -> Diagnosis:
    again = f"; it restarted {pod.restarts} times, {pod.last_exit}" if pod.last_exit else ""
    if workload.is_proxy:
        text = f"pod {pod.name} runs and does not serve a whole routing table yet{again}"
        return Diagnosis(Reason.WAITING_FOR_TABLE, text)
    text = f"pod {pod.name} runs and is not ready yet{again}"
    return Diagnosis(Reason.LOADING_WEIGHTS, _cut(text))


def _holder(pod: PodFacts, everyone: list[PodFacts]) -> PodFacts | None:
    """Return a pod of the model that has its claim on another node; one that ends has it too.

    The API tells who waits, not for whom: Multi-Attach errors are in Events alone, which the
    operator does not read.
    """
    shared = (each for each in everyone if not set(each.claims).isdisjoint(pod.claims))
    elsewhere = (each for each in shared if each.node and each.node != pod.node)
    return next((each for each in elsewhere if each.equipped or each.running), None)


def _unplaced(pod: PodFacts, volumeless: Mapping[str, ClaimFacts]) -> Diagnosis:
    """Say what a pod waits for of which the scheduler has said nothing.

    It is silent for up to 10 minutes while a volume is made (VolumeBinding, bindTimeoutSeconds).
    """
    chosen = (volumeless[name] for name in pod.claims if name in volumeless)
    claim = next((each for each in chosen if each.node), None)
    if claim is None:
        return Diagnosis(Reason.PROGRESSING, f"pod {pod.name} waits for the scheduler")
    maker = claim.provisioner or "its provisioner"
    return Diagnosis(
        Reason.PROGRESSING,
        f"pod {pod.name} waits for the volume of claim {claim.name}, which {maker} (StorageClass "
        f"{claim.storage_class}) is to make on node {claim.node}; if that takes minutes: "
        f"kubectl describe persistentvolumeclaim {claim.name}",
    )


def _unscheduled(pod: PodFacts, everyone: list[PodFacts], workload: Workload) -> Diagnosis:
    if pod.reason == _GATED:
        gates = ", ".join(pod.gates) or pod.message
        return Diagnosis(
            Reason.PROGRESSING,
            _cut(f"pod {pod.name} waits for whoever holds its scheduling gates: {gates}"),
        )
    said = _cut(pod.message.partition(" preemption:")[0].rstrip(". "))
    if "persistentvolumeclaim" in said.lower() or "binding volumes" in said:
        return Diagnosis(Reason.PVC_PENDING, said)
    if workload.gpus and f"Insufficient {workload.gpu_resource}" in said:
        need = f"needs {workload.gpus} {workload.gpu_resource}"
        if nodes := _NODES.match(said):
            need += f", {nodes[1]} of {nodes[2]} nodes have them free"
        ending = [each for each in everyone if each.deleting and each.node]
        if ending:  # as in a rollout that lets the old pod go first
            last = max(ending, key=lambda each: each.gone_by_s)
            until = timestamp(datetime.fromtimestamp(last.gone_by_s, UTC))
            text = f"pod {pod.name} waits for pod {last.name}, which ends by {until}"
            return Diagnosis(Reason.PROGRESSING, f"{text}; it {need}; {said}")
        return Diagnosis(Reason.WAITING_FOR_GPU, f"{need}; {said}")
    return Diagnosis(Reason.UNSCHEDULABLE, said or pod.reason)


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_CHARS_MAX else f"{text[:MESSAGE_CHARS_MAX]}…"
