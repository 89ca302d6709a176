"""Sleep and wake as a user lives it: a request to a sleeping model is held, and answered."""

import json
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest

from tests.support.installed import NAMESPACE, Installed, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

COST = "controller.kubernetes.io/pod-deletion-cost"
SLEEPS = {"minReplicas": 0, "maxReplicas": 2, "scaleDownDelaySeconds": 1, "idleSeconds": 4}
LOADS_AT_ONCE = [{"name": "NIMSIM_LOAD_S", "value": "0"}]
CUTS = {"name": "NIMSIM_SIGTERM", "value": "cut"}
FAST: dict[str, Any] = {
    "drain": {"seconds": 20},
    "env": LOADS_AT_ONCE,
    "probes": {"startup": {"periodSeconds": 1}, "readiness": {"periodSeconds": 1}},
}


def _reason(installed: Installed, namespace: str, name: str) -> str:
    condition = installed.condition(namespace, name, "Ready") or {}
    return str(condition.get("reason"))


def _is(installed: Installed, namespace: str, name: str, reason: str) -> bool:
    return _reason(installed, namespace, name) == reason


def _asleep(installed: Installed, namespace: str, name: str, timeout_s: float = 30.0) -> Any:
    eventually(partial(_is, installed, namespace, name, "ScaledToZero"), timeout_s, "asleep")
    return installed.get(namespace, "nimmodel", name)


def _restart(installed: Installed, deployment: str) -> None:
    where = ("-n", NAMESPACE, f"deployment/{deployment}")
    installed.kubectl("rollout", "restart", *where)
    installed.kubectl("rollout", "status", *where, "--timeout=60s")


