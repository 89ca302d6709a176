"""An operator's start, end and succession, each on processes of the test's own."""

import signal
from pathlib import Path

import pytest

from nimway.control.client import KubeClient
from nimway.control.kinds import DEPLOYMENT, LEASE, MODEL, PROXY, Manifest
from tests.control import samples
from tests.control.conftest import OPERATOR_NAMESPACE
from tests.control.process import (
    OperatorProcess,
    condition,
    create,
    environment_of,
    find,
    until,
    versions,
)
from tests.faults.forked import Forked
from tests.support.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

MODELS = 10
LEASE_S = 5.0
"""A third of the product's, with all times of the election in proportion; faults/ has its own."""

SUCCESSION_S = LEASE_S + 30.0
"""The lease runs out when a rival saw no renewal for so long; a busy machine sees late."""


def _model(namespace: str, name: str) -> Manifest:
    manifest = samples.model(name, namespace, model=f"org/{namespace}-{name}", replicas=0)
    return {**manifest, "metadata": {"name": name, "namespace": namespace}}


async def _settled(api: KubeClient, namespace: str) -> None:
    async def probe() -> bool:
        found = []
        async for page, _ in api.pages(MODEL, namespace):
            found += [condition(item, "Ready").get("status") == "True" for item in page]
        return len(found) == MODELS and all(found)

    await until(probe, "all models are Ready")
    proxy = await until(lambda: find(api, PROXY, namespace, "edge"), "the proxy exists")

    async def counted() -> bool:
        live = await api.get(PROXY, namespace, "edge")
        return bool(live.get("status", {}).get("models") == MODELS)

    assert proxy
    await until(counted, "the proxy counts its models")


async def _still(api: KubeClient, namespace: str) -> dict[str, str]:
    """Return the versions of all objects once they have stopped changing."""
    seen: list[dict[str, str]] = []

    async def probe() -> bool:
        seen.append(await versions(api, namespace))
        return len(seen) > 20 and all(each == seen[-1] for each in seen[-20:])

    await until(probe, "nothing changes any more")
    return seen[-1]


async def _leads(api: KubeClient, identity: str, timeout_s: float) -> None:
    async def probe() -> bool:
        lease = await find(api, LEASE, OPERATOR_NAMESPACE, "nimway-operator")
        return lease is not None and lease["spec"].get("holderIdentity") == identity

    await until(probe, f"{identity} leads", timeout_s=timeout_s)


async def test_a_restart_writes_nothing_and_a_stop_gives_the_lease_back(
    control: Cluster, api: KubeClient, namespace: str, tmp_path: Path
) -> None:
    first = _start(control, tmp_path / "1", f"{namespace}-one")
    await _leads(api, f"{namespace}-one", timeout_s=30)
    for number in range(MODELS):
        await create(api, MODEL, _model(namespace, f"m{number}"))
    proxy = samples.proxy("edge", namespace, replicas=0)
    await create(api, PROXY, {**proxy, "metadata": {"name": "edge", "namespace": namespace}})
    await _settled(api, namespace)
    before = await _still(api, namespace)
    assert first.stop() == 0
    lease = await api.get(LEASE, OPERATOR_NAMESPACE, "nimway-operator")
    assert not lease["spec"].get("holderIdentity")

    second = _start(control, tmp_path / "2", f"{namespace}-two")
    try:
        await _leads(api, f"{namespace}-two", timeout_s=10)
        await create(api, MODEL, _model(namespace, "after"))
        await until(lambda: find(api, DEPLOYMENT, namespace, "after"), "the second works")
        after = await versions(api, namespace)
        unchanged = {key: after[key] for key in before if "edge" not in key}
        assert unchanged == {key: before[key] for key in unchanged}
        log = second.log.read_text(encoding="utf-8")
        assert [
            line
            for line in log.splitlines()
            if "applying" in line and "after" not in line and "edge" not in line
        ] == []
    finally:
        second.stop()


async def test_a_standby_writes_nothing_and_takes_over_from_a_killed_leader(
    control: Cluster, api: KubeClient, namespace: str, tmp_path: Path
) -> None:
    leader = _start(control, tmp_path / "1", f"{namespace}-one")
    await _leads(api, f"{namespace}-one", timeout_s=30)
    standby = _start(control, tmp_path / "2", f"{namespace}-two")
    try:
        await create(api, MODEL, _model(namespace, "first"))
        await until(lambda: find(api, DEPLOYMENT, namespace, "first"), "the leader works")
        leader.stop(signal.SIGKILL)
        await create(api, MODEL, _model(namespace, "second"))
        await _leads(api, f"{namespace}-two", timeout_s=SUCCESSION_S)
        await until(lambda: find(api, DEPLOYMENT, namespace, "second"), "the standby took over")
        text = standby.log.read_text(encoding="utf-8")
        assert "first" not in text.partition("leading")[0]
    finally:
        _stop(standby)
        _stop(leader)


async def test_a_leader_that_was_stopped_leaves_the_cluster_to_its_successor(
    control: Cluster, api: KubeClient, namespace: str, tmp_path: Path
) -> None:
    leader = _start(control, tmp_path / "1", f"{namespace}-one")
    await _leads(api, f"{namespace}-one", timeout_s=30)

    async def knows() -> bool:
        return "leading:" in leader.log.read_text(encoding="utf-8")

    # The Lease names it before it has the answer; stopped in between it would only stand by.
    await until(knows, "the leader knows that it leads")
    leader.process.send_signal(signal.SIGSTOP)
    standby = _start(control, tmp_path / "2", f"{namespace}-two")
    try:
        await _leads(api, f"{namespace}-two", timeout_s=SUCCESSION_S)
        await create(api, MODEL, _model(namespace, "while-stopped"))
        await until(
            lambda: find(api, DEPLOYMENT, namespace, "while-stopped"), "the standby took over"
        )
        leader.process.send_signal(signal.SIGCONT)
        assert leader.process.wait(timeout=20) == 1, "it ends, so that the kubelet starts it anew"
        text = leader.log.read_text(encoding="utf-8")
        assert f"applying: Deployment {namespace}/while-stopped" not in text
        assert "Traceback" not in text
    finally:
        _stop(standby)
        _stop(leader)


def _start(control: Cluster, log: Path, identity: str) -> OperatorProcess:
    settings = {"POD_NAME": identity, "NIMWAY_TEST_LEASE_S": str(LEASE_S)}
    environment = environment_of(control.kubeconfig, OPERATOR_NAMESPACE, **settings)
    return OperatorProcess(Forked(["operator"], environment, log), log)


def _stop(process: OperatorProcess) -> None:
    if process.process.poll() is None:
        process.process.kill()
        process.process.wait(timeout=15)
