"""OP-10: what goes wrong is told in words within 2 s, and what goes right stays quiet."""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import pytest

from nimway.control.client import KubeClient
from nimway.control.kinds import DEPLOYMENT, EVENT, MODEL, POD, Manifest
from tests.control.process import condition, connect, patch
from tests.support.installed import Installed, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

TOLD_S = 2.0
CONTROL_PORT = 8002
FAST = {"drain": {"seconds": 5}}
NO_HOLD = {"routing": {"queue": {"maxWaitSeconds": 0}}}
PROMPT = {"readiness": {"periodSeconds": 1, "failureThreshold": 1}}

Cause = Callable[[list[Manifest], Manifest], bool]
"""Whether Kubernetes says so, of the pods and the Deployment."""


@pytest.fixture
async def api(installed: Installed) -> AsyncIterator[KubeClient]:
    async with connect(installed.cluster.kubeconfig) as client:
        yield client


def _unscheduled(pods: list[Manifest], _: Manifest) -> bool:
    return any(condition(pod, "PodScheduled").get("reason") == "Unschedulable" for pod in pods)


def _waits(*reasons: str) -> Cause:
    def cause(pods: list[Manifest], _: Manifest) -> bool:
        return any(state.get("waiting", {}).get("reason") in reasons for state in _states(pods))

    return cause


def _exited(pods: list[Manifest], _: Manifest) -> bool:
    return any("terminated" in state for state in _states(pods))


def _states(pods: list[Manifest]) -> list[Manifest]:
    return [
        state
        for pod in pods
        for status in pod.get("status", {}).get("containerStatuses", ())
        for state in (status["state"], status.get("lastState", {}))
    ]


def _failed(_: list[Manifest], deployment: Manifest) -> bool:
    return condition(deployment, "ReplicaFailure").get("status") == "True"


def _unequipped(pods: list[Manifest], _: Manifest) -> bool:
    """Tell whether a pod waits for its volumes; all have their place."""
    said = [condition(pod, "PodReadyToStartContainers").get("status") for pod in pods]
    return sorted(map(str, said)) == ["False", "True"]


def _not_ready(pods: list[Manifest], _: Manifest) -> bool:
    return any(condition(pod, "Ready").get("status") == "False" for pod in pods)


async def _pods(api: KubeClient, namespace: str, name: str) -> list[Manifest]:
    selector = f"app.kubernetes.io/instance={name}"
    return [item async for page, _ in api.pages(POD, namespace, selector=selector) for item in page]


async def _explained(
    api: KubeClient, namespace: str, name: str, cause: Cause, reason: str
) -> Manifest:
    """Wait until Kubernetes knows, and assert that a condition tells within `TOLD_S`.

    While another pod serves, that is Reconciling.
    """
    known_s, end_s = None, time.monotonic() + 60
    while True:
        live = await api.get(MODEL, namespace, name)
        serves = condition(live, "Ready").get("status") == "True"
        told: Manifest = condition(live, "Reconciling" if serves else "Ready")
        if told.get("reason") == reason:
            return live
        now_s = time.monotonic()
        if known_s is None:
            pods = await _pods(api, namespace, name)
            deployment = await api.get(DEPLOYMENT, namespace, name) if pods or told else {}
            known_s = now_s if cause(pods, deployment) else None
            assert now_s < end_s, f"Kubernetes knows of no {reason}"
        else:
            assert now_s - known_s < TOLD_S, f"told {told.get('reason')}, not {reason}"
        await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Row:
    """A trouble: how to get into it, how Kubernetes says it, and what the user reads."""

    reason: str
    text: str
    cause: Cause
    spec: Manifest = field(default_factory=dict)
    stalled: bool = False


