"""The whole pod, `nimway proxy`, against a real API server: its table, its rights, its end.

No request is sent to a model here: the endpoints are addresses of a documentation network.
"""

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from nimway import routes, state
from tests.support.cluster import Cluster, eventually
from tests.support.proxy import listen

pytestmark = pytest.mark.cluster

CONFIGMAP = "nimway-test-routes"


def free_port() -> int:
    with listen() as sock:
        port: int = sock.getsockname()[1]
        return port


@dataclass
class Pod:
    """A running `nimway proxy`."""

    process: subprocess.Popen[bytes]
    port: int
    admin_port: int
    log: Path

    def get(self, path: str, *, admin: bool = True) -> httpx.Response:
        port = self.admin_port if admin else self.port
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5)

    def is_up(self) -> bool:
        try:
            return self.get("/health").status_code == 200
        except httpx.TransportError:
            assert self.process.poll() is None, self.log.read_text()
            return False

    def is_ready(self) -> bool:
        return self.get("/v1/health/ready").status_code == 200

    def names(self) -> list[str]:
        try:
            listing = self.get("/v1/models", admin=False).json()
        except httpx.TransportError:
            return []
        return [card["id"] for card in listing["data"]]

    def state(self) -> state.ProxyState:
        with httpx.stream("GET", f"http://127.0.0.1:{self.admin_port}/state", timeout=5) as answer:
            return state.decode(next(answer.iter_lines()).encode())

    def metric(self, name: str, labels: str = "") -> float | None:
        pattern = rf"^{name}{re.escape(labels)} (\S+)$"
        found = re.search(pattern, self.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else None

    def endpoints(self, model: str) -> float | None:
        return self.metric("nimway_proxy_endpoints_ready", f'{{model="{model}"}}')


Start = Callable[..., Pod]


@pytest.fixture
def start(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Start]:
    pods: list[Pod] = []

    def run(*, kubeconfig: Path = cluster.kubeconfig, workers: int = 1) -> Pod:
        pod = Pod(None, free_port(), free_port(), tmp_path / f"{len(pods)}.log")  # type: ignore[arg-type] # set below
        with pod.log.open("wb") as log:
            pod.process = subprocess.Popen(
                [
                    *(str(Path(sys.executable).with_name("nimway")), "proxy"),
                    *("--host", "127.0.0.1", "--port", str(pod.port)),
                    *("--admin-port", str(pod.admin_port), "--kubeconfig", str(kubeconfig)),
                ],
                env=os.environ
                | {
                    "POD_NAMESPACE": namespace,
                    "NIMWAY_ROUTES_CONFIGMAP": CONFIGMAP,
                    "NIMWAY_WORKERS": str(workers),
                    "NIMWAY_PROPAGATION_DELAY_S": "0.2",
                },
                stdout=log,
                stderr=log,
            )
        pods.append(pod)
        eventually(pod.is_up, "the proxy is up")
        return pod

    yield run
    for pod in pods:
        pod.process.kill()
        pod.process.wait()


def build_table(namespace: str, *models: str) -> routes.RoutingTable:
    return routes.build_table(
        [routes.Route(namespace, model, model, (model,), model, 1) for model in models]
    )


def write_table(cluster: Cluster, namespace: str, data: dict[str, str]) -> None:
    metadata = {"name": CONFIGMAP}
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
    cluster.apply(namespace, manifest)


def write_slice(cluster: Cluster, namespace: str, model: str, *addresses: str) -> None:
    labels = dict(pair.split("=") for pair in routes.MODEL_ENDPOINTS_SELECTOR.split(","))
    cluster.apply(
        namespace,
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{model}-1",
                "labels": labels | {routes.SERVICE_LABEL: model},
            },
            "addressType": "IPv4",
            "ports": [{"name": routes.HTTP_PORT_NAME, "port": 8000}],
            "endpoints": [
                {"addresses": [address], "conditions": {"ready": True}} for address in addresses
            ],
        },
    )


def test_it_is_not_ready_before_its_first_table_and_follows_every_change(
    cluster: Cluster, namespace: str, start: Start
) -> None:
    pod = start(workers=2)
    assert not pod.is_ready()
    assert pod.state() == state.ProxyState(revision="", ready=False, draining=False)

    table = build_table(namespace, "a", "b")
    write_slice(cluster, namespace, "a", "192.0.2.1", "192.0.2.2")
    write_table(cluster, namespace, routes.encode(table))
    eventually(pod.is_ready, "ready")
    assert pod.names() == ["a", "b"]
    reported = pod.state()
    assert (reported.revision, reported.ready) == (table.revision, True)
    assert set(reported.models) == {f"{namespace}/a", f"{namespace}/b"}
    eventually(lambda: pod.endpoints("a") == 2, "two endpoints")
    assert pod.endpoints("b") == 0
    assert pod.metric("nimway_proxy_workers") == 2

    write_slice(cluster, namespace, "a", "192.0.2.2")
    eventually(lambda: pod.endpoints("a") == 1, "one endpoint")
    cluster.kubectl("delete", "endpointslice", "-n", namespace, "a-1")
    eventually(lambda: pod.endpoints("a") == 0, "no endpoint")

    smaller = build_table(namespace, "b")
    write_table(cluster, namespace, routes.encode(smaller))
    eventually(lambda: pod.state().revision == smaller.revision, "the new revision")
    assert pod.names() == ["b"]


