"""An operator as a process of its own, against the tests' cluster, and a client beside it."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config

from nimway.control.client import KubeClient, NotFoundError
from nimway.control.kinds import CHILDREN, OWNERS, Kind, Manifest
from tests.support.pacing import pause_s
from tests.support.ports import free_port

T = TypeVar("T")
USER = {"fieldManager": "somebody"}


class Process(Protocol):
    """What tests need of a running program; `subprocess.Popen` has it."""

    @property
    def returncode(self) -> int | Any:
        """The exit code, None while it runs."""

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code."""

    def send_signal(self, number: signal.Signals, /) -> None:
        """Send a signal, unless it has ended."""

    def kill(self) -> None:
        """End it at once."""


@dataclass
class OperatorProcess:
    """A running `nimway operator`; its log is a file."""

    process: Process
    log: Path

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=15)


def start_operator(
    kubeconfig: Path, namespace: str, log: Path, *arguments: str, **environment: str
) -> OperatorProcess:
    """Start an operator whose own namespace is `namespace`."""
    env = environment_of(kubeconfig, namespace, **environment)
    command = [sys.executable, "-m", "nimway", "operator", *arguments]
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
    return OperatorProcess(process, log)


def environment_of(kubeconfig: Path, namespace: str, **more: str) -> dict[str, str]:
    """Return the environment of an operator whose own namespace is `namespace`."""
    return os.environ | {
        "KUBECONFIG": str(kubeconfig),
        "POD_NAMESPACE": namespace,
        "NIMWAY_PROXY_IMAGE": "ghcr.io/nimway/nimway:0.1.0",
        "NIMWAY_HEALTH_PORT": str(free_port()),
        **more,
    }


@contextlib.asynccontextmanager
async def connect(kubeconfig: Path) -> AsyncIterator[KubeClient]:
    """Talk to the cluster as its administrator."""
    configuration = kubernetes_client.Configuration()
    await kubernetes_config.load_kube_config(str(kubeconfig), client_configuration=configuration)
    client = KubeClient(configuration)
    try:
        yield client
    finally:
        await client.close()


async def until(
    probe: Callable[[], Awaitable[T | None]], what: str, *, timeout_s: float = 20.0
) -> T:
    """Ask until the answer is true, and return it."""
    found: T | None = None
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            while not (found := await probe()):  # noqa: ASYNC110 # it is in another process
                await asyncio.sleep(pause_s(time.monotonic() - began_s))
    except TimeoutError:
        raise AssertionError(f"not in {timeout_s:g} s: {what}") from None
    return found


async def create(client: KubeClient, kind: Kind, manifest: Manifest) -> Manifest:
    """Create an object as a user does."""
    path = kind.path(manifest["metadata"]["namespace"])
    answer: Manifest = await client.request("POST", path, query=USER, body=manifest)
    return answer


async def find(client: KubeClient, kind: Kind, namespace: str, name: str) -> Manifest | None:
    """Read an object, None if there is none."""
    try:
        return await client.get(kind, namespace, name)
    except NotFoundError:
        return None


async def patch(client: KubeClient, kind: Kind, namespace: str, name: str, body: Any) -> Manifest:
    """Patch an object as a user does: a list is a JSON patch, an object a merge patch."""
    form = "json-patch" if isinstance(body, list) else "merge-patch"
    answer: Manifest = await client.request(
        "PATCH",
        kind.path(namespace, name),
        query=USER,
        body=body,
        content_type=f"application/{form}+json",
    )
    return answer


async def delete(
    client: KubeClient, kind: Kind, namespace: str, name: str, propagation: str = "Background"
) -> None:
    """Delete an object as a user does."""
    body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
    await client.request("DELETE", kind.path(namespace, name), body=body)


async def versions(client: KubeClient, namespace: str) -> dict[str, str]:
    """Return the resourceVersion of everything that the operator writes in a namespace."""
    found = {}
    for kind in (*OWNERS, *CHILDREN):
        async for page, _ in client.pages(kind, namespace):
            for item in page:
                metadata = item["metadata"]
                found[f"{kind.kind}/{metadata['name']}"] = metadata["resourceVersion"]
    return found


def condition(live: Manifest | None, kind: str) -> Manifest:
    """Return one condition of an object, {} if it has none."""
    conditions = (live or {}).get("status", {}).get("conditions", [])
    return next((each for each in conditions if each["type"] == kind), {})
