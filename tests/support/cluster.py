"""The cluster that the tests run against: a sandbox of their own, or any kubeconfig.

`NIMWAY_TEST_KUBECONFIG` names a foreign cluster (kind, say); no sandbox is started then, and
`Cluster.sandbox` is None. Registered as a plugin in tests/conftest.py.
"""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nimway.sandbox import binaries, launcher


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


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own, deleted (without waiting) afterwards."""
    name = launcher.new_name("t")
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