def test_a_bad_or_missing_table_changes_nothing(
    cluster: Cluster, namespace: str, start: Start
) -> None:
    table = build_table(namespace, "a")
    write_table(cluster, namespace, routes.encode(table))
    pod = start()
    eventually(pod.is_ready, "ready")
    good = routes.encode(table)
    for number, bad in enumerate(
        (
            {},
            good | {routes.KEY_VERSION: "99"},
            good | {routes.KEY_ROUTES: "{"},
            good | {routes.KEY_REVISION: "0" * 16},
        ),
        1,
    ):
        cluster.kubectl("delete", "configmap", "-n", namespace, CONFIGMAP)
        write_table(cluster, namespace, bad)
        eventually(
            lambda: (pod.metric("nimway_proxy_table_errors_total") or 0) >= 2 * number,  # noqa: B023 # called here
            "the bad table was seen",
        )
        assert pod.is_ready()
        assert pod.names() == ["a"]
        assert pod.state().revision == table.revision
    again = build_table(namespace, "a", "b")
    write_table(cluster, namespace, routes.encode(again))
    eventually(lambda: pod.names() == ["a", "b"], "the next good table")


def test_a_worker_that_dies_is_replaced_and_serves_the_same(
    cluster: Cluster, namespace: str, start: Start
) -> None:
    write_table(cluster, namespace, routes.encode(build_table(namespace, "a")))
    write_slice(cluster, namespace, "a", "192.0.2.1")
    pod = start()
    eventually(pod.is_ready, "ready")
    pids = [json.loads(line)["pid"] for line in _lines(pod, "started a worker")]
    os.kill(pids[0], signal.SIGKILL)
    eventually(lambda: len(_lines(pod, "started a worker")) == 2, "a new worker")
    eventually(lambda: pod.names() == ["a"], "the new worker serves")
    assert pod.metric("nimway_proxy_worker_restarts_total") == 1
    assert pod.endpoints("a") == 1


def test_sigterm_fails_readiness_then_ends_with_0(
    cluster: Cluster, namespace: str, start: Start
) -> None:
    write_table(cluster, namespace, routes.encode(build_table(namespace, "a")))
    pod = start(workers=2)
    eventually(pod.is_ready, "ready")
    pod.process.send_signal(signal.SIGTERM)
    assert pod.process.wait(10) == 0
    assert len(_lines(pod, "draining")) == 1


def test_its_shipped_rights_suffice_and_a_refused_namespace_holds_up_no_other(
    cluster: Cluster, namespace: str, start: Start, tmp_path: Path
) -> None:
    with _other_namespace(cluster, f"{namespace}-late") as late:
        kubeconfig = _restricted_kubeconfig(cluster, namespace, tmp_path)
        _allow_endpoints(cluster, namespace, namespace)
        pair = [
            routes.Route(namespace, "a", "a", ("a",), "a", 1),
            routes.Route(late, "b", "b", ("b",), "b", 1),
        ]
        write_table(cluster, namespace, routes.encode(routes.build_table(pair)))
        write_slice(cluster, namespace, "a", "192.0.2.1")
        write_slice(cluster, late, "b", "192.0.2.2")
        pod = start(kubeconfig=kubeconfig)
        eventually(lambda: pod.endpoints("a") == 1, "the allowed namespace")
        assert pod.endpoints("b") == 0
        assert not pod.is_ready()
        _allow_endpoints(cluster, late, namespace)
        eventually(lambda: pod.endpoints("b") == 1, "the late namespace", timeout_s=10)
        eventually(pod.is_ready, "ready")


def test_memory_at_the_start_is_within_its_bounds(
    cluster: Cluster, namespace: str, start: Start
) -> None:
    write_table(cluster, namespace, routes.encode(build_table(namespace, "a")))
    pod = start()
    eventually(pod.is_ready, "ready")
    worker = json.loads(_lines(pod, "started a worker")[0])["pid"]
    assert _rss_mib(pod.process.pid) <= 90
    assert _rss_mib(worker) <= 40


def _rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _lines(pod: Pod, event: str) -> list[str]:
    return [line for line in pod.log.read_text().splitlines() if f'"event": "{event}"' in line]


@contextmanager
def _other_namespace(cluster: Cluster, name: str) -> Iterator[str]:
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def _role(kind: str, name: str, group: str, resource: str) -> dict[str, Any]:
    rule = {"apiGroups": [group], "resources": [resource], "verbs": ["get", "list", "watch"]}
    api = "rbac.authorization.k8s.io/v1"
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name}, "rules": [rule]}


def _binding(role: str, subject_namespace: str) -> dict[str, Any]:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": role},
        "roleRef": {"apiGroup": group, "kind": "Role", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": "proxy", "namespace": subject_namespace}],
    }


def _allow_endpoints(cluster: Cluster, namespace: str, subject_namespace: str) -> None:
    cluster.apply(
        namespace,
        _role("Role", "endpoints", "discovery.k8s.io", "endpointslices"),
        _binding("endpoints", subject_namespace),
    )


def _restricted_kubeconfig(cluster: Cluster, namespace: str, folder: Path) -> Path:
    """A kubeconfig of a ServiceAccount that may read ConfigMaps of its namespace, nothing else."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "proxy"}}
    cluster.apply(
        namespace,
        account,
        _role("Role", "routes", "", "configmaps"),
        _binding("routes", namespace),
    )
    token = cluster.kubectl("create", "token", "proxy", "-n", namespace).strip()
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    for entry in config["clusters"]:
        authority = entry["cluster"].pop("certificate-authority", None)
        if authority is not None:
            data = base64.b64encode(Path(authority).read_bytes()).decode()
            entry["cluster"]["certificate-authority-data"] = data
    for entry in config["users"]:
        entry["user"] = {"token": token}
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path
