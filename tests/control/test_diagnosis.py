from dataclasses import replace
from typing import Any

import pytest

from nimway.api.status import Reason
from nimway.control.diagnosis import NOTHING_WAITS, Workload, diagnose
from nimway.control.facts import (
    NO_DEPLOYMENT,
    ClaimFacts,
    PodFacts,
    claim_facts,
    deployment_facts,
    pod_facts,
)
from nimway.control.models import workload_of
from tests.control.samples import resolved

NOW_S = 1_764_000_000.0
LATE = replace(NO_DEPLOYMENT, deadline_exceeded=True, deadline_s=5400)


def _pod(**changes: Any) -> PodFacts:
    values: dict[str, Any] = {
        "name": "p",
        "uid": "u",
        "address": "",
        "ready": False,
        "deleting": False,
        "scheduled": True,
        "running": False,
        "reason": "",
        "message": "",
        "restarts": 0,
    }
    return PodFacts(**{**values, **changes})


GPU_MESSAGE = (
    "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available."
)


@pytest.mark.parametrize(
    ("pod", "reason", "text"),
    [
        (
            _pod(scheduled=False, reason="Unschedulable", message=GPU_MESSAGE),
            Reason.WAITING_FOR_GPU,
            "needs 2 nvidia.com/gpu, 0 of 3 nodes have them free; 0/3 nodes are available: "
            "3 Insufficient nvidia.com/gpu",
        ),
        (
            _pod(
                scheduled=False,
                reason="Unschedulable",
                message='persistentvolumeclaim "w" not found',
            ),
            Reason.PVC_PENDING,
            'persistentvolumeclaim "w" not found',
        ),
        (
            _pod(
                scheduled=False,
                reason="SchedulingGated",
                message="Scheduling is blocked due to non-empty scheduling gates",
                gates=("kueue.x-k8s.io/admission",),
            ),
            Reason.PROGRESSING,
            "pod p waits for whoever holds its scheduling gates: kueue.x-k8s.io/admission",
        ),
        (
            _pod(reason="ImagePullBackOff", message="no such image"),
            Reason.IMAGE_PULL_FAILED,
            "no such image",
        ),
        (
            _pod(reason="CreateContainerConfigError", message='secret "ngc" not found'),
            Reason.SECRET_NOT_FOUND,
            'secret "ngc" not found',
        ),
        (
            _pod(reason="CreateContainerConfigError", message="bad"),
            Reason.CONTAINER_CONFIG_ERROR,
            "bad",
        ),
        (
            _pod(reason="CrashLoopBackOff", message="back-off", restarts=4),
            Reason.CRASH_LOOP,
            "restarted 4 times: back-off",
        ),
        (_pod(running=True), Reason.LOADING_WEIGHTS, "pod p runs and is not ready yet"),
        (
            _pod(running=True, cut_off=True),
            Reason.NODE_NOT_READY,
            "the node of pod p does not answer",
        ),
        (_pod(), Reason.PROGRESSING, "pulling its image"),
        (
            _pod(running=True, restarts=3, last_exit="last exit: code 137, OOMKilled"),
            Reason.LOADING_WEIGHTS,
            "runs and is not ready yet; it restarted 3 times, last exit: code 137, OOMKilled",
        ),
    ],
)
def test_a_pods_trouble_gets_a_reason_and_the_words_of_kubernetes(
    pod: PodFacts, reason: Reason, text: str
) -> None:
    found = diagnose(NO_DEPLOYMENT, [pod], Workload(gpus=2, gpu_resource="nvidia.com/gpu"), NOW_S)
    assert found.reason is reason
    assert text in found.message
    assert not found.stalled


EVICTED = _pod(name="was", ended=True, reason="Evicted", message="low on disk", begun_s=5)


def test_a_pod_that_ended_for_good_is_told_of_and_speaks_for_nobody() -> None:
    waits = _pod(scheduled=False, reason="Unschedulable", message=GPU_MESSAGE)
    older = replace(EVICTED, name="older", begun_s=1)
    workload = Workload(gpus=2, gpu_resource="nvidia.com/gpu")
    found = diagnose(LATE, [older, EVICTED, waits], workload, NOW_S)
    assert (found.reason, found.stalled) == (Reason.WAITING_FOR_GPU, False)
    assert found.message.endswith("; pod was before it ended: Evicted low on disk")
    assert diagnose(LATE, [EVICTED], workload, NOW_S) == NOTHING_WAITS
    claimed = replace(EVICTED, node="b", equipped=True, claims=("c",))
    pods = [claimed, _pod(node="a", equipped=False, claims=("c",))]
    found = diagnose(NO_DEPLOYMENT, pods, Workload(single_node=True), NOW_S)
    assert found.reason is Reason.PROGRESSING


