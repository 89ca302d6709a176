"""A few sleep/wake cycles under load while the operator and a proxy restart: nothing is lost.

The short form of `make bench-wake`. What was executed is read from the logs of pods that are gone,
so it needs the sandbox.
"""

import asyncio
import time
from typing import Any

import pytest

from tests.bench_wake import executions
from tests.bench_wake.asking import ANSWERED, Address
from tests.bench_wake.cycles import judge, run
from tests.bench_wake.plan import OPERATOR, PROXY, cycles
from tests.support.installed import NAMESPACE, Installed, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

MODEL, NAME = "org/cycling", "cycling"
SIMULATION = {"NIMSIM_LOAD_S": "0.2", "NIMSIM_TTFT_S": "0.02", "NIMSIM_TOKEN_S": "0.005"}


class Cluster:
    """The installed Nimway as the cycles' ground; see `tests.bench_wake.cycles.Ground`."""

    def __init__(self, installed: Installed, namespace: str) -> None:
        self._installed = installed
        self._namespace = namespace
        self.restarted: list[str] = []

    def choose(self) -> Address | None:
        host, _, port = self._installed.base_url.removeprefix("http://").partition(":")
        return host, int(port)

    async def asleep(self, *, gone: bool) -> None:
        await asyncio.to_thread(eventually, lambda: self._sleeps(gone=gone), 60, "the model sleeps")

    async def restart(self, kind: str) -> None:
        await asyncio.to_thread(self._restart, kind)
        self.restarted.append(kind)

    def _sleeps(self, *, gone: bool) -> bool:
        model: Any = self._installed.get(self._namespace, "nimmodel", NAME)
        pods = self._installed.list(self._namespace, "pods", f"app.kubernetes.io/instance={NAME}")
        return model["spec"]["replicas"] == 0 and not (gone and pods)

    def _restart(self, kind: str) -> None:
        count = 2 if kind == PROXY else 1
        pods = eventually(lambda: self._ready(kind, count), 60, f"{count} {kind}")
        name = pods[0]["metadata"]["name"]
        self._installed.kubectl("delete", "pod", "-n", NAMESPACE, name, "--wait=false")

    def _ready(self, kind: str, count: int) -> list[Any]:
        """Return the pods that are ready and stay, none if they are too few."""
        found = [
            pod
            for pod in self._installed.list(
                NAMESPACE, "pods", f"app.kubernetes.io/component={kind}"
            )
            if "deletionTimestamp" not in pod["metadata"]
            and any(
                each["type"] == "Ready" and each["status"] == "True"
                for each in pod["status"].get("conditions", ())
            )
        ]
        return found if len(found) >= count else []


async def test_nothing_is_lost_or_run_twice_while_all_sleeps_wakes_and_restarts(
    installed: Installed, models: str
) -> None:
    sandbox = installed.cluster.sandbox
    if sandbox is None:
        pytest.skip("only the sandbox keeps the logs of pods that are gone")
    installed.apply_model(
        models,
        NAME,
        MODEL,
        gpus=0,
        drain={"seconds": 5},
        env=[{"name": name, "value": value} for name, value in SIMULATION.items()],
        autoscaling={
            "minReplicas": 0,
            "maxReplicas": 1,
            "targetConcurrency": 1000,
            "scaleDownDelaySeconds": 0,
            "idleSeconds": 1,
        },
    )
    installed.wait_ready(models, NAME)
    ground = Cluster(installed, models)
    planned = cycles(3, MODEL, seed=6, requests_max=20, kinds=(PROXY, OPERATOR))

    began_s = time.monotonic()
    asked = await run(ground, planned)

    found = judge(asked, executions.read(sandbox.config.pods, models))
    assert set(ground.restarted) == {OPERATOR, PROXY}
    assert found["lost"] == 0, found["examples"]
    assert found["executed_twice"] == 0
    assert found["answered_unexecuted"] == 0
    assert found["refused_executed"] == 0
    assert found["fates"][ANSWERED] > len(asked) / 2, found
    assert time.monotonic() - began_s < 60
