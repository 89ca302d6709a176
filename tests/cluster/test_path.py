"""From `kubectl apply` to a completion as a user lives it: chart, operator, proxies, NIM."""

import json
import time
from functools import partial
from typing import Any

import httpx
import pytest

from tests.support.installed import NAMESPACE, Installed, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

FAST = {"drain": {"seconds": 5}}
NO_HOLD = {"routing": {"queue": {"maxWaitSeconds": 0}}}
"""Requests to a model without a pod are refused at once instead of being held."""


def _pods(installed: Installed, namespace: str, name: str) -> list[Any]:
    return installed.list(namespace, "pods", f"app.kubernetes.io/instance={name}")


def test_a_model_is_applied_routed_and_answers(installed: Installed, models: str) -> None:
    installed.apply_model(models, "llama", "org/first", **FAST)
    installed.wait_ready(models, "llama")

    answer = installed.complete("org/first")
    assert answer.status_code == 200, answer.text
    assert answer.json()["object"] == "text_completion"
    assert "org/first" in installed.listed()
    status = installed.get(models, "nimmodel", "llama")["status"]
    assert (status["ready"], status["readyReplicas"], status["replicas"]) == ("1/1", 1, 1)
    assert status["servedModels"] == ["org/first"]
    assert installed.condition(models, "llama", "Routed")["status"] == "True"
    (pod,) = _pods(installed, models, "llama")
    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    assert installed.get(models, "service", "llama")["spec"]["ports"][0]["name"] == "http"
    columns = installed.kubectl("get", "nimmodels", "-n", models).splitlines()
    assert columns[0].split() == ["NAME", "MODEL", "READY", "GPUS", "REASON", "ROUTED", "AGE"]
    assert columns[1].split()[:6] == ["llama", "org/first", "1/1", "1", "Serving", "True"]


def test_scaling_never_makes_a_model_unknown(installed: Installed, models: str) -> None:
    installed.apply_model(models, "scaled", "org/scaled", **FAST, **NO_HOLD)
    installed.wait_ready(models, "scaled")

    def scale(replicas: int) -> None:
        installed.kubectl("scale", "-n", models, "nimmodel/scaled", f"--replicas={replicas}")

    def ready(wanted: str) -> bool:
        status: Any = installed.get(models, "nimmodel", "scaled")["status"]
        return bool(status["ready"] == wanted)

    with installed.load("org/scaled", clients=2) as answers:
        for replicas in (2, 0, 1):
            scale(replicas)
            eventually(partial(ready, f"{replicas}/{replicas}"), 60)
            if replicas == 0:
                refused = eventually(lambda: _refused(installed, "org/scaled"))
                assert 1 <= int(refused.headers["retry-after"]) <= 60
                assert refused.json()["error"]["code"] == "model_not_ready"
                assert "org/scaled" in installed.listed()
        eventually(lambda: installed.complete("org/scaled").status_code == 200, 30)
    assert set(answers.statuses) == {200, 503}
    assert answers.errors == []


def _refused(installed: Installed, model: str) -> httpx.Response | None:
    answer = installed.complete(model)
    return answer if answer.status_code == 503 else None


def test_a_deleted_model_leaves_nothing(installed: Installed, models: str) -> None:
    installed.apply_model(models, "gone", "org/gone", **FAST)
    installed.wait_ready(models, "gone")

    installed.kubectl("delete", "-n", models, "nimmodel/gone")

    eventually(lambda: installed.complete("org/gone").status_code == 404, 10)
    for kind in ("deployment", "service", "poddisruptionbudget", "replicaset", "pod"):
        # The garbage collector looks for new kinds every 30 s: it may just have missed NIMModel.
        eventually(partial(_none_left, installed, models, kind), 75, kind)
    assert "org/gone" not in installed.listed()


def _none_left(installed: Installed, namespace: str, kind: str) -> bool:
    return not installed.list(namespace, kind, "app.kubernetes.io/instance=gone")


