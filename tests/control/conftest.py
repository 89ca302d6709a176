"""One operator for the cluster tests of this folder, in a namespace of its own."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from nimway.control.client import KubeClient
from tests.control.process import OperatorProcess, connect, start_operator
from tests.support.cluster import Cluster
from tests.support.schema import CRDS

OPERATOR_NAMESPACE = "nimway-control-tests"


@pytest.fixture(scope="session")
def control(cluster: Cluster) -> Cluster:
    """The cluster with the CRDs and the operator's namespace."""
    cluster.kubectl("apply", "--server-side", "-f", str(CRDS))
    cluster.kubectl("wait", "--for=condition=Established", "-f", str(CRDS), "--timeout=30s")
    cluster.kubectl("create", "namespace", OPERATOR_NAMESPACE, check=False)
    return cluster


@pytest.fixture(scope="module")
def operator(
    control: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """A running operator."""
    log = tmp_path_factory.mktemp("operator") / "log"
    running = start_operator(control.kubeconfig, OPERATOR_NAMESPACE, log)
    yield running
    running.stop()


@pytest.fixture
async def api(control: Cluster) -> AsyncIterator[KubeClient]:
    """The administrator's client."""
    async with connect(Path(control.kubeconfig)) as client:
        yield client
