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
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nimway.sandbox import binaries, launcher
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
        text = self.kubectl("get", "-n", namespace, kind, name, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else None

    def items(self, namespace: str, kind: str, *selector: str) -> list[dict[str, Any]]:
        """Return the objects of a kind."""
        listed = json.loads(self.kubectl("get", "-n", namespace, kind, *selector, "-o", "json"))
        return list(listed["items"])


def eventually(probe: Callable[[], T | None], what: str, *, timeout_s: float = 30.0) -> T:
    """Ask until `probe` returns something true, and return that; fail with `what` at the end.

    Each question to a cluster takes a kubectl's time, so there is no pause in between.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if answer := probe():
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not in {timeout_s:g} s: {what}")


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
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
