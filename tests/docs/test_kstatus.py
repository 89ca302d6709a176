"""What Flux and Helm 4 make of a status: Helm's own kstatus, over statuses that were recorded."""

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from nimway.sandbox import toolchain
from tests.support.cluster import Cluster

pytestmark = pytest.mark.cluster

DATA = Path(__file__).parent / "data"
WAIT_S = 3


@dataclass(frozen=True)
class Waited:
    """How `helm upgrade --wait` ended: whether it was content, and after how long."""

    content: bool
    took_s: float
    text: str


class Release:
    """A chart with one recorded object, in a namespace without an operator."""

    def __init__(self, cluster: Cluster, namespace: str, folder: Path, name: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._folder = folder
        self.recorded = yaml.safe_load((DATA / f"{name}.yaml").read_text(encoding="utf-8"))
        manifest = {key: self.recorded[key] for key in ("apiVersion", "kind", "spec")}
        manifest["metadata"] = {"name": "recorded"}
        chart = {"apiVersion": "v2", "name": "recorded", "version": "0.1.0"}
        (folder / "templates").mkdir()
        (folder / "Chart.yaml").write_text(yaml.safe_dump(chart), encoding="utf-8")
        (folder / "templates/object.yaml").write_text(yaml.safe_dump(manifest), encoding="utf-8")
        done = self._helm("install")
        assert done.returncode == 0, done.stderr

    def report(self, *, generation: int = 1) -> None:
        """Write the recorded status, as if it spoke of `generation`."""
        status: dict[str, Any] = {**self.recorded["status"], "observedGeneration": generation}
        for condition in status["conditions"]:
            condition["observedGeneration"] = generation
        kind = self.recorded["kind"].lower()
        patch = ("--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
        self._cluster.kubectl("patch", "-n", self._namespace, f"{kind}/recorded", *patch)

    def wait(self) -> Waited:
        """Upgrade to the same again, and wait as Helm does."""
        began = time.monotonic()
        done = self._helm("upgrade", "--wait", "--timeout", f"{WAIT_S}s")
        return Waited(done.returncode == 0, time.monotonic() - began, done.stdout + done.stderr)

    def _helm(self, verb: str, *options: str) -> "subprocess.CompletedProcess[str]":
        where = ("-n", self._namespace, "--kubeconfig", str(self._cluster.kubeconfig))
        command = [str(toolchain.helm(print)), verb, "recorded", str(self._folder)]
        return subprocess.run(
            [*command, *where, *options], capture_output=True, text=True, check=False
        )


@pytest.fixture(autouse=True)
def helm_4() -> None:
    """Helm 3 knows nothing of kstatus."""
    done = subprocess.run(
        [str(toolchain.helm(print)), "version", "--template", "{{.Version}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    if not done.stdout.startswith("v4."):
        pytest.skip("Helm 4 is the one that waits by kstatus")


@pytest.mark.parametrize("name", ["serving", "switched-off", "proxy"])
def test_what_is_ready_and_settled_ends_the_wait(
    crds: Cluster, namespace: str, tmp_path: Path, name: str
) -> None:
    release = Release(crds, namespace, tmp_path, name)
    release.report()
    waited = release.wait()
    assert waited.content, waited.text


@pytest.mark.parametrize("name", ["rolling", "waiting-for-gpu"])
def test_what_is_under_way_is_waited_for(
    crds: Cluster, namespace: str, tmp_path: Path, name: str
) -> None:
    release = Release(crds, namespace, tmp_path, name)
    release.report()
    waited = release.wait()
    assert not waited.content
    assert waited.took_s >= WAIT_S
    assert "InProgress" in waited.text


def test_a_status_of_an_older_generation_is_waited_for(
    crds: Cluster, namespace: str, tmp_path: Path
) -> None:
    release = Release(crds, namespace, tmp_path, "serving")
    release.report(generation=0)
    waited = release.wait()
    assert not waited.content
    assert "InProgress" in waited.text


def test_an_object_that_the_operator_has_not_seen_is_waited_for(
    crds: Cluster, namespace: str, tmp_path: Path
) -> None:
    waited = Release(crds, namespace, tmp_path, "serving").wait()
    assert not waited.content
    assert "InProgress" in waited.text


def test_what_is_stalled_is_a_failure(crds: Cluster, namespace: str, tmp_path: Path) -> None:
    release = Release(crds, namespace, tmp_path, "name-conflict")
    release.report()
    waited = release.wait()
    assert not waited.content
    assert waited.took_s < WAIT_S
    assert "Failed" in waited.text