def test_a_pod_that_waits_for_the_gpus_of_one_that_ends_says_until_when() -> None:
    ending = _pod(name="old", node="a", deleting=True, gone_by_s=int(NOW_S) + 600)
    waits = _pod(scheduled=False, reason="Unschedulable", message=GPU_MESSAGE)
    workload = Workload(gpus=2, gpu_resource="nvidia.com/gpu")
    found = diagnose(NO_DEPLOYMENT, [ending, waits], workload, NOW_S)
    assert found.reason is Reason.PROGRESSING
    told = "pod p waits for pod old, which ends by 2025-11-24T16:10:00Z; it needs 2 nvidia.com/gpu"
    assert found.message.startswith(told)


def test_a_volume_that_nobody_makes_is_not_the_schedulers_fault() -> None:
    live = {
        "metadata": {
            "name": "llama-store",
            "annotations": {
                "volume.kubernetes.io/selected-node": "gpu-1",
                "volume.kubernetes.io/storage-provisioner": "csi.example.com",
            },
        },
        "spec": {"storageClassName": "fast"},
        "status": {"phase": "Pending"},
    }
    claim = claim_facts(live)
    assert claim is not None
    waits = _pod(scheduled=False, claims=("llama-store",))

    def told(*unbound: ClaimFacts) -> str:
        return diagnose(NO_DEPLOYMENT, [waits], Workload(), NOW_S, unbound=unbound).message

    assert told(claim).startswith(
        "pod p waits for the volume of claim llama-store, which csi.example.com (StorageClass "
        "fast) is to make on node gpu-1; "
    )
    assert "kubectl describe persistentvolumeclaim llama-store" in told(claim)
    assert told(replace(claim, node="")) == "pod p waits for the scheduler"
    assert told(replace(claim, name="another")) == "pod p waits for the scheduler"
    assert told() == "pod p waits for the scheduler"
    assert claim_facts({**live, "status": {"phase": "Bound"}}) is None
    late = 'running PreBind plugin "VolumeBinding": binding volumes: context deadline exceeded'
    given_up = _pod(scheduled=False, reason="SchedulerError", message=late)
    found = diagnose(NO_DEPLOYMENT, [given_up], Workload(), NOW_S)
    assert (found.reason, found.message) == (Reason.PVC_PENDING, late)


def test_a_paused_deployment_says_how_it_goes_on() -> None:
    found = diagnose(replace(NO_DEPLOYMENT, paused=True), [_pod(ready=True)], Workload(), NOW_S)
    assert "kubectl rollout resume" in found.message
    live = {"metadata": {}, "spec": {"paused": True}}
    assert deployment_facts(live).paused


def test_a_proxys_pod_is_not_spoken_of_as_a_model() -> None:
    proxy = Workload(is_proxy=True)
    found = diagnose(NO_DEPLOYMENT, [_pod(running=True)], proxy, NOW_S)
    assert found.reason is Reason.WAITING_FOR_TABLE
    late = diagnose(replace(LATE, deadline_s=600), [_pod(running=True)], proxy, NOW_S)
    assert late.stalled
    assert late.message.startswith("not ready within 600 s; pod p runs")


def test_pods_that_may_not_be_created_are_told_in_the_servers_words() -> None:
    failure = 'pods "x" is forbidden: violates PodSecurity "restricted:latest"'
    found = diagnose(replace(NO_DEPLOYMENT, failure=failure), [], Workload(), NOW_S)
    assert (found.reason, found.message) == (Reason.PODS_REFUSED, failure)


def _with_sidecar(own: dict[str, Any], sidecar: dict[str, Any], **status: Any) -> PodFacts:
    statuses = [{"name": "istio-proxy", **sidecar}, {"name": "nim", **own}]
    scheduled = {"type": "PodScheduled", "status": "True"}
    status = {"conditions": [scheduled], "containerStatuses": statuses, **status}
    return pod_facts({"metadata": {"name": "p", "uid": "u"}, "status": status})


RUNS = {"state": {"running": {"startedAt": "2025-11-24T17:00:00Z"}}}


