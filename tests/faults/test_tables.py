"""OP-15: large tables are cut into ConfigMaps, and a proxy serves a whole one or the last one."""

import asyncio
import base64
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from nimway import routes
from nimway.control.kinds import CONFIG_MAP, MODEL, PROXY, Manifest
from nimway.proxy.feed import Feed
from nimway.proxy.kube import KubeReader, load_configuration
from nimway.proxy.messages import ServiceEndpoints
from nimway.routes import KEY_PACKED, TABLE_LABEL, RoutingTable
from nimway.tasks import spawn
from tests.control.process import condition, create, patch
from tests.faults.world import REPAIR_S, World, model, proxy, until
from tests.support.api_faults import Call, afterwards, instead
from tests.support.cluster import Cluster, eventually
from tests.support.faults import full_only
from tests.support.proxy_pod import CONFIGMAP, proxy_pods
from tests.test_shards import longest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

HEAD = "nimway-edge-routes"
MODELS = 24
SWAP_S = 10.0
"""Typically 0.5 s; the machine is shared."""

TABLE_PERIOD_S, TOLERANCE_S = 0.25, 0.005

SHARD_BYTES = {"NIMWAY_TEST_SHARD_BYTES": "600"}
"""So that 24 models are cut into several shards."""


@dataclass
class Follower:
    """A proxy's feed on the cluster, and every table that it hands to its workers."""

    tables: list[RoutingTable] = field(default_factory=list)
    refused: int = 0

    def replace_table(self, table: RoutingTable) -> None:
        self.tables.append(table)

    def count_table_error(self) -> None:
        self.refused += 1

    def confirm_table(self) -> None: ...
    def replace_endpoints(self, services: list[ServiceEndpoints]) -> None: ...
    def count_watch_error(self, resource: str) -> None: ...
    def count_proxies(self, pods: int) -> None: ...
    def set_complete(self, *, complete: bool) -> None: ...

    @property
    def names(self) -> set[str]:
        return {route.name for route in self.tables[-1].routes} if self.tables else set()


@asynccontextmanager
async def following(world: World) -> AsyncIterator[Follower]:
    """Follow a table as a proxy does.

    Without TLS: a watch that is cancelled says goodbye there, which can outlast the test's loop.
    """
    told = Follower()
    kubeconfig = world.faults.kubeconfig(world.folder / "follower")
    async with KubeReader(await load_configuration(str(kubeconfig))) as reader:
        task = spawn(Feed(reader, told, world.namespace, HEAD).run(), name="feed")
        try:
            yield told
        finally:
            task.cancel()
            await asyncio.wait([task])


async def shards_of(world: World) -> dict[str, Manifest]:
    query = {"labelSelector": f"{TABLE_LABEL}={HEAD}"}
    listed = await world.api.request("GET", CONFIG_MAP.path(world.namespace), query=query)
    return {
        item["metadata"]["name"]: item
        for item in listed["items"]
        if item["metadata"]["name"] != HEAD
    }


async def steady(world: World, **environment: str) -> list[str]:
    """Start an operator with a table of several shards; return the models' names."""
    names = [f"model-{number:03}" for number in range(MODELS)]
    await world.apply(
        proxy(world.namespace, "edge"), *(model(world.namespace, name) for name in names)
    )
    world.start(**SHARD_BYTES, **environment)
    await world.routed(*names, timeout_s=40)
    await world.settled(timeout_s=40)
    assert len(await shards_of(world)) > 2
    return names


async def test_a_proxy_that_follows_a_large_table_sees_whole_tables_only(world: World) -> None:
    names = await steady(world)
    before = set(await shards_of(world))
    async with following(world) as told:
        await until(_served(told, names), "the first table")
        since = len(world.faults.writes("configmaps"))
        await world.apply(model(world.namespace, "model-0005"))
        await until(_served(told, [*names, "model-0005"]), "a new model")
        await world.delete(MODEL, "model-010")
        names = sorted({*names, "model-0005"} - {"model-010"})
        await until(_served(told, names), "a deleted model")
        await world.settled()
        assert told.refused == 0
        assert [len(table.routes) for table in told.tables] == [24, 25, 24]
    calls = [call for call in world.faults.writes("configmaps")[since:] if call.status < 400]
    after = await shards_of(world)
    assert {call.name for call in calls if call.method == "DELETE"} == before - set(after)
    _assert_written_before_named(calls)
    live = await world.find(CONFIG_MAP, HEAD)
    assert live is not None
    named = {
        routes.shard_name(HEAD, line.split()[0])
        for line in live["data"]["shards"].split("\n")
        if line
    }
    assert set(after) == named


