"""A pod's life on the process node, against the real control plane."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nimway.proxy import wire
from tests.sandbox.pods import IMAGE, pod, shell, sleeper
from tests.support.cluster import Cluster, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("_needs_sandbox")]


@pytest.fixture
def _needs_sandbox(cluster: Cluster) -> None:
    if cluster.sandbox is None:
        pytest.skip("a foreign cluster's nodes are not ours to test")


def _state(cluster: Cluster, namespace: str, name: str) -> dict[str, Any]:
    """Return the first container's status, {} before there is one."""
    found = cluster.get(namespace, "pod", name) or {}
    statuses = found.get("status", {}).get("containerStatuses") or [{}]
    return dict(statuses[0])


def _waiting(cluster: Cluster, namespace: str, name: str, reason: str) -> str:
    """Wait for a waiting reason and return its message."""

    def probe() -> str | None:
        waiting = _state(cluster, namespace, name).get("state", {}).get("waiting", {})
        return waiting.get("message", " ") if waiting.get("reason") == reason else None

    return eventually(probe, f"{name} waiting with {reason}")


def _log_of_finished(cluster: Cluster, namespace: str, name: str) -> str:
    cluster.kubectl(
        "wait", "-n", namespace, f"pod/{name}", "--for=jsonpath={.status.phase}=Succeeded",
        "--timeout=30s",
    )  # fmt: skip
    return cluster.kubectl("logs", "-n", namespace, name)


def test_a_pod_is_ready_only_after_its_probe_passed(cluster: Cluster, namespace: str) -> None:
    probe = {"exec": {"command": ["test", "-f", "/gate/open"]}, "periodSeconds": 1}
    container = sleeper(readinessProbe=probe, volumeMounts=[{"name": "gate", "mountPath": "/gate"}])
    volumes: list[dict[str, Any]] = [{"name": "gate", "emptyDir": {}}]
    cluster.apply(namespace, pod("probed", container, volumes=volumes))
    eventually(
        lambda: _state(cluster, namespace, "probed").get("state", {}).get("running"), "running"
    )
    assert _state(cluster, namespace, "probed")["ready"] is False
    uid = (cluster.get(namespace, "pod", "probed") or {})["metadata"]["uid"]
    assert cluster.sandbox is not None
    (cluster.sandbox.config.pods / f"volumes-{uid}" / "gate" / "open").touch()
    cluster.kubectl("wait", "-n", namespace, "pod/probed", "--for=condition=Ready", "--timeout=10s")


def test_environment_volumes_and_downward_api_reach_the_process(
    cluster: Cluster, namespace: str
) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}}
    cluster.apply(namespace, config | {"data": {"a": "1"}}, secret | {"stringData": {"k": "s3"}})
    env = [
        {"name": "FROM_SECRET", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}},
        {"name": "FROM_CONFIG", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "a"}}},
        {"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "BOTH", "value": "$(FROM_SECRET)-$(FROM_CONFIG)-$$(X)"},
    ]
    script = (
        'echo "$BOTH $CPUS"; cat /etc/settings/a /secret/k /labels; echo; '
        "touch /secret/x 2>/dev/null || echo read-only; "
        'ip -o -4 addr show dev eth0 | grep -c "$ADDRESS/16"; hostname'
    )
    mounts = [
        {"name": "config", "mountPath": "/etc/settings"},
        {"name": "secret", "mountPath": "/secret", "readOnly": True},
        {"name": "labels", "mountPath": "/labels", "subPath": "labels"},
    ]
    labels = {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}
    volumes = [
        {"name": "config", "configMap": {"name": "settings"}},
        {"name": "secret", "secret": {"secretName": "key"}},
        {"name": "labels", "downwardAPI": {"items": [labels]}},
    ]
    resources = {"limits": {"cpu": "1500m"}}
    container = shell(script, env=env, volumeMounts=mounts, resources=resources)
    cluster.apply(namespace, pod("reads", container, volumes=volumes, restartPolicy="Never"))
    lines = _log_of_finished(cluster, namespace, "reads").splitlines()
    assert lines == ["s3-1-$(X) 2", '1s3app="reads"', "read-only", "1", "reads"]


def test_a_pod_runs_the_nimway_that_runs_the_sandbox(cluster: Cluster, namespace: str) -> None:
    script = "import nimway.proxy.wire as module; print(module.__file__)"
    container = {"name": "main", "image": IMAGE, "command": ["python3", "-c", script]}
    cluster.apply(namespace, pod("tells", container, restartPolicy="Never"))
    assert _log_of_finished(cluster, namespace, "tells").strip() == wire.__file__
    compiled = [folder for folder in sys.path if list(Path(folder).glob("nimway_proxy__mypyc.*"))]
    assert wire.__file__.endswith(".so" if compiled else ".py")


