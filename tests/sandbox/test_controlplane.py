"""The control plane that a sandbox brings up, seen from the host."""

import json
import subprocess
import sysconfig
from pathlib import Path

import httpx
import pytest

from tests.sandbox.pods import pod, shell
from tests.support.cluster import Cluster, eventually

pytestmark = pytest.mark.cluster

NIMWAY = str(Path(sysconfig.get_path("scripts")) / "nimway")


def test_a_default_service_account_and_namespace_exist_once_launch_returns(
    cluster: Cluster, namespace: str
) -> None:
    assert "default" in cluster.kubectl("get", "serviceaccounts", "-n", "default", "-o", "name")
    assert cluster.kubectl("get", "namespace", namespace, "-o", "name").strip().endswith(namespace)


def test_the_audit_log_has_who_did_what_to_which_object(cluster: Cluster, namespace: str) -> None:
    if cluster.sandbox is None:
        pytest.skip("a foreign cluster's audit log is elsewhere")
    cluster.kubectl("create", "configmap", "seen", "-n", namespace)
    events = [json.loads(line) for line in cluster.sandbox.audit_log.read_text().splitlines()]
    found = [
        each
        for each in events
        if each["verb"] == "create"
        and each.get("objectRef", {}).get("namespace") == namespace
        and each["objectRef"]["resource"] == "configmaps"
    ]
    admins = [each for each in found if each["user"]["username"] == "sandbox-admin"]
    assert [each["objectRef"]["name"] for each in admins] == ["seen"]
    assert {each["stage"] for each in admins} == {"ResponseComplete"}


def test_logs_and_forward_reach_a_pod_from_the_command_line(
    cluster: Cluster, namespace: str
) -> None:
    if cluster.sandbox is None:
        pytest.skip("these are commands of the sandbox")
    server = shell(
        "echo hello; exec python3 -m http.server 8000",
        readinessProbe={"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1},
    )
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 8000}]},
    }
    cluster.apply(namespace, service, pod("web", server))
    cluster.kubectl("wait", "-n", namespace, "pod/web", "--for=condition=Ready", "--timeout=20s")
    run = [NIMWAY, "sandbox"]
    name = ["--name", cluster.sandbox.name]
    command = [*run, "logs", *name, "web", "-n", namespace, "--tail=5"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert output.startswith("hello\n")
    command = [*run, "forward", *name, "-n", namespace, "web"]
    address = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def answers() -> bool:
        # The EndpointSlice follows the pod's readiness within moments.
        try:
            return httpx.get(address, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    eventually(answers, "the pod answers through the forwarded port", timeout_s=10)
