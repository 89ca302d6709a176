"""The chart's life on a real control plane: dry run, install, upgrade, uninstall."""

import json
from collections.abc import Iterator

import pytest

from nimway.sandbox import launcher, toolchain
from tests.support.cluster import Cluster
from tests.support.installed import CHART, run_helm

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

RELEASE = "nimway-lifecycle"


@pytest.fixture
def home(crds: Cluster) -> Iterator[str]:
    """A namespace that enforces Pod Security `restricted`."""
    name = launcher.new_name("helm")
    crds.create_namespace(name)
    crds.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    crds.delete_namespace(name)


def test_what_it_renders_is_accepted_by_the_api_server(crds: Cluster, home: str) -> None:
    rendered = run_helm(
        toolchain.helm(print), crds.kubeconfig, "template", RELEASE, str(CHART), "-n", home
    )
    accepted = crds.kubectl("apply", "--dry-run=server", "-f", "-", stdin=rendered)
    assert accepted.count("(server dry run)") == rendered.count("\nkind: ")


def test_install_upgrade_and_uninstall_leave_only_the_crds(crds: Cluster, home: str) -> None:
    if crds.kubectl("get", "clusterrole", "nimway-edit", "--ignore-not-found", "-o", "name"):
        pytest.skip("the cluster has a release, and can have no other")
    helm, kubeconfig = toolchain.helm(print), crds.kubeconfig
    options = ("-n", home, "--wait", "--timeout", "120s")

    run_helm(helm, kubeconfig, "install", RELEASE, str(CHART), *options)
    try:
        proxy = json.loads(crds.kubectl("get", "nimproxy", "default", "-n", home, "-o", "json"))
        assert proxy["status"]["readyReplicas"] == 2

        second = ("install", f"{RELEASE}-2", str(CHART), "-n", home, "--set", "proxy.create=false")
        said = run_helm(helm, kubeconfig, *second, check=False)
        assert 'ClusterRole "nimway-edit"' in said
        assert "invalid ownership metadata" in said
        releases = run_helm(helm, kubeconfig, "list", "-n", home, "--short")
        assert releases.split() == [RELEASE]

        settings = ("--set", "operator.logLevel=warning", "--set", "proxy.spec.replicas=1")
        run_helm(helm, kubeconfig, "upgrade", RELEASE, str(CHART), *options, *settings)
        proxy = json.loads(crds.kubectl("get", "nimproxy", "default", "-n", home, "-o", "json"))
        assert proxy["status"]["readyReplicas"] == 1

        crds.kubectl("scale", "-n", home, "nimproxy/default", "--replicas=2")  # as an HPA does
        left_out = ("--set", "proxy.spec.replicas=null")
        run_helm(helm, kubeconfig, "upgrade", RELEASE, str(CHART), *options, *left_out)
        proxy = json.loads(crds.kubectl("get", "nimproxy", "default", "-n", home, "-o", "json"))
        assert proxy["spec"]["replicas"] == 2
    finally:
        run_helm(helm, kubeconfig, "uninstall", RELEASE, *options)
    left = crds.kubectl(
        *("get", "clusterroles,clusterrolebindings", "-o", "name"),
        *("-l", f"app.kubernetes.io/instance={RELEASE}"),
    )
    assert left == ""
    crds.kubectl("wait", "-n", home, "--for=delete", "pods", "--all", "--timeout=60s")
    assert "nimmodels.nimway.dev" in crds.kubectl("get", "crds", "-o", "name")
