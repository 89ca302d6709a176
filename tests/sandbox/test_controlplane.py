"""The control plane that a sandbox brings up, seen from the host."""

import pytest

from tests.support.cluster import Cluster


@pytest.mark.cluster
def test_a_default_service_account_and_namespace_exist_once_launch_returns(
    cluster: Cluster, namespace: str
) -> None:
    assert "default" in cluster.kubectl("get", "serviceaccounts", "-n", "default", "-o", "name")
    assert cluster.kubectl("get", "namespace", namespace, "-o", "name").strip().endswith(namespace)
