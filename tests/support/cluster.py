"""The cluster that the tests run against: a sandbox of their own, or any kubeconfig.

`NIMWAY_TEST_KUBECONFIG` names a foreign cluster (kind, say); no sandbox is started then, and
`Cluster.sandbox` is None. Registered as a plugin in tests/conftest.py.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nimway.sandbox import binaries, launcher
from tests.support.api import Api
from tests.support.pacing import pause_s
from tests.support.schema import CRDS

T = TypeVar("T")


@dataclass(frozen=True)
class Cluster:
    """A Kubernetes cluster: `kubeconfig` for an administrator, `sandbox` if it is one."""

    kubeconfig: Path
    sandbox: launcher.Sandbox | None
    kubectl_program: Path

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl and return its output; without `check`, stdout and stderr of a failure."""
        done = subprocess.run(
            [str(self.kubectl_program), *arguments],
            env=os.environ | {"KUBECONFIG": str(self.kubeconfig)},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def apply(self, namespace: str, *manifests: dict[str, Any]) -> None:
        """Apply manifests (dictionaries) in a namespace."""
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        self.kubectl("apply", "-n", namespace, "-f", "-", stdin=document)

    def get(self, namespace: str, kind: str, name: str) -> dict[str, Any] | None:
        """Return an object, None when there is none."""
        return self._api.get(namespace, kind, name)

    def items(self, namespace: str, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """Return the objects of a kind that have these labels."""
        return self._api.items(namespace, kind, selector)

    def create_namespace(self, name: str) -> None:
        """Create a namespace."""
        self._api.create_namespace(name)

    def delete_namespace(self, name: str) -> None:
        """Begin to delete a namespace, if it is there."""
        self._api.delete_namespace(name)

    @cached_property
    def _api(self) -> Api:
        return Api(self.kubeconfig)


def eventually(probe: Callable[[], T | None], what: str, *, timeout_s: float = 30.0) -> T:
    """Ask until `probe` returns something true, and return that; fail with `what` at the end."""
    began_s = time.monotonic()
    while True:
        if answer := probe():
            return answer
        waited_s = time.monotonic() - began_s
        if waited_s > timeout_s:
            raise AssertionError(f"not in {timeout_s:g} s: {what}")
        time.sleep(pause_s(waited_s))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One cluster for all tests of this run; each test takes a namespace of its own."""
    if foreign := os.environ.get("NIMWAY_TEST_KUBECONFIG"):
        yield Cluster(Path(foreign), None, binaries.kubectl(print))
        return
    options = launcher.Options(name=launcher.new_name("test"), backoff_initial_s=1.0)
    sandbox = launcher.launch(options, print)
    try:
        yield Cluster(sandbox.kubeconfig, sandbox, binaries.kubectl(print))
    finally:
        sandbox.stop()


@pytest.fixture(scope="session")
def crds(cluster: Cluster) -> Cluster:
    """The cluster with both CRDs applied as the README says."""
    cluster.kubectl("apply", "--server-side", "-f", str(CRDS))
    cluster.kubectl("wait", "--for=condition=Established", "-f", str(CRDS), "--timeout=30s")
    return cluster


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own, deleted (without waiting) afterwards."""
    name = launcher.new_name("t")
    cluster.create_namespace(name)
    yield name
    cluster.delete_namespace(name)