ROWS = [
    Row(
        "WaitingForGPU",
        "needs 64 nvidia.com/gpu, 0 of 3 nodes have them free",
        _unscheduled,
        {"gpus": 64},
    ),
    Row("Unschedulable", "nodes are available", _unscheduled, {"nodeSelector": {"no": "such"}}),
    Row(
        "ImagePullFailed",
        "docker.io/library/nothing:1",
        _waits("ErrImagePull", "ImagePullBackOff"),
        {"image": "docker.io/library/nothing:1"},
    ),
    Row(
        "CrashLoop",
        "last exit: code 2",
        _exited,
        {"env": [{"name": "NIMSIM_LOAD_S", "value": "soon"}]},
    ),
    Row(
        "SecretNotFound",
        'secret "no-such-key" not found',
        _waits("CreateContainerConfigError"),
        {"authSecret": "no-such-key"},
    ),
    Row(
        "PVCPending",
        'persistentvolumeclaim "no-such-claim" not found',
        _unscheduled,
        {"storage": {"pvc": {"claimName": "no-such-claim"}}},
    ),
    Row(
        "PodsRefused",
        "no PriorityClass with name no-such-class was found",
        _failed,
        {"priorityClassName": "no-such-class"},
    ),
]


@pytest.mark.alone
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.reason)
async def test_a_trouble_is_told_in_words_within_two_seconds(
    installed: Installed, api: KubeClient, models: str, row: Row
) -> None:
    installed.apply_model(models, "troubled", f"org/{models}", **row.spec)
    live = await _explained(api, models, "troubled", row.cause, row.reason)
    assert row.text in condition(live, "Ready")["message"]
    assert condition(live, "Available")["reason"] == row.reason
    assert condition(live, "Reconciling")["status"] == "True"
    assert condition(live, "Stalled")["status"] == "False"
    columns = installed.kubectl("get", "nimmodels", "-n", models).splitlines()[1].split()
    gpus = str(row.spec.get("gpus", 1))
    assert columns[:5] == ["troubled", f"org/{models}", "0/1", gpus, row.reason]
    eventually(partial(_event_is_shown, installed, models, row.reason), 10, "an Event tells it")


def _event_is_shown(installed: Installed, namespace: str, reason: str) -> bool:
    text = installed.kubectl("describe", "-n", namespace, "nimmodel/troubled")
    return f"Warning  {reason}" in text.partition("Events:")[2]


@pytest.mark.alone
async def test_a_quota_is_told_within_two_seconds_and_lifted_without_a_hand(
    installed: Installed, api: KubeClient, models: str
) -> None:
    installed.kubectl("create", "quota", "gpus", "-n", models, "--hard=requests.nvidia.com/gpu=1")
    installed.apply_model(models, "rationed", f"org/{models}", gpus=2, **FAST)
    live = await _explained(api, models, "rationed", _failed, "QuotaExceeded")
    assert "exceeded quota: gpus" in condition(live, "Ready")["message"]
    installed.kubectl("delete", "quota", "gpus", "-n", models)
    await _recovered(installed, models, "rationed", timeout_s=60)


@pytest.mark.alone
async def test_a_volume_that_nobody_makes_is_told_and_not_the_scheduler_blamed(
    installed: Installed, api: KubeClient, models: str
) -> None:
    broken = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": f"{models}-broken"},
        "provisioner": "nobody.example.com",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    installed.kubectl("apply", "-f", "-", stdin=json.dumps(broken))
    try:
        storage = {
            "pvc": {"size": "1Gi", "reclaim": "Delete", "storageClassName": f"{models}-broken"}
        }
        installed.apply_model(models, "stored", f"org/{models}", storage=storage, **FAST)

        def told() -> bool:
            live: Any = installed.get(models, "nimmodel", "stored")
            text = condition(live, "Ready").get("message", "")
            return "claim stored-store, which nobody.example.com" in text

        await asyncio.to_thread(eventually, told, 30, "it tells who makes no volume")
        live = await api.get(MODEL, models, "stored")
        assert condition(live, "Ready")["reason"] == "Progressing"
        assert condition(live, "Stalled")["status"] == "False"
    finally:
        installed.kubectl("delete", "storageclass", f"{models}-broken")


