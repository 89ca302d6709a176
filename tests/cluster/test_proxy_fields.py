"""Fields of a NIMProxy change what its pods do: limits, timeouts, Authorization, access log."""

from typing import Any

import httpx
import pytest
import yaml

from tests.support.installed import NAMESPACE, Installed, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

REQUEST = '"event":"request"'
KEY = "Bearer a-key-of-the-client"
CONTROL_PORT = 8002
"""Where a simulated NIM tells what it received."""

LIMITED = {
    "limits": {"maxBodyBytes": 4096, "maxHeaderBytes": 8192, "maxHeaderLineBytes": 4096},
    "timeouts": {"firstByteSeconds": 1, "headSeconds": 5},
    "passAuthorization": True,
    "accessLog": {"samplePercent": 0},
}


@pytest.fixture
def limited(installed: Installed, models: str) -> str:
    """The base URL of a NIMProxy with limits of its own; models: `quick`, `slow` and `patient`."""
    if installed.cluster.sandbox is None:
        pytest.skip("needs the sandbox's way to a Service")
    manifest = {
        "apiVersion": "nimway.dev/v1alpha1",
        "kind": "NIMProxy",
        "metadata": {"name": "limited", "namespace": models},
        "spec": {"replicas": 1, "drainSeconds": 1, **LIMITED},
    }
    installed.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump(manifest))
    late = [{"name": "NIMSIM_TTFT_S", "value": "3"}, {"name": "NIMSIM_LOAD_S", "value": "0"}]
    common: dict[str, Any] = {"drain": {"seconds": 0}, "gpus": 0}
    installed.apply_model(models, "quick", "org/quick", **common)
    installed.apply_model(models, "slow", "org/slow", env=late, **common)
    patient = {"timeouts": {"firstByteSeconds": 30}}
    installed.apply_model(models, "patient", "org/patient", env=late, routing=patient, **common)
    for name in ("quick", "slow", "patient"):
        installed.wait_ready(models, name)
    # Models are Ready as soon as one of the proxies that lead to them serves: that is the other.
    installed.wait_ready(models, "limited", kind="nimproxy")
    port = installed.cluster.sandbox.forward_service(models, "nimway-limited", "http")
    return f"http://127.0.0.1:{port}"


def test_limits_timeouts_and_switches_reach_the_pods(
    installed: Installed, models: str, limited: str
) -> None:
    def ask(model: str, prompt: str = "x", **fields: str) -> httpx.Response:
        body = {"model": model, "prompt": prompt, "max_tokens": 2}
        with httpx.Client(trust_env=False, timeout=30) as client:
            return client.post(f"{limited}/v1/completions", json=body, headers=fields)

    assert ask("org/quick", Authorization=KEY).status_code == 200
    assert _received(installed, models, "quick") == [["Authorization", "(hidden)"]]
    assert ask("org/quick", "x" * 5000).status_code == 413
    assert ask("org/quick", **{"x-long": "x" * 5000}).status_code == 431
    assert ask("org/slow").status_code == 504
    assert ask("org/patient").status_code == 200, "what the model says wins"

    # The other proxy, of another namespace, is as before.
    answer = installed.complete("org/quick", prompt="x" * 5000)
    assert answer.status_code == 200
    eventually(lambda: REQUEST in _log(installed, NAMESPACE, "default"), what="a line of its log")
    log = _log(installed, models, "limited")
    assert "serving a new routing table" in log
    assert REQUEST not in log


def test_a_changed_limit_replaces_the_pods_one_by_one(
    installed: Installed, models: str, limited: str
) -> None:
    selector = "app.kubernetes.io/instance=limited"
    (before,) = installed.list(models, "pods", selector)
    change = '{"spec": {"limits": {"maxBodyBytes": 65536}}}'
    installed.kubectl("patch", "nimproxy", "limited", "-n", models, "--type=merge", "-p", change)

    def replaced() -> bool:
        pods = installed.list(models, "pods", selector)
        return [pod["metadata"]["uid"] for pod in pods] != [before["metadata"]["uid"]] and any(
            each["type"] == "Ready" and each["status"] == "True"
            for pod in pods
            if "deletionTimestamp" not in pod["metadata"]
            and pod["metadata"]["uid"] != before["metadata"]["uid"]
            for each in pod["status"].get("conditions", ())
        )

    eventually(replaced, 60, "a pod with the new limit")

    def taken() -> bool:
        body = {"model": "org/quick", "prompt": "x" * 5000, "max_tokens": 2}
        with httpx.Client(trust_env=False, timeout=30) as client:
            return client.post(f"{limited}/v1/completions", json=body).status_code == 200

    eventually(taken, 30, "a larger body is taken")


def _received(installed: Installed, namespace: str, model: str) -> list[list[str]]:
    """Return the Authorization fields of the last request at a model's pod."""
    sandbox = installed.cluster.sandbox
    assert sandbox is not None
    (pod,) = installed.list(namespace, "pods", f"app.kubernetes.io/instance={model}")
    port = sandbox.forward_address(pod["status"]["podIP"], CONTROL_PORT)
    with httpx.Client(trust_env=False) as client:
        last = client.get(f"http://127.0.0.1:{port}/last").json()
    return [field for field in last["headers"] if field[0].lower() == "authorization"]


def _log(installed: Installed, namespace: str, proxy: str) -> str:
    selector = f"app.kubernetes.io/instance={proxy},app.kubernetes.io/component=proxy"
    return installed.kubectl("logs", "-n", namespace, "-l", selector, "--tail=-1")