def test_a_pods_token_is_its_service_accounts_at_the_api_server(
    cluster: Cluster, namespace: str
) -> None:
    script = """\
import json, os, ssl, urllib.request
base = "/var/run/secrets/kubernetes.io/serviceaccount/"
host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
request = urllib.request.Request(
    f"https://{host}:{port}" + "/apis/authentication.k8s.io/v1/selfsubjectreviews",
    data=b'{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}',
    headers={"Authorization": "Bearer " + open(base + "token").read(),
             "Content-Type": "application/json"})
context = ssl.create_default_context(cafile=base + "ca.crt")
print(json.load(urllib.request.urlopen(request, context=context))["status"]["userInfo"]["username"])
print(open(base + "namespace").read())
"""
    container = {"name": "main", "image": IMAGE, "command": ["python3", "-c", script]}
    cluster.apply(namespace, pod("asks", container, restartPolicy="Never"))
    lines = _log_of_finished(cluster, namespace, "asks").splitlines()
    assert lines == [f"system:serviceaccount:{namespace}:default", namespace]


def test_a_terminating_pod_stays_a_serving_endpoint_until_its_process_has_ended(
    cluster: Cluster, namespace: str
) -> None:
    server = shell(
        "python3 -m http.server 8000 & trap 'sleep 2; exit 0' TERM; while :; do sleep 0.05; done",
        ports=[{"name": "http", "containerPort": 8000}],
        readinessProbe={"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
    )
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": 8000}],
        },
    }
    cluster.apply(namespace, service, pod("web", server))
    cluster.kubectl("wait", "-n", namespace, "pod/web", "--for=condition=Ready", "--timeout=20s")

    def endpoint() -> dict[str, bool]:
        slices = cluster.items(namespace, "endpointslices")
        found = [each for slice_ in slices for each in slice_.get("endpoints") or []]
        return found[0]["conditions"] if found else {}

    eventually(lambda: endpoint().get("ready"), "a ready endpoint")
    cluster.kubectl("delete", "-n", namespace, "pod/web", "--wait=false")
    seen = eventually(lambda: (got := endpoint()).get("terminating") and got, "terminating")
    assert seen == {"ready": False, "serving": True, "terminating": True}
    eventually(lambda: not endpoint(), "no endpoint once the process has ended")
    eventually(lambda: cluster.get(namespace, "pod", "web") is None, "no pod")


def test_a_process_that_ignores_sigterm_is_killed_when_its_grace_period_is_over(
    cluster: Cluster, namespace: str
) -> None:
    stubborn = shell("trap '' TERM; while :; do sleep 0.05; done")
    cluster.apply(namespace, pod("stubborn", stubborn, terminationGracePeriodSeconds=2))
    eventually(
        lambda: _state(cluster, namespace, "stubborn").get("state", {}).get("running"), "running"
    )
    began = time.monotonic()
    cluster.kubectl("delete", "-n", namespace, "pod/stubborn")
    assert 2.0 <= time.monotonic() - began < 5.0


def test_pre_stop_runs_before_sigterm_and_counts_against_the_grace_period(
    cluster: Cluster, namespace: str
) -> None:
    container = shell(
        "trap 'echo term; exit 0' TERM; while :; do sleep 0.05; done",
        lifecycle={"preStop": {"exec": {"command": ["sh", "-c", "echo hook > /proc/1/fd/1"]}}},
    )
    cluster.apply(namespace, pod("hooked", container))
    eventually(
        lambda: _state(cluster, namespace, "hooked").get("state", {}).get("running"), "running"
    )
    cluster.kubectl("delete", "-n", namespace, "pod/hooked")
    assert cluster.sandbox is not None
    [log] = cluster.sandbox.config.pods.glob(f"{namespace}_hooked_*/logs/main/0.log")
    assert log.read_text() == "hook\nterm\n"