@pytest.mark.alone
async def test_an_update_that_hangs_says_why_while_the_old_pod_serves(
    installed: Installed, api: KubeClient, models: str
) -> None:
    installed.apply_model(models, "troubled", f"org/{models}", **FAST)
    await _recovered(installed, models, "troubled", timeout_s=60)
    image = (await api.get(MODEL, models, "troubled"))["spec"]["image"]
    change = {"image": "docker.io/library/nothing:2"}
    await patch(api, MODEL, models, "troubled", {"spec": change})
    pulls = _waits("ErrImagePull", "ImagePullBackOff")
    live = await _explained(api, models, "troubled", pulls, "ImagePullFailed")
    assert change["image"] in condition(live, "Reconciling")["message"]
    assert condition(live, "Ready")["reason"] == "Serving"
    assert condition(live, "Stalled")["status"] == "False"
    shown = partial(_event_is_shown, installed, models, "ImagePullFailed")
    await asyncio.to_thread(eventually, shown, 10, "an Event tells it")
    await patch(api, MODEL, models, "troubled", {"spec": {"image": image}})
    settled = partial(_settled, installed, models)
    await asyncio.to_thread(eventually, settled, 30, "it is as before")


def _settled(installed: Installed, namespace: str) -> bool:
    live: Any = installed.get(namespace, "nimmodel", "troubled")
    observed = live["status"]["observedGeneration"] == live["metadata"]["generation"]
    return bool(observed and condition(live, "Reconciling")["reason"] == "Settled")


SPREAD = {
    "podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {
                "topologyKey": "kubernetes.io/hostname",
                "labelSelector": {"matchLabels": {"app.kubernetes.io/instance": "stored"}},
            }
        ]
    }
}
"""So the successor of a pod gets the other node with GPUs."""


@pytest.mark.alone
async def test_a_claim_that_a_pod_on_another_node_has_is_told_and_the_old_pod_can_go_first(
    installed: Installed, api: KubeClient, models: str
) -> None:
    if installed.cluster.sandbox is None:
        pytest.skip("whether a volume is for one node is the foreign cluster's StorageClass's")
    storage = {"pvc": {"size": "1Gi", "reclaim": "Delete"}}
    installed.apply_model(
        models, "stored", f"org/{models}", storage=storage, affinity=SPREAD, **FAST
    )
    await _recovered(installed, models, "stored", timeout_s=60)
    [old] = await _pods(api, models, "stored")
    change: Manifest = {"env": [{"name": "NIMSIM_TOKEN_S", "value": "0.01"}]}
    await patch(api, MODEL, models, "stored", {"spec": change})
    live = await _explained(api, models, "stored", _unequipped, "PVCPending")
    text = condition(live, "Reconciling")["message"]
    assert f"pod {old['metadata']['name']} on node {old['spec']['nodeName']} has" in text
    assert condition(live, "Ready")["status"] == "True", "the old pod serves"
    change = {"rollout": {"maxSurge": 0, "maxUnavailable": 1}}
    await patch(api, MODEL, models, "stored", {"spec": change})
    await asyncio.to_thread(eventually, partial(_moved, installed, models, old), 60, "it moved")


def _moved(installed: Installed, namespace: str, old: Manifest) -> bool:
    live: Any = installed.get(namespace, "nimmodel", "stored")
    pods = installed.list(namespace, "pods", "app.kubernetes.io/instance=stored")
    nodes = {pod["spec"].get("nodeName") for pod in pods}
    settled = condition(live, "Reconciling")["reason"] == "Settled"
    return settled and len(pods) == 1 and old["spec"]["nodeName"] not in nodes


async def _recovered(
    installed: Installed, namespace: str, name: str, *, timeout_s: int = 20
) -> None:
    await asyncio.to_thread(installed.wait_ready, namespace, name, timeout_s)


def _refused(installed: Installed, model: str) -> bool:
    return installed.complete(model).status_code == 503


