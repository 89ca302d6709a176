"""The proxy's tests run on uvloop, as the proxy does."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop

from tests.support.cluster import Cluster
from tests.support.proxy_pod import Start, proxy_pods


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that a worker runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def start_pod(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Start]:
    """What starts a proxy pod of the test's own namespace."""
    with proxy_pods(cluster.kubeconfig, namespace, tmp_path) as start:
        yield start
