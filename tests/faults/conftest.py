"""A world of its own for each test, on the session's cluster."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.control.process import connect
from tests.faults.world import World
from tests.support.api_faults import FaultyApi, faulty_api
from tests.support.cluster import Cluster


@pytest.fixture
def faults(crds: Cluster) -> Iterator[FaultyApi]:
    """A way to the API server that breaks as told."""
    with faulty_api(crds.kubeconfig) as api:
        yield api


@pytest.fixture
async def world(
    crds: Cluster, faults: FaultyApi, namespace: str, tmp_path: Path
) -> AsyncIterator[World]:
    """A namespace, a broken way to the API server, and no operator yet."""
    async with connect(crds.kubeconfig) as api:
        made = World(api, namespace, faults, tmp_path)
        try:
            yield made
        finally:
            made.stop_all()


@pytest.fixture
def others(crds: Cluster, namespace: str) -> Iterator[tuple[str, str]]:
    """Two namespaces beside the operator's own, of other teams."""
    made = (f"{namespace}-a", f"{namespace}-b")
    for name in made:
        crds.create_namespace(name)
    yield made
    for name in made:
        crds.delete_namespace(name)
