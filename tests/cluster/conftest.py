"""What the cluster tests share: the CRDs, and Nimway installed as its users install it."""

import pytest

from tests.support.cluster import Cluster
from tests.support.schema import CRDS


@pytest.fixture(scope="session")
def crds(cluster: Cluster) -> Cluster:
    """The cluster with both CRDs applied as the README says."""
    cluster.kubectl("apply", "--server-side", "-f", str(CRDS))
    cluster.kubectl("wait", "--for=condition=Established", "-f", str(CRDS), "--timeout=30s")
    return cluster