def _stream(installed: Installed, model: str, tokens: int) -> str:
    body = {
        "model": model,
        "prompt": "x",
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }
    with httpx.Client(trust_env=False, timeout=60) as client:
        answer = client.post(f"{installed.base_url}/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.text


def test_a_request_wakes_a_sleeping_model_which_sleeps_again(
    installed: Installed, models: str
) -> None:
    installed.apply_model(models, "sleeper", "org/sleeper", replicas=0, autoscaling=SLEEPS, **FAST)
    _asleep(installed, models, "sleeper")
    eventually(lambda: "org/sleeper" in installed.listed(), 10)
    columns = installed.kubectl("get", "nimmodels", "-n", models).splitlines()[1].split()
    assert columns[2:5] == ["0/0", "1", "ScaledToZero"]

    with ThreadPoolExecutor(8) as pool:
        held = [pool.submit(installed.complete, "org/sleeper") for _ in range(8)]
        eventually(partial(_is, installed, models, "sleeper", "Waking"), 10, "waking")
        answers = [each.result() for each in held]
    assert [each.status_code for each in answers] == [200] * 8, answers[0].text

    asleep = _asleep(installed, models, "sleeper")
    assert asleep["status"]["autoscaling"]["coldStartSeconds"] >= 1
    # One write up, one down: the first is metadata.generation 1.
    assert asleep["metadata"]["generation"] == 3

    # Both halves start anew while it sleeps: it is still known, and wakes again.
    _restart(installed, "nimway-operator")
    _restart(installed, "nimway-default")
    assert installed.complete("org/sleeper").status_code == 200
    assert installed.get(models, "nimmodel", "sleeper")["metadata"]["generation"] == 4


def test_a_pod_answers_who_waits_before_its_kubelet_asks_it(
    installed: Installed, models: str
) -> None:
    probes = {"startup": {"periodSeconds": 40}}
    spec = FAST | {"probes": probes, "env": [{"name": "NIMSIM_LOAD_S", "value": "5"}]}
    installed.apply_model(models, "early", "org/early", replicas=0, autoscaling=SLEEPS, **spec)
    _asleep(installed, models, "early")
    eventually(lambda: "org/early" in installed.listed(), 10)
    began_s = time.monotonic()
    answer = installed.complete("org/early")
    assert (answer.status_code, time.monotonic() - began_s < 20) == (200, True)
    assert _reason(installed, models, "early") == "Waking", "the kubelet asks after 40 s"


def test_a_restarted_operator_wakes_what_was_asked_for_meanwhile(
    installed: Installed, models: str
) -> None:
    installed.apply_model(models, "meanwhile", "org/meanwhile", replicas=0, autoscaling=SLEEPS)
    _asleep(installed, models, "meanwhile")
    eventually(lambda: "org/meanwhile" in installed.listed(), 10)
    operator = ("-n", NAMESPACE, "deployment/nimway-operator")
    installed.kubectl("scale", *operator, "--replicas=0")
    eventually(
        lambda: not installed.list(NAMESPACE, "pods", "app.kubernetes.io/component=operator"), 30
    )
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(installed.complete, "org/meanwhile")
        threading.Event().wait(1)
        assert not held.done()
        installed.kubectl("scale", *operator, "--replicas=1")
        assert held.result().status_code == 200, held.result().text


def test_a_model_that_its_user_switched_off_is_not_woken(installed: Installed, models: str) -> None:
    queue = {"maxWaitSeconds": 1}
    installed.apply_model(models, "off", "org/off", replicas=0, routing={"queue": queue})
    eventually(partial(_is, installed, models, "off", "SwitchedOff"), 10)
    eventually(lambda: "org/off" in installed.listed(), 10)
    answer = installed.complete("org/off")
    assert answer.status_code == 503
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    live = installed.get(models, "nimmodel", "off")
    assert (live["spec"]["replicas"], live["metadata"]["generation"]) == (0, 1)


def test_fewer_replicas_cut_no_stream_and_the_idle_pod_goes(
    installed: Installed, models: str
) -> None:
    """Not even of a model server that cuts its streams on SIGTERM: preStop waits for them."""
    env = [*LOADS_AT_ONCE, CUTS, {"name": "NIMSIM_TOKEN_S", "value": "0.1"}]
    rules = {**SLEEPS, "minReplicas": 1, "scaleDownDelaySeconds": 600}
    name, model = "streams", "org/streams"
    installed.apply_model(
        models, name, model, replicas=2, autoscaling=rules, **{**FAST, "env": env}
    )
    installed.wait_ready(models, name)
    eventually(lambda: len(_ready_pods(installed, models, name)) == 2, 30)
    with ThreadPoolExecutor(1) as pool:
        stream: Future[str] = pool.submit(_stream, installed, model, 90)
        busy = eventually(partial(_busy, installed, models, name), 10, "the stream runs")
        patch = json.dumps({"spec": {"autoscaling": {"maxReplicas": 1}}})
        installed.kubectl("patch", "-n", models, f"nimmodel/{name}", "--type=merge", "-p", patch)
        left = eventually(partial(_one_left, installed, models, name), 20, "one pod is left")
        assert left == busy
        cost = installed.get(models, "pod", left)["metadata"]["annotations"][COST]
        assert cost == "1", "the pods were ranked by their requests"
        # Now the one that is left has to go as well, with its stream.
        assert not stream.done()
        installed.kubectl("delete", "-n", models, f"nimmodel/{name}", "--wait=false")
        text = stream.result()
    assert text.rstrip().endswith("data: [DONE]")


def _ready_pods(installed: Installed, namespace: str, name: str) -> list[Any]:
    pods = installed.list(namespace, "pods", f"app.kubernetes.io/instance={name}")
    return [
        pod
        for pod in pods
        if "deletionTimestamp" not in pod["metadata"]
        and any(
            each["type"] == "Ready" and each["status"] == "True"
            for each in pod["status"].get("conditions", [])
        )
    ]


def _busy(installed: Installed, namespace: str, name: str) -> str | None:
    """Return the pod that runs a request."""
    for pod in _ready_pods(installed, namespace, name):
        pod_name = pod["metadata"]["name"]
        path = f"/api/v1/namespaces/{namespace}/pods/{pod_name}:8000/proxy/v1/metrics"
        text = installed.kubectl("get", "--raw", path)
        if any(
            line.startswith("num_requests_running") and not line.rstrip().endswith((" 0", " 0.0"))
            for line in text.splitlines()
        ):
            return str(pod_name)
    return None


def _one_left(installed: Installed, namespace: str, name: str) -> str | None:
    left = _ready_pods(installed, namespace, name)
    return str(left[0]["metadata"]["name"]) if len(left) == 1 else None