def test_a_crashing_container_restarts_with_back_off_and_keeps_its_last_state(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(namespace, pod("crashes", shell("exit 7")))
    message = _waiting(cluster, namespace, "crashes", "CrashLoopBackOff")
    assert "restarting failed container=main pod=crashes_" in message
    state = eventually(
        lambda: (got := _state(cluster, namespace, "crashes")).get("restartCount", 0) >= 2 and got,
        "two restarts",
    )
    assert state["lastState"]["terminated"]["exitCode"] == 7
    assert state["lastState"]["terminated"]["reason"] == "Error"
    assert (cluster.get(namespace, "pod", "crashes") or {})["status"]["phase"] == "Running"


def test_an_unknown_image_is_an_image_pull_failure(cluster: Cluster, namespace: str) -> None:
    container = {"name": "main", "image": "docker.io/library/nginx:1.29"}
    cluster.apply(namespace, pod("unknown", container))
    message = _waiting(cluster, namespace, "unknown", "ImagePullBackOff")
    assert 'Back-off pulling image "docker.io/library/nginx:1.29"' in message
    assert (cluster.get(namespace, "pod", "unknown") or {})["status"]["phase"] == "Pending"


def test_a_missing_secret_holds_the_container_until_it_exists(
    cluster: Cluster, namespace: str
) -> None:
    env = [{"name": "K", "valueFrom": {"secretKeyRef": {"name": "late", "key": "k"}}}]
    cluster.apply(namespace, pod("waits", sleeper(env=env)))
    message = _waiting(cluster, namespace, "waits", "CreateContainerConfigError")
    assert message == 'secret "late" not found'
    cluster.kubectl("create", "secret", "generic", "late", "-n", namespace, "--from-literal=k=v")
    cluster.kubectl("wait", "-n", namespace, "pod/waits", "--for=condition=Ready", "--timeout=10s")


def test_init_containers_run_one_after_the_other_before_the_containers(
    cluster: Cluster, namespace: str
) -> None:
    mounts = [{"name": "work", "mountPath": "/work-dir"}]
    inits = [
        shell(f"echo {name} >> /work-dir/order", name=name, volumeMounts=mounts)
        for name in ("one", "two")
    ]
    main = shell("echo main >> /work-dir/order; cat /work-dir/order", volumeMounts=mounts)
    volumes: list[dict[str, Any]] = [{"name": "work", "emptyDir": {"medium": "Memory"}}]
    cluster.apply(
        namespace,
        pod("ordered", main, initContainers=inits, volumes=volumes, restartPolicy="Never"),
    )
    assert _log_of_finished(cluster, namespace, "ordered") == "one\ntwo\nmain\n"


def test_a_failing_liveness_probe_restarts_the_container(cluster: Cluster, namespace: str) -> None:
    probe = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}
    cluster.apply(namespace, pod("sick", sleeper(livenessProbe=probe)))
    eventually(lambda: _state(cluster, namespace, "sick").get("restartCount", 0) >= 1, "a restart")
    events = cluster.items(namespace, "events")
    unhealthy = [each for each in events if each["reason"] == "Unhealthy"]
    assert unhealthy[0]["message"] == "Liveness probe failed: command exited with status 1"


def test_readiness_waits_for_the_startup_probe(cluster: Cluster, namespace: str) -> None:
    container = shell(
        "sleep 1; touch /started/up; trap 'exit 0' TERM; while :; do sleep 0.05; done",
        startupProbe={"exec": {"command": ["test", "-f", "/started/up"]}, "periodSeconds": 1},
        volumeMounts=[{"name": "shm", "mountPath": "/started"}],
    )
    volumes = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    cluster.apply(namespace, pod("starts", container, volumes=volumes))
    running = eventually(
        lambda: (
            (got := _state(cluster, namespace, "starts")).get("state", {}).get("running") and got
        ),
        "running",
    )
    assert (running["started"], running["ready"]) == (False, False)
    cluster.kubectl("wait", "-n", namespace, "pod/starts", "--for=condition=Ready", "--timeout=10s")


def test_gpus_are_counted_and_tainted(cluster: Cluster, namespace: str) -> None:
    resources = {"limits": {"nvidia.com/gpu": "8"}}
    toleration = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    names = ["g1", "g2", "g3"]
    pods = [pod(name, sleeper(resources=resources), tolerations=[toleration]) for name in names]
    cluster.apply(namespace, *pods)

    def nodes() -> list[str] | None:
        found = [
            (cluster.get(namespace, "pod", name) or {})["spec"].get("nodeName") for name in names
        ]
        return found if sum(name is not None for name in found) == 2 else None

    placed = eventually(nodes, "two of three placed")
    assert {name for name in placed if name} == {"gpu-1", "gpu-2"}
    cluster.apply(namespace, pod("plain", sleeper()))
    cluster.kubectl("wait", "-n", namespace, "pod/plain", "--for=condition=Ready", "--timeout=10s")
    assert (cluster.get(namespace, "pod", "plain") or {})["spec"]["nodeName"] == "cpu-1"


def test_a_claim_of_the_default_class_is_bound_to_a_directory_that_outlives_the_pod(
    cluster: Cluster, namespace: str
) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "cache"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    volumes = [{"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}}]
    mounts = [{"name": "cache", "mountPath": "/opt/nim/.cache"}]
    cluster.apply(namespace, claim)
    for name, script in (
        ("writes", "echo kept > /opt/nim/.cache/f"),
        ("reads", "cat /opt/nim/.cache/f"),
    ):
        container = shell(script, volumeMounts=mounts)
        cluster.apply(namespace, pod(name, container, volumes=volumes, restartPolicy="Never"))
        text = _log_of_finished(cluster, namespace, name)
    assert text == "kept\n"


def test_a_pretending_pod_is_ready_without_processes(cluster: Cluster, namespace: str) -> None:
    manifest = pod("pretends", {"name": "main", "image": IMAGE})
    manifest["metadata"]["annotations"] = {"sandbox.nimway.dev/pretend": "true"}
    cluster.apply(namespace, manifest)
    cluster.kubectl(
        "wait", "-n", namespace, "pod/pretends", "--for=condition=Ready", "--timeout=10s"
    )
    found = cluster.get(namespace, "pod", "pretends") or {}
    assert found["status"]["podIP"].startswith("10.244.")
    cluster.kubectl("delete", "-n", namespace, "pod/pretends", "--timeout=10s")