def _assert_written_before_named(calls: list[Call]) -> None:
    """Each head names only shards that stand, and no shard goes that the last head names."""
    gone: set[str] = set()
    for call in calls:
        if call.name == HEAD:
            lines = call.json["data"]["shards"].splitlines()
            named = {routes.shard_name(HEAD, line.split()[0]) for line in lines}
            assert not named & gone
        elif call.method == "DELETE":
            assert call.name not in named
            gone.add(call.name)
        else:
            gone.discard(call.name)


def _served(told: Follower, names: list[str]) -> Callable[[], Awaitable[bool]]:
    async def probe() -> bool:
        return told.names == set(names)

    return probe


async def test_many_changes_at_once_are_few_writes_of_the_table(world: World) -> None:
    """Every proxy and every worker reads each table that is written."""
    world.start()
    await world.apply(proxy(world.namespace, "edge"), model(world.namespace, "one"))
    await world.routed("one")

    def written() -> list[float]:
        calls = world.faults.writes(CONFIG_MAP.plural)
        return [call.at_s for call in calls if call.name == HEAD and call.status in {200, 201}]

    already, changes = len(written()), 0
    while len(written()) < already + 6:
        changes += 1
        body = {"spec": {"aliases": [f"org/{world.namespace}-{changes}"]}}
        await patch(world.api, MODEL, world.namespace, "one", body)
    times_s = written()
    gaps_s = [after - before for before, after in pairwise(times_s)]
    assert min(gaps_s) >= TABLE_PERIOD_S - TOLERANCE_S, gaps_s
    assert changes > 2 * (len(times_s) - already), "changes came faster than they are written"


@pytest.mark.parametrize("damage", ["deleted", "damaged", "emptied"])
async def test_a_shard_that_is_damaged_is_restored_and_the_table_stays(
    world: World, damage: str
) -> None:
    names = await steady(world)
    async with following(world) as told:
        await until(_served(told, names), "the first table")
        name, before = next(iter((await shards_of(world)).items()))
        if damage == "deleted":
            await world.delete(CONFIG_MAP, name)
        else:
            packed = base64.b64encode(b"x").decode() if damage == "damaged" else None
            await patch(
                world.api, CONFIG_MAP, world.namespace, name, {"binaryData": {KEY_PACKED: packed}}
            )

        async def restored() -> bool:
            live = await world.find(CONFIG_MAP, name)
            return live is not None and live.get("binaryData") == before["binaryData"]

        await until(restored, "the shard is as before", timeout_s=REPAIR_S)
        async with following(world) as late:
            await until(_served(late, names), "a proxy that starts now")
        assert len(told.tables) == 1


@pytest.mark.parametrize(
    ("write", "point"),
    [
        ("shard", "after"),
        pytest.param("shard", "before", marks=full_only),
        ("head", "before"),
        ("head", "after"),
        pytest.param("prune", "before", marks=full_only),
        ("prune", "after"),
    ],
)
async def test_an_operator_that_dies_at_a_write_leaves_a_whole_table(
    world: World, write: str, point: str
) -> None:
    names = await steady(world)
    operator = world.operators[-1]

    def die() -> None:
        operator.process.send_signal(signal.SIGKILL)

    act = instead(die) if point == "before" else afterwards(die)
    world.faults.on(partial(_is, write), act, times=1)
    async with following(world) as told:
        await until(_served(told, names), "the first table")
        await world.apply(model(world.namespace, "model-0005"))

        async def died() -> bool:
            return operator.process.poll() is not None

        await until(died, "the operator was killed")
        async with following(world) as late:
            named = write == "prune" or (write == "head" and point != "before")
            wanted = [*names, "model-0005"] if named else names
            await until(_served(late, wanted), "a proxy that starts meanwhile")
        world.start(**SHARD_BYTES)
        await until(_served(told, [*names, "model-0005"]), "the new table", timeout_s=40)
        assert told.refused == 0

    async def pruned() -> bool:
        table = await world.table()
        return table is not None and len(await shards_of(world)) == len(table.shards)

    await until(pruned, "no shard that nobody names", timeout_s=40)


def _is(write: str, call: Call) -> bool:
    if call.plural != "configmaps" or not call.is_write:
        return False
    if call.method == "DELETE":
        return write == "prune"
    return (write == "head") is (call.name == HEAD) and write != "prune"