@pytest.mark.parametrize(
    ("kind", "patch", "path"),
    [
        ("deployment", {"spec": {"replicas": 3}}, ("spec", "replicas")),
        ("service", {"spec": {"selector": {"app.kubernetes.io/instance": "x"}}}, ("spec",)),
        ("deployment", None, ()),
        ("service", None, ()),
        ("poddisruptionbudget", None, ()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_children_come_back(
    installed: Installed, models: str, kind: str, patch: Any, path: tuple[str, ...]
) -> None:
    installed.apply_model(models, "child", "org/child", replicas=0)
    before = eventually(lambda: installed.get(models, kind, "child"))

    if patch is None:
        installed.kubectl("delete", "-n", models, f"{kind}/child", "--wait=false")
    else:
        installed.kubectl(
            "patch", "-n", models, f"{kind}/child", "--type=merge", "-p", json.dumps(patch)
        )

    def restored() -> bool:
        now = installed.get(models, kind, "child")
        if patch is None:
            return bool(now) and now["metadata"]["uid"] != before["metadata"]["uid"]
        return bool(_at(now, path) == _at(before, path))

    eventually(restored, 5)


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def test_the_older_of_two_claims_to_a_name_wins(installed: Installed, models: str) -> None:
    installed.apply_model(models, "older", "org/claimed", replicas=0)
    eventually(lambda: installed.condition(models, "older", "Routed"))
    time.sleep(1.1)  # creationTimestamp counts in seconds
    installed.apply_model(models, "younger", "org/claimed", replicas=0)

    told = eventually(
        lambda: _reason(installed, models, "younger", "Ready") == "NameConflict", 10, "told"
    )
    assert told
    assert "older" in installed.condition(models, "younger", "Ready")["message"]

    installed.kubectl("delete", "-n", models, "nimmodel/older")
    eventually(
        lambda: _reason(installed, models, "younger", "Ready") == "SwitchedOff", 10, "promoted"
    )


def _reason(installed: Installed, namespace: str, name: str, kind: str) -> str | None:
    condition = installed.condition(namespace, name, kind)
    return condition["reason"] if condition else None


def test_a_name_with_dots_works(installed: Installed, models: str) -> None:
    installed.apply_model(models, "llama-3.1-8b", "org/dots", **FAST)
    installed.wait_ready(models, "llama-3.1-8b")
    assert installed.complete("org/dots").status_code == 200


def test_an_unschedulable_model_says_how_many_gpus_it_waits_for(
    installed: Installed, models: str
) -> None:
    installed.apply_model(models, "huge", "org/huge", gpus=64, **NO_HOLD)
    eventually(lambda: _reason(installed, models, "huge", "Ready") == "WaitingForGPU", 10)
    message = installed.condition(models, "huge", "Ready")["message"]
    assert "64 nvidia.com/gpu" in message
    eventually(lambda: installed.complete("org/huge").status_code == 503, 5)


def test_an_unknown_image_is_named(installed: Installed, models: str) -> None:
    installed.apply_model(models, "typo", "org/typo", image="nvcr.io/nmi/typo:1")
    eventually(lambda: _reason(installed, models, "typo", "Ready") == "ImagePullFailed", 20)
    assert "nvcr.io/nmi/typo:1" in installed.condition(models, "typo", "Ready")["message"]


def test_a_missing_secret_is_named(installed: Installed, models: str) -> None:
    installed.apply_model(models, "keyless", "org/keyless", authSecret="no-such-secret")
    eventually(lambda: _reason(installed, models, "keyless", "Ready") == "SecretNotFound", 20)
    assert "no-such-secret" in installed.condition(models, "keyless", "Ready")["message"]


def test_a_restarted_operator_serves_on_and_writes_nothing(
    installed: Installed, models: str
) -> None:
    installed.apply_model(models, "steady", "org/steady", **FAST)
    installed.wait_ready(models, "steady")
    before = _versions(installed, models)

    with installed.load("org/steady", clients=2) as answers:
        installed.kubectl("rollout", "restart", "-n", NAMESPACE, "deployment/nimway-operator")
        installed.kubectl(
            *("rollout", "status", "-n", NAMESPACE, "deployment/nimway-operator"),
            "--timeout=60s",
        )
        installed.apply_model(models, "later", "org/later", replicas=0)
        eventually(lambda: "org/later" in installed.listed(), 30)
    assert set(answers.statuses) == {200}
    assert answers.errors == []
    assert _versions(installed, models) == before


def _versions(installed: Installed, namespace: str) -> dict[str, str]:
    """Resource versions of all that the operator writes for the model `steady`."""
    objects = [installed.get(namespace, "nimmodel", "steady")]
    for kind in ("deployment", "service", "poddisruptionbudget"):
        objects += installed.list(namespace, kind, "app.kubernetes.io/instance=steady")
    return {
        f"{each['kind']}/{each['metadata']['name']}": each["metadata"]["resourceVersion"]
        for each in objects
    }


def test_a_rolling_restart_of_the_proxies_loses_no_request(
    installed: Installed, models: str
) -> None:
    if not installed.balanced:
        pytest.skip("a port-forward ends with the one proxy that it leads to")
    installed.apply_model(models, "rolled", "org/rolled", **FAST)
    installed.wait_ready(models, "rolled")

    def proxies() -> set[str]:
        pods = installed.list(NAMESPACE, "pods", "app.kubernetes.io/component=proxy")
        return {pod["metadata"]["name"] for pod in pods}

    before = proxies()
    with installed.load("org/rolled") as answers:
        installed.kubectl(
            *("patch", "-n", NAMESPACE, "nimproxy/default", "--type=merge"),
            *("-p", json.dumps({"spec": {"annotations": {"test/restart": models}}})),
        )
        eventually(lambda: not proxies() & before and len(proxies()) == len(before), 120)
    assert len(answers.statuses) > 50
    assert set(answers.statuses) == {200}
    assert answers.errors == []


def test_routed_means_every_proxy_serves_the_revision(installed: Installed, models: str) -> None:
    installed.apply_model(models, "revised", "org/revised", replicas=0)
    eventually(lambda: _reason(installed, models, "revised", "Routed") is not None, 10)
    eventually(
        lambda: installed.condition(models, "revised", "Routed")["status"] == "True", 10, "routed"
    )
    table = installed.get(NAMESPACE, "configmap", "nimway-default-routes")["data"]
    proxy = eventually(lambda: _settled_proxy(installed, table["revision"]), 10)
    assert proxy["status"]["readyReplicas"] == 2
    assert f"{models}/revised" in table["routes.json"]


def _settled_proxy(installed: Installed, revision: str) -> Any:
    proxy = installed.get(NAMESPACE, "nimproxy", "default")
    return proxy if proxy["status"].get("revision") == revision else None


def test_a_model_that_nobody_declared_is_unknown(installed: Installed) -> None:
    answer = installed.complete("org/never-declared")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
