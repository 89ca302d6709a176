"""Where the bench's cycles run, and how each restarts or kills the parts of Nimway."""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from typing import ClassVar

from tests.bench_control import processes
from tests.bench_control.watching import Manifest
from tests.bench_wake.asking import Address
from tests.bench_wake.plan import OPERATOR, PROXY
from tests.bench_wake.stage import PROXY_PODS, Stage
from tests.support.installed import NAMESPACE

OPERATOR_PODS = "app.kubernetes.io/name=nimway,app.kubernetes.io/component=operator"
_SELECTORS = {OPERATOR: OPERATOR_PODS, PROXY: PROXY_PODS}
_BACK_S = 60.0


class Restarted:
    """Restarts by deleting pods, as a rollout or a drained node does: SIGTERM and a grace period.

    A proxy goes only while another one is ready, as its PodDisruptionBudget wants it.
    """

    def __init__(
        self, stage: Stage, model: str, kinds: tuple[str, ...] = (OPERATOR, PROXY)
    ) -> None:
        self.stage = stage
        self.model = model
        self.kinds = kinds
        self.counts: Counter[str] = Counter()
        self._chance = random.Random(model)

    def choose(self) -> Address | None:
        return self.stage.choose()

    async def asleep(self, *, gone: bool) -> None:
        await self.stage.asleep(self.model, gone=gone)

    async def restart(self, kind: str) -> None:
        wanted = 2 if kind == PROXY else 1
        pods = await self._until_ready(kind, wanted)
        name = self._chance.choice(pods)["metadata"]["name"]
        await self.stage.bench.client.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{name}")
        self.counts[kind] += 1
        await self._until_ready(kind, wanted, without=name)

    async def _until_ready(self, kind: str, count: int, without: str = "") -> list[Manifest]:
        """Wait until so many pods are ready and stay; return them."""
        async with asyncio.timeout(_BACK_S):
            while True:
                found = [
                    pod
                    for pod in await self.stage.bench.pods(_SELECTORS[kind])
                    if _stays(pod) and pod["metadata"]["name"] != without
                ]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.1)


class Killed:
    """Kills processes with SIGKILL, which nothing can answer: what then breaks is counted apart."""

    _CHOICES: ClassVar[dict[str, Callable[[processes.Found], list[int]]]] = {
        "model": lambda found: found.models,
        "worker": lambda found: found.workers,
        OPERATOR: lambda found: found.operators,
        "parent": lambda found: found.parents,
    }
    kinds: ClassVar[tuple[str, ...]] = tuple(_CHOICES)

    def __init__(self, stage: Stage, model: str) -> None:
        self.stage = stage
        self.model = model
        self.counts: Counter[str] = Counter()
        self._chance = random.Random(model)

    def choose(self) -> Address | None:
        return self.stage.choose()

    async def asleep(self, *, gone: bool) -> None:
        await self.stage.asleep(self.model, gone=gone)

    async def restart(self, kind: str) -> None:
        bench = self.stage.bench
        if pids := self._CHOICES[kind](bench.processes()):
            os.kill(self._chance.choice(pids), signal.SIGKILL)
            self.counts[kind] += 1


def _stays(pod: Manifest) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return "deletionTimestamp" not in pod["metadata"] and any(
        each["type"] == "Ready" and each["status"] == "True" for each in conditions
    )
