"""OP-1: the operator dies at every write, and the world ends up the same.

The points come from the writes of an undisturbed life of a model and its proxy: creation, a change
with something to prune, the model's deletion. At each write the operator is killed before the API
server hears of it, or after it was done; or the reply is lost and the operator lives on.
"""

import difflib
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass

import pytest

from nimway.control.desired.names import OWNER_LABEL
from nimway.control.kinds import CLAIM, LEASE, MODEL, PROXY, SERVICE
from tests.control.process import OperatorProcess, create, patch
from tests.faults.world import COLLECT_S, MODEL_CHILDREN, World, kill, model, proxy, until
from tests.support.api_faults import Act, Call, afterwards, instead, lose_reply
from tests.support.faults import FULL

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

MODES = ("before", "after", "reply lost")
ATTEMPTS = 5
"""Lives for one point: whether a status is written twice or thrice is a matter of timing."""

ANY = "x000"
"""Stands for the name of a life in what is compared between lives."""

Write = tuple[str, int]
"""A write and how often it came before in the same life."""


@dataclass(frozen=True)
class Point:
    write: Write
    mode: str


def _signature(call: Call, name: str) -> str:
    return f"{call} {call.subresource}".replace(name, ANY).strip()


class Lives:
    """Lives of a model and a proxy, one after the other, in one namespace."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.operator: OperatorProcess | None = None
        self.expected: list[str] = []
        self.kills = 0
        self.lives = 0

    def _start_if_dead(self) -> None:
        if self.operator is None or self.operator.process.poll() is not None:
            self.operator = self.world.start()

    def _kill(self) -> None:
        assert self.operator is not None
        self.kills += 1
        kill(self.operator)()

    def _act(self, mode: str) -> Act:
        return {
            "before": instead(self._kill),
            "after": afterwards(self._kill),
            "reply lost": lose_reply,
        }[mode]

    async def undisturbed(self) -> list[Write]:
        """Live once, remember the states, and return the writes."""
        world = self.world
        self._start_if_dead()
        for stage in range(3):
            await self._stage(stage, ANY)
            await world.settled(1.0)
            self.expected.append(await self._state(ANY))
        counted: Counter[str] = Counter()
        writes = []
        for call in world.faults.calls:
            if call.plural == "events":
                continue  # an afterthought: without it the state is the same
            if call.is_write and not (call.plural == "leases" and call.method == "PUT"):
                text = _signature(call, ANY)
                writes.append((text, counted[text]))
                counted[text] += 1
        return writes

    async def disturbed_at(self, point: Point) -> bool:
        """Live with one fault until it happened, or until it is plain that it never does."""
        for _ in range(ATTEMPTS):
            if await self._disturbed(point):
                return True
        return False

    async def _disturbed(self, point: Point) -> bool:
        """Live once with one fault, to the same states; tell whether the fault happened."""
        self.lives += 1
        world, name = self.world, f"x{self.lives:03d}"
        wanted, ordinal = point.write
        seen = [0]

        def match(call: Call) -> bool:
            if not call.is_write or _signature(call, name) != wanted:
                return False
            seen[0] += 1
            return seen[0] == ordinal + 1

        world.faults.heal()
        if "leases" in wanted:
            assert self.operator is not None
            kill(self.operator)()
            self.operator.process.wait()
            await world.delete(LEASE, "nimway-operator")
        rule = world.faults.on(match, self._act(point.mode), times=1)
        for stage, expected in enumerate(self.expected):
            await self._stage(stage, name)
            await self._reach(name, expected, f"{point}, stage {stage}")
        await world.delete(PROXY, f"p-{name}")
        return bool(rule.hits)

    async def _stage(self, stage: int, name: str) -> None:
        world, namespace = self.world, self.world.namespace
        if stage == 0:
            storage = {"pvc": {"size": "1Gi", "reclaim": "Delete"}}
            labels = {"life": name}
            declared = model(namespace, f"m-{name}", storage=storage)
            declared["metadata"]["labels"] = labels
            await world.apply(
                declared,
                proxy(namespace, f"p-{name}", modelSelector={"matchLabels": labels}),
            )
            await self._reach_status(f"m-{name}", f"p-{name}")
        elif stage == 1:
            change = {"spec": {"image": "nvcr.io/nim/other:2", "port": 9000, "aliases": [name]}}
            change["spec"]["storage"] = None
            await patch(world.api, MODEL, namespace, f"m-{name}", change)
            await self._stray(name)
            await patch(world.api, PROXY, namespace, f"p-{name}", {"spec": {"drainSeconds": 30}})
            await self._reach_status(f"m-{name}", f"p-{name}")
        else:
            await world.delete(MODEL, f"m-{name}")
            if not self.expected[2:]:
                for kind in MODEL_CHILDREN:
                    await world.gone(kind, f"m-{name}", timeout_s=COLLECT_S)
                await world.gone(CLAIM, f"m-{name}-store", timeout_s=COLLECT_S)

    async def _stray(self, name: str) -> None:
        """Add a child that another version of the operator would have declared."""
        world = self.world
        owner = (await world.get(MODEL, f"m-{name}"))["metadata"]["uid"]
        stray = {
            "apiVersion": SERVICE.api_version,
            "kind": SERVICE.kind,
            "metadata": {
                "name": f"stray-{name}",
                "namespace": world.namespace,
                "labels": {OWNER_LABEL: owner, "app.kubernetes.io/managed-by": "nimway"},
            },
            "spec": {"ports": [{"port": 1}]},
        }
        await create(world.api, SERVICE, stray)
        if not self.expected[1:]:
            await world.gone(SERVICE, f"stray-{name}")

    async def _reach_status(self, model_name: str, proxy_name: str) -> None:
        if self.expected:
            return  # a disturbed life is compared as a whole
        await self.world.reported(MODEL, model_name, "Ready/SwitchedOff")
        await self.world.reported(PROXY, proxy_name, "Ready/SwitchedOff")

    async def _reach(self, name: str, expected: str, what: str) -> None:
        async def probe() -> bool:
            self._start_if_dead()
            return await self._state(name) == expected

        try:
            await until(probe, what, timeout_s=COLLECT_S)
        except AssertionError as error:
            lines = expected.splitlines(), (await self._state(name)).splitlines()
            difference = "\n".join(difflib.unified_diff(*lines, "undisturbed", "now", n=4))
            raise AssertionError(f"{error}\n{difference}") from None

    async def _state(self, name: str) -> str:
        """Return all objects of a life as text, with this life's name and uids replaced."""
        world = self.world
        everything = await world.state()
        found = {key: value for key, value in everything.items() if name in key}
        text = json.dumps(found, sort_keys=True, indent=1)
        for kind, short in ((MODEL, "m"), (PROXY, "p")):
            live = await world.find(kind, f"{short}-{name}")
            if live is not None:
                text = text.replace(live["metadata"]["uid"], f"uid of {short}")
        return text.replace(name, ANY)


def _points(writes: list[Write]) -> list[Point]:
    # How many Events tell of one life is a matter of timing, so only the first is sure to come.
    sure = [(text, number) for text, number in writes if "events" not in text or not number]
    if FULL:
        return [Point(write, mode) for write in sure for mode in MODES]
    few = sure[:: 2 * len(MODES)]
    return [Point(write, MODES[index % len(MODES)]) for index, write in enumerate(few)]


async def test_from_every_write_at_which_the_operator_dies_the_same_state_is_reached(
    world: World,
) -> None:
    began_s = time.monotonic()
    lives = Lives(world)
    writes = await lives.undisturbed()
    points = _points(writes)
    missed = [point for point in points if not await lives.disturbed_at(point)]
    report = (
        f"{len(writes)} writes, {len(points) - len(missed)} of {len(points)} points hit, "
        f"{lives.kills} kills, {lives.lives} lives, {time.monotonic() - began_s:.0f} s"
    )
    sys.stdout.write(f"{report}\n")
    assert len(writes) >= 15
    assert missed == []