def test_a_container_that_others_add_is_not_taken_for_the_nim() -> None:
    pulling = _with_sidecar({"state": {"waiting": {"reason": "ContainerCreating"}}}, RUNS)
    assert (pulling.running, pulling.begun_s, pulling.reason) == (False, 0, "")
    crash = {"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}}
    sick = _with_sidecar(RUNS, {**crash, "restartCount": 7})
    assert (sick.running, sick.restarts) == (True, 7)
    assert sick.message == "container istio-proxy: back-off"
    own = _with_sidecar({**crash, "restartCount": 2}, {**RUNS, "restartCount": 9})
    assert (own.restarts, own.message) == (2, "back-off")
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    again = _with_sidecar({**RUNS, "restartCount": 3, "lastState": killed}, RUNS)
    assert (again.running, again.restarts) == (True, 3)
    assert again.last_exit == "last exit: code 137, OOMKilled"


def test_a_pod_that_ended_for_good_is_read() -> None:
    ended = {"phase": "Failed", "reason": "Evicted", "message": "low on disk"}
    facts = _with_sidecar(RUNS, RUNS, **ended)
    assert (facts.ended, facts.reason, facts.message) == (True, "Evicted", "low on disk")


def test_the_pod_that_needs_a_person_soonest_speaks_for_all() -> None:
    pods = [_pod(running=True), _pod(reason="ErrImagePull", message="x"), _pod(ready=True)]
    assert diagnose(NO_DEPLOYMENT, pods, Workload(), NOW_S).reason is Reason.IMAGE_PULL_FAILED


@pytest.mark.parametrize(
    ("pod", "stalled"),
    [
        (_pod(running=True), True),
        (_pod(reason="CrashLoopBackOff"), True),
        (_pod(scheduled=False, reason="Unschedulable", message="no"), False),
        (_pod(reason="ImagePullBackOff"), False),
        (_pod(), False),
    ],
)
def test_a_passed_deadline_stalls_unless_the_pod_is_unscheduled_or_pulling(
    pod: PodFacts, *, stalled: bool
) -> None:
    assert diagnose(LATE, [pod], Workload(), NOW_S).stalled is stalled


@pytest.mark.parametrize(
    ("pod", "left_s"),
    [
        (_pod(running=True, begun_s=1_764_000_000), 5400),
        (_pod(running=True, begun_s=1_764_000_000 - 5000), 400),
        (_pod(reason="CrashLoopBackOff", begun_s=1_764_000_000 - 5000), 400),
        (_pod(running=True, begun_s=1_764_000_000 + 60), 5400),
    ],
    ids=["just scheduled", "a while ago", "it fails", "by a clock ahead of ours"],
)
def test_a_pod_has_the_whole_deadline_from_when_it_begins(pod: PodFacts, left_s: int) -> None:
    found = diagnose(LATE, [pod], Workload(), NOW_S)
    assert (found.stalled, found.recheck_s) == (False, left_s)
    assert found.reason in {Reason.LOADING_WEIGHTS, Reason.CRASH_LOOP}
    late = diagnose(LATE, [pod], Workload(), NOW_S + left_s + 60)
    assert (late.stalled, late.recheck_s) == (True, None)


def test_of_several_pods_that_load_the_oldest_is_late_first() -> None:
    pods = [_pod(running=True, begun_s=int(NOW_S)), _pod(running=True, begun_s=1)]
    assert diagnose(LATE, pods, Workload(), NOW_S).stalled


@pytest.mark.parametrize(
    ("scheduled", "container", "begun_s"),
    [
        ("False", {}, 0),
        ("True", {}, 1_764_000_000),
        ("True", {"state": {"running": {"startedAt": "2025-11-24T17:00:00Z"}}}, 1_764_003_600),
        (
            "True",
            {"state": {"running": {"startedAt": "2025-11-24T17:00:00Z"}}, "restartCount": 1},
            1_764_000_000,
        ),
    ],
    ids=["it waits for a node", "it has one", "its image came late", "it was restarted"],
)
def test_a_pod_begins_with_its_node_or_its_first_start(
    scheduled: str, container: dict[str, Any], begun_s: int
) -> None:
    condition = {"type": "PodScheduled", "status": scheduled}
    live = {
        "metadata": {"name": "p", "uid": "u"},
        "status": {
            "conditions": [{**condition, "lastTransitionTime": "2025-11-24T17:00:00+01:00"}],
            "containerStatuses": [container],
        },
    }
    assert pod_facts(live).begun_s == begun_s


def test_a_pods_scheduling_gates_are_read() -> None:
    gates = [{"name": "kueue.x-k8s.io/admission"}]
    live = {"metadata": {"name": "p", "uid": "u"}, "spec": {"schedulingGates": gates}}
    assert pod_facts(live).gates == ("kueue.x-k8s.io/admission",)


def test_a_pods_node_and_what_it_has_are_read() -> None:
    live: dict[str, Any] = {"metadata": {"name": "p", "uid": "u"}, "spec": {"nodeName": "a"}}
    assert (pod_facts(live).node, pod_facts(live).equipped) == ("a", None)
    for status, equipped in (("False", False), ("True", True)):
        live["status"] = {"conditions": [{"type": "PodReadyToStartContainers", "status": status}]}
        assert pod_facts(live).equipped is equipped


def test_a_quota_is_named() -> None:
    full = replace(
        NO_DEPLOYMENT, failure='pods "x" is forbidden: exceeded quota: gpu, requested: ...'
    )
    assert diagnose(full, [], Workload(), NOW_S).reason is Reason.QUOTA_EXCEEDED


@pytest.mark.parametrize(
    ("other", "single_node", "reason", "text"),
    [
        ({"equipped": True}, True, Reason.PVC_PENDING, "pod q on node b has the model's claim"),
        ({"running": True}, True, Reason.PVC_PENDING, "ReadWriteMany"),
        ({"equipped": True, "deleting": True}, True, Reason.PVC_PENDING, "maxSurge 0"),
        ({"equipped": True, "node": "a"}, True, Reason.PROGRESSING, "its volumes and its network"),
        ({"equipped": False}, True, Reason.PROGRESSING, "its volumes and its network"),
        ({"equipped": True}, None, Reason.PROGRESSING, "if the claim is ReadWriteOnce"),
        ({"equipped": True}, False, Reason.PROGRESSING, "its volumes and its network"),
        (
            {"equipped": True, "claims": ("before",)},
            True,
            Reason.PROGRESSING,
            "its volumes and its network",
        ),
    ],
)
@pytest.mark.parametrize("equipped", [False, None])
def test_a_pod_that_waits_for_a_claim_on_another_node_says_so(
    other: dict[str, Any],
    single_node: bool | None,  # noqa: FBT001 - the value itself
    reason: Reason,
    text: str,
    equipped: bool | None,  # noqa: FBT001 - the value itself
) -> None:
    holder = _pod(**{"name": "q", "node": "b", "ready": True, "claims": ("c",), **other})
    pods = [holder, _pod(node="a", equipped=equipped, claims=("c",))]
    found = diagnose(NO_DEPLOYMENT, pods, Workload(single_node=single_node), NOW_S)
    assert found.reason is reason
    assert text in found.message
    assert not found.stalled


def test_a_pod_with_its_volumes_is_pulling_its_image() -> None:
    pods = [_pod(name="q", node="b", ready=True, equipped=True), _pod(node="a", equipped=True)]
    found = diagnose(NO_DEPLOYMENT, pods, Workload(single_node=True), NOW_S)
    assert found.reason is Reason.PROGRESSING
    assert found.message.endswith("pulling its image")


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        (None, False),
        ({"emptyDir": {"sizeLimit": "1Gi"}}, False),
        ({"pvc": {"claimName": "mine"}}, None),
        ({"pvc": {"size": "1Gi"}}, True),
        ({"pvc": {"size": "1Gi", "accessMode": "ReadWriteOncePod"}}, True),
        ({"pvc": {"size": "1Gi", "accessMode": "ReadWriteMany"}}, False),
    ],
)
def test_which_claims_are_for_one_node(
    storage: dict[str, Any] | None,
    expected: bool | None,  # noqa: FBT001 - the value itself
) -> None:
    spec: dict[str, Any] = {"storage": storage} if storage else {}
    assert workload_of(resolved(**spec)).single_node is expected