async def test_a_first_table_that_does_not_fit_is_told_and_disturbs_no_other_proxy(
    world: World,
) -> None:
    selector = {"matchLabels": {"small": "yes"}}
    small = model(world.namespace, "small")
    small["metadata"]["labels"] = {"small": "yes"}
    names = [f"model-{number:03}" for number in range(10)]
    await world.apply(
        proxy(world.namespace, "edge"),
        proxy(world.namespace, "other", modelSelector=selector),
        small,
        *(model(world.namespace, name) for name in names),
    )
    world.start(NIMWAY_TEST_TABLE_BYTES="1000")
    await world.reported(PROXY, "edge", "Stalled/TableTooLarge")
    await world.routed("small", name="other")
    await world.reported(PROXY, "other", "Ready/SwitchedOff")
    assert await world.table() is None
    for name in names:
        await world.delete(MODEL, name)
    await world.routed("small")
    await world.reported(PROXY, "edge", "Ready/SwitchedOff")


async def test_a_table_that_does_not_fit_is_told_and_the_last_one_stays(world: World) -> None:
    names = await steady(world, NIMWAY_TEST_TABLE_BYTES="4000")
    kept = await shards_of(world)
    more = [f"more-{number:03}" for number in range(20)]
    async with following(world) as told:
        await until(_served(told, names), "the first table")
        await world.apply(*(model(world.namespace, name) for name in more))
        live = await world.reported(PROXY, "edge", "Stalled/TableTooLarge")
        message = condition(live, "Stalled")["message"]
        assert "bytes, more than 4000: spread the models over several NIMProxies" in message
        assert condition(live, "Ready")["reason"] == "TableTooLarge"
        await world.settled()
        served = told.names
        assert served >= set(names)
        assert len(told.tables[-1].routes) < len(names) + len(more)
        for name in more:
            await world.delete(MODEL, name)
        await until(_served(told, names), "a table that fits again")
        await world.reported(PROXY, "edge", "Ready/SwitchedOff")
        assert told.refused == 0

    async def pruned() -> bool:
        return set(await shards_of(world)) == set(kept)

    await until(pruned, "the shards of before, and no other")


@pytest.mark.alone
async def test_ten_thousand_models_with_the_longest_names_reach_a_proxy(
    world: World, crds: Cluster, tmp_path: Path
) -> None:
    """The operator's part (creating their pods) apart: the table alone, as it would write it."""
    made = [longest(number) for number in range(10_000)]
    table = routes.build_table(made)
    await write(world, table)
    names = len(made)
    with proxy_pods(crds.kubeconfig, world.namespace, tmp_path) as start:
        pod = start()
        await asyncio.to_thread(eventually, pod.is_ready, "ready", timeout_s=60)
        assert pod.state().revision == table.revision
        assert pod.metric("nimway_proxy_table_models") == names
        changed = routes.build_table(made[1:])
        assert len(set(changed.shards) - set(table.shards)) <= 3
        await write(world, changed)
        await asyncio.to_thread(
            eventually,
            lambda: pod.state().revision == changed.revision,
            "the next revision",
            timeout_s=SWAP_S,
        )
        assert pod.metric("nimway_proxy_table_models") == names - 1
        assert not pod.metric("nimway_proxy_table_errors_total")


async def write(world: World, table: RoutingTable) -> None:
    """Write what of a table is not there yet, its head last."""
    labels = {TABLE_LABEL: CONFIGMAP}
    listed = await world.api.request(
        "GET",
        CONFIG_MAP.path(world.namespace),
        query={"labelSelector": f"{TABLE_LABEL}={CONFIGMAP}"},
    )
    there = {item["metadata"]["name"] for item in listed["items"]}
    for digest, packed in routes.encode_shards(table, {}).items():
        name = routes.shard_name(CONFIGMAP, digest)
        if name not in there:
            manifest = _config_map(world, name, labels, binaryData={KEY_PACKED: packed})
            await create(world.api, CONFIG_MAP, manifest)
    if CONFIGMAP in there:
        await patch(
            world.api, CONFIG_MAP, world.namespace, CONFIGMAP, {"data": routes.encode(table)}
        )
    else:
        manifest = _config_map(world, CONFIGMAP, labels, data=routes.encode(table))
        await create(world.api, CONFIG_MAP, manifest)


def _config_map(
    world: World, name: str, labels: dict[str, str], **content: dict[str, str]
) -> Manifest:
    metadata = {"name": name, "namespace": world.namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, **content}
