"""Nimway as a user has it: the chart installed by the real Helm, the proxy at a base URL.

On a sandbox of its own, so that the operator in its pod and the operators that other tests start
by hand do not meet. With `NIMWAY_TEST_KUBECONFIG` in that foreign cluster, reached by
`NIMWAY_TEST_BASE_URL` or by `kubectl port-forward`.
"""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from nimway.sandbox import binaries, launcher, toolchain
from tests.support.cluster import Cluster
from tests.support.pacing import pause_s
from tests.support.port_forward import forwarded

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "nimway"
NAMESPACE = "nimway-system"
NIM_IMAGE = "nvcr.io/nim/sim/model:1.0.0"


def eventually(check: Callable[[], Any], timeout_s: float = 30.0, what: str = "") -> Any:
    """Call `check` until it returns something true; an AssertionError counts as not yet."""
    began_s = time.monotonic()
    while True:
        try:
            if result := check():
                return result
            problem: object = result
        except (AssertionError, httpx.TransportError) as error:
            problem = error
        waited_s = time.monotonic() - began_s
        if waited_s > timeout_s:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what or check}: {problem}")
        time.sleep(pause_s(waited_s))


@dataclass
class Answers:
    """What a background client saw: status codes in order, and transport errors."""

    statuses: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Installed:
    """A cluster with Nimway in it. `base_url` leads to the NIMProxy `default`.

    Unless it is `balanced` it leads to one pod, and connections fail when that one goes.
    """

    cluster: Cluster
    helm_program: Path
    base_url: str
    balanced: bool = True

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        return self.cluster.kubectl(*arguments, stdin=stdin, check=check)

    def helm(self, *arguments: str, check: bool = True) -> str:
        return run_helm(self.helm_program, self.cluster.kubeconfig, *arguments, check=check)

    def get(self, namespace: str, kind: str, name: str) -> Any:
        return self.cluster.get(namespace, kind, name)

    def list(self, namespace: str, kind: str, selector: str = "") -> list[Any]:
        return self.cluster.items(namespace, kind, selector)

    def apply_model(self, namespace: str, name: str, model: str, **spec: Any) -> None:
        """Apply a NIMModel that the simulated NIM serves; it loads at once unless told."""
        manifest = {
            "apiVersion": "nimway.dev/v1alpha1",
            "kind": "NIMModel",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"model": model, "image": NIM_IMAGE, **spec},
        }
        self.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump(manifest))

    def wait_ready(
        self, namespace: str, name: str, timeout_s: int = 60, *, kind: str = "nimmodel"
    ) -> None:
        self.kubectl(
            "wait",
            "-n",
            namespace,
            f"{kind}/{name}",
            "--for=condition=Ready",
            f"--timeout={timeout_s}s",
        )

    def condition(self, namespace: str, name: str, kind: str) -> Any:
        conditions = self.get(namespace, "nimmodel", name).get("status", {}).get("conditions", [])
        return next((each for each in conditions if each["type"] == kind), None)

    def complete(self, model: str, **fields: Any) -> httpx.Response:
        body = {"model": model, "prompt": "Once upon a time", "max_tokens": 4, **fields}
        with httpx.Client(trust_env=False, timeout=30) as client:
            return client.post(f"{self.base_url}/v1/completions", json=body)

    def listed(self) -> set[str]:
        with httpx.Client(trust_env=False, timeout=10) as client:
            answer = client.get(f"{self.base_url}/v1/models")
        assert answer.status_code == 200, answer.text
        return {each["id"] for each in answer.json()["data"]}

    @contextmanager
    def load(self, model: str, clients: int = 4) -> Iterator[Answers]:
        """Send completions one after the other from `clients` threads while the block runs."""
        answers, stop = Answers(), threading.Event()

        def work() -> None:
            body = {"model": model, "prompt": "x", "max_tokens": 2}
            with httpx.Client(trust_env=False, timeout=30) as client:
                while not stop.is_set():
                    try:
                        answer = client.post(f"{self.base_url}/v1/completions", json=body)
                        answers.statuses.append(answer.status_code)
                    except httpx.TransportError as error:
                        answers.errors.append(repr(error))

        threads = [threading.Thread(target=work, daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield answers
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)


def run_helm(program: Path, kubeconfig: Path, *arguments: str, check: bool = True) -> str:
    done = subprocess.run(
        [str(program), *arguments],
        env=os.environ | {"KUBECONFIG": str(kubeconfig)},
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"helm {' '.join(arguments)}: {done.stderr}\n{done.stdout}")
    return done.stdout if check else done.stdout + done.stderr


def install(helm_program: Path, kubeconfig: Path) -> None:
    """Install the chart as the README says; the proxies' drain is short, for the tests' sake."""
    run_helm(
        helm_program,
        kubeconfig,
        *("upgrade", "--install", "nimway", str(CHART)),
        *("--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", "120s"),
        *("--set", "proxy.spec.drainSeconds=20"),
    )


@pytest.fixture(scope="session")
def installed() -> Iterator[Installed]:
    """Nimway, installed once for all tests that use it as its users do."""
    if foreign := os.environ.get("NIMWAY_TEST_KUBECONFIG"):
        helm_program, kubectl_program = toolchain.helm(print), binaries.kubectl(print)
        cluster = Cluster(Path(foreign), None, kubectl_program)
        install(helm_program, cluster.kubeconfig)
        if base_url := os.environ.get("NIMWAY_TEST_BASE_URL"):
            yield Installed(cluster, helm_program, base_url)
            return
        environment = os.environ | {"KUBECONFIG": foreign}
        with forwarded(kubectl_program, environment, NAMESPACE, "nimway-default", 8000) as port:
            yield Installed(cluster, helm_program, f"http://127.0.0.1:{port}", balanced=False)
        return
    helm_program, kubectl_program = toolchain.helm(print), binaries.kubectl(print)
    options = launcher.Options(name=launcher.new_name("e2e"), backoff_initial_s=1.0)
    sandbox = launcher.launch(options, print)
    try:
        cluster = Cluster(sandbox.kubeconfig, sandbox, kubectl_program)
        install(helm_program, cluster.kubeconfig)
        port = sandbox.forward_service(NAMESPACE, "nimway-default", "http")
        yield Installed(cluster, helm_program, f"http://127.0.0.1:{port}")
    finally:
        sandbox.stop()


@pytest.fixture
def models(installed: Installed) -> Iterator[str]:
    """A namespace for a test's models, deleted (without waiting) afterwards."""
    name = launcher.new_name("models")
    installed.cluster.create_namespace(name)
    yield name
    installed.cluster.delete_namespace(name)
