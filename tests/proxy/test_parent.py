"""The whole pod, `nimway proxy`, against a real API server: its table, its rights, its end.

No request is sent to a model here: the endpoints are addresses of a documentation network.
"""

import base64
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from nimway import routes, state
from tests.support.cluster import Cluster, eventually
from tests.support.proxy_pod import CONFIGMAP, Start, build_table, write_slice, write_table

pytestmark = pytest.mark.cluster


def test_it_is_not_ready_before_its_first_table_and_follows_every_change(
    cluster: Cluster, namespace: str, start_pod: Start
) -> None:
    pod = start_pod(workers=2)
    assert not pod.is_ready()
    assert pod.state() == state.ProxyState(revision="", ready=False, draining=False)

    table = build_table(namespace, "a", "b")
    write_slice(cluster, namespace, "a", "192.0.2.1", "192.0.2.2")
    write_table(cluster, namespace, routes.encode(table))
    eventually(pod.is_ready, "ready")
    assert pod.names() == ["a", "b"]
    reported = pod.state()
    assert (reported.revision, reported.ready) == (table.revision, True)
    assert reported.models == {}, "nobody asked for a model yet"
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
    cluster: Cluster, namespace: str, start_pod: Start
) -> None:
    table = build_table(namespace, "a")
    write_table(cluster, namespace, routes.encode(table))
    pod = start_pod()
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
    cluster: Cluster, namespace: str, start_pod: Start
) -> None:
    write_table(cluster, namespace, routes.encode(build_table(namespace, "a")))
    write_slice(cluster, namespace, "a", "192.0.2.1")
    pod = start_pod()
    eventually(pod.is_ready, "ready")
    os.kill(pod.workers()[0], signal.SIGKILL)
    eventually(lambda: len(pod.workers()) == 2, "a new worker")
    eventually(lambda: pod.names() == ["a"], "the new worker serves")
    assert pod.metric("nimway_proxy_worker_restarts_total") == 1
    assert pod.endpoints("a") == 1


def test_sigterm_fails_readiness_then_ends_with_0(
    cluster: Cluster, namespace: str, start_pod: Start
) -> None:
    write_table(cluster, namespace, routes.encode(build_table(namespace, "a")))
    pod = start_pod(workers=2)
    eventually(pod.is_ready, "ready")
    pod.process.send_signal(signal.SIGTERM)
    assert pod.process.wait(10) == 0
    assert len(pod.lines("draining")) == 1


def test_its_shipped_rights_suffice_and_a_refused_namespace_holds_up_no_other(
    cluster: Cluster, namespace: str, start_pod: Start, tmp_path: Path
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
        pod = start_pod(kubeconfig=kubeconfig)
        eventually(lambda: pod.endpoints("a") == 1, "the allowed namespace")
        assert pod.endpoints("b") == 0
        assert not pod.is_ready()
        _allow_endpoints(cluster, late, namespace)
        eventually(lambda: pod.endpoints("b") == 1, "the late namespace", timeout_s=10)
        eventually(pod.is_ready, "ready")


def test_memory_at_the_start_is_within_its_bounds(
    cluster: Cluster, namespace: str, start_pod: Start
) -> None:
    write_table(cluster, namespace, routes.encode(build_table(namespace, "a")))
    pod = start_pod()
    eventually(pod.is_ready, "ready")
    worker = pod.workers()[0]
    assert _rss_mib(pod.process.pid) <= 90
    assert _rss_mib(worker) <= 40


def _rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@contextmanager
def _other_namespace(cluster: Cluster, name: str) -> Iterator[str]:
    cluster.create_namespace(name)
    yield name
    cluster.delete_namespace(name)


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