@pytest.mark.alone
async def test_a_pod_that_stops_being_ready_is_out_of_routing_and_told(
    installed: Installed, api: KubeClient, models: str
) -> None:
    sandbox = installed.cluster.sandbox
    if sandbox is None:
        pytest.skip("the simulated NIM of a foreign cluster cannot be reached")
    for name in ("flaps", "other"):
        installed.apply_model(models, name, f"{models}/{name}", probes=PROMPT, **NO_HOLD, **FAST)
    for name in ("flaps", "other"):
        await _recovered(installed, models, name, timeout_s=60)
    [pod] = await _pods(api, models, "flaps")
    port = sandbox.forward_address(pod["status"]["podIP"], CONTROL_PORT)
    sick = {"kind": "status", "status": 503, "path": "/v1/health/ready"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as control:
        for _ in range(3):
            assert (await control.put("/faults", json=[sick])).status_code == 200
            live = await _explained(api, models, "flaps", _not_ready, "LoadingWeights")
            assert condition(live, "Routed")["status"] == "True", "the route stays, without pods"
            await asyncio.to_thread(eventually, partial(_refused, installed, f"{models}/flaps"), 5)
            assert (
                await asyncio.to_thread(installed.complete, f"{models}/other")
            ).status_code == 200
            assert (await control.put("/faults", json=[])).status_code == 200
            await _recovered(installed, models, "flaps")
    told = [
        each
        async for page, _ in api.pages(EVENT, models)
        for each in page
        if each["source"].get("component") == "nimway-operator"
        and each["involvedObject"]["name"] == "flaps"
    ]
    assert len({each["reason"] for each in told}) == len(told), "one Event for each reason"


@contextmanager
def _watched(installed: Installed, namespace: str, name: str) -> Iterator[list[str]]:
    """Record Ready and Reconciling at each change of a model, while the block runs."""
    path = "{.status.conditions[?(@.type=='Ready')].status}"
    path += " {.status.conditions[?(@.type=='Reconciling')].status}{'\\n'}"
    command = [str(installed.cluster.kubectl_program), "get", "-n", namespace, f"nimmodel/{name}"]
    seen: list[str] = []
    with subprocess.Popen(
        [*command, "--watch", "-o", f"jsonpath={path}"],
        env=os.environ | {"KUBECONFIG": str(installed.cluster.kubeconfig)},
        stdout=subprocess.PIPE,
        text=True,
    ) as watch:
        try:
            yield seen
        finally:
            watch.terminate()
            assert watch.stdout is not None
            seen += watch.stdout.read().splitlines()


def _replaced(installed: Installed, namespace: str, name: str, before: set[str]) -> bool:
    live: Any = installed.get(namespace, "nimmodel", name)
    pods = installed.list(namespace, "pods", f"app.kubernetes.io/instance={name}")
    settled = condition(live, "Reconciling")["reason"] == "Settled"
    current = live["status"]["observedGeneration"] == live["metadata"]["generation"]
    uids = {pod["metadata"]["uid"] for pod in pods}
    return settled and current and len(uids) == 2 and not uids & before


def test_ready_stays_while_a_rolling_update_serves(installed: Installed, models: str) -> None:
    installed.apply_model(models, "rolled", f"org/{models}", replicas=2, **FAST)
    installed.wait_ready(models, "rolled")
    eventually(partial(_replaced, installed, models, "rolled", set()), 60, "two pods serve")
    pods = installed.list(models, "pods", "app.kubernetes.io/instance=rolled")
    before = {pod["metadata"]["uid"] for pod in pods}
    change = json.dumps({"spec": {"env": [{"name": "NIMSIM_TOKEN_S", "value": "0.02"}]}})
    with (
        _watched(installed, models, "rolled") as seen,
        installed.load(f"org/{models}") as answers,
    ):
        installed.kubectl("patch", "-n", models, "nimmodel/rolled", "--type=merge", "-p", change)
        eventually(partial(_replaced, installed, models, "rolled", before), 120, "all are new")
    assert {line.split()[0] for line in seen} == {"True"}, seen
    assert "True True" in seen, "the update was told meanwhile"
    assert seen[-1] == "True False"
    assert set(answers.statuses) == {200}
    assert answers.errors == []