@pytest.mark.parametrize(
    ("ready", "containers_ready", "expected"),
    [("False", "True", True), ("False", "False", False), ("True", "True", False)],
)
def test_a_pod_whose_node_is_not_heard_is_told_from_one_that_fails(
    ready: str, containers_ready: str, *, expected: bool
) -> None:
    conditions = [
        {"type": "Ready", "status": ready},
        {"type": "ContainersReady", "status": containers_ready},
    ]
    live = {"metadata": {"name": "p", "uid": "u"}, "status": {"conditions": conditions}}
    assert pod_facts(live).cut_off is expected


def test_a_deployment_is_read() -> None:
    live = {
        "metadata": {"generation": 2},
        "spec": {"replicas": 2},
        "status": {
            "observedGeneration": 2,
            "replicas": 2,
            "updatedReplicas": 2,
            "readyReplicas": 2,
            "availableReplicas": 2,
            "conditions": [{"type": "Progressing", "reason": "NewReplicaSetAvailable"}],
        },
    }
    assert deployment_facts(live).settled
    assert not deployment_facts({**live, "metadata": {"generation": 3}}).settled
    assert deployment_facts(None) == NO_DEPLOYMENT


def test_a_pod_is_read() -> None:
    live = {
        "metadata": {"name": "p", "uid": "u"},
        "status": {
            "podIP": "10.0.0.1",
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [
                {
                    "restartCount": 3,
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                    "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
                }
            ],
        },
    }
    facts = pod_facts(live)
    assert (facts.reason, facts.restarts, facts.scheduled, facts.ready) == (
        "CrashLoopBackOff",
        3,
        True,
        False,
    )
    assert facts.message == "back-off; last exit: code 137, OOMKilled"
