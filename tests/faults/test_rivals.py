"""Others who write what Nimway declares: controllers that do it for ever, and admission."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from nimway.control.client import ApiError
from nimway.control.contests import FREE_REPAIRS
from nimway.control.kinds import DEPLOYMENT, EVENT, MODEL, SERVICE, Kind, Manifest
from nimway.tasks import spawn
from tests.control.process import condition, delete, patch
from tests.faults.world import World, model, pause, proxy, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

NEW = "RENDERED_BY_A_NEWER_OPERATOR"
MIRROR = "mirror.example.com/"
DEADLINE_S = 7

POLICY = Kind("admissionregistration.k8s.io", "v1", "mutatingadmissionpolicies", "Policy")
BINDING = Kind("admissionregistration.k8s.io", "v1", "mutatingadmissionpolicybindings", "Binding")


@asynccontextmanager
async def _rival(world: World, kind: Kind, name: str, spoil: str) -> AsyncIterator[list[float]]:
    """Undo what the operator did as soon as it did it; yield the times of that."""
    blows: list[float] = []
    path = f"{kind.path(world.namespace)}/{name}"

    async def fight() -> None:
        while True:
            live = await world.find(kind, name)
            with suppress(ApiError):
                if live is not None and spoil == "delete":
                    await delete(world.api, kind, world.namespace, name)
                    blows.append(time.monotonic())
                elif live is not None and live["spec"][spoil] != DEADLINE_S:
                    await world.api.request(
                        "PATCH",
                        path,
                        query={"fieldManager": "rival"},
                        body={"spec": {spoil: DEADLINE_S}},
                        content_type="application/merge-patch+json",
                    )
                    blows.append(time.monotonic())
            await pause()

    task = spawn(fight(), name="rival")
    try:
        yield blows
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_rival_is_named_and_fought_ever_more_rarely(world: World) -> None:
    world.start()
    await world.apply(model(world.namespace, "llama"), proxy(world.namespace, "edge"))
    await world.reported(MODEL, "llama", "Routed/ProxyNotReady")
    await world.settled()
    field = "progressDeadlineSeconds"
    wanted = (await world.get(DEPLOYMENT, "llama"))["spec"][field]
    async with _rival(world, DEPLOYMENT, "llama", field) as blows:
        live = await world.reported(MODEL, "llama", "Reconciling/Contested")
        told = condition(live, "Reconciling")["message"]
        assert f"spec.{field} is changed again and again, lately by rival" in told
        assert condition(live, "Ready")["reason"] == "SwitchedOff", "nothing else is told anew"
        assert len(blows) >= FREE_REPAIRS
        until_s, before = time.monotonic() + 4.0, len(blows)
        while time.monotonic() < until_s:
            await pause()
        assert len(blows) - before <= 3, "after 1, 2 and 4 seconds"
        # What the user declares meanwhile does not wait.
        env = [{"name": "WANTED", "value": "1"}]
        await patch(world.api, MODEL, world.namespace, "llama", {"spec": {"env": env}})

        async def applied() -> bool:
            child = await world.get(DEPLOYMENT, "llama")
            return "WANTED" in str(child["spec"]["template"])

        await until(applied, "the user's change", timeout_s=2.0)

    async def put_back() -> bool:
        return bool((await world.get(DEPLOYMENT, "llama"))["spec"][field] == wanted)

    await until(put_back, "what the rival left", timeout_s=30)
    [event] = [
        item
        async for page, _ in world.api.pages(EVENT, world.namespace)
        for item in page
        if item["reason"] == "Contested"
    ]
    assert event["type"] == "Warning"


async def test_who_deletes_a_child_again_and_again_is_not_kept_busy(world: World) -> None:
    world.start()
    await world.apply(model(world.namespace, "llama"))
    await world.reported(MODEL, "llama", "Routed/NoProxy")
    await world.settled()
    async with _rival(world, SERVICE, "llama", "delete") as blows:
        live = await world.reported(MODEL, "llama", "Reconciling/Contested")
        assert "it is deleted again and again" in condition(live, "Reconciling")["message"]
        before = len(blows)
        await pause(2.0)
        assert len(blows) - before <= 2
    await until(lambda: world.find(SERVICE, "llama"), "the Service", timeout_s=30)


def _mutation(namespace: str) -> Manifest:
    """Return a policy as many clusters have one: images from a mirror, and a toleration more."""
    template = "Object.spec.template.spec"
    container = f'{template}.containers{{name: c.name, image: "{MIRROR}" + c.image}}'
    images = f"object.spec.template.spec.containers.map(c, {container})"
    return {
        "apiVersion": POLICY.api_version,
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": namespace},
        "spec": {
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "resourceRules": [
                    {
                        "apiGroups": ["apps"],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE", "UPDATE"],
                        "resources": ["deployments"],
                    }
                ],
            },
            "matchConditions": [
                {
                    "name": "not-yet",
                    "expression": "object.spec.template.spec.containers.exists(c, "
                    f'!c.image.startsWith("{MIRROR}"))',
                }
            ],
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [
                {
                    "patchType": "ApplyConfiguration",
                    "applyConfiguration": {
                        "expression": "Object{spec: Object.spec{template: Object.spec.template{"
                        f"spec: {template}{{containers: {images}}}}}}}}}"
                    },
                }
            ],
        },
    }


@asynccontextmanager
async def _mutated(world: World) -> AsyncIterator[None]:
    """Have the API server change every Deployment of the namespace on its way in."""
    name = world.namespace
    bound = {
        "apiVersion": BINDING.api_version,
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name},
    }
    made = ((POLICY, _mutation(name)), (BINDING, bound))
    for kind, manifest in made:
        await world.api.request("POST", kind.path(), body=manifest)
    try:
        await until(lambda: _works(world), "the policy is in force")
        yield
    finally:
        for kind, _ in made:
            await world.api.request("DELETE", kind.path(name=name))


async def _works(world: World) -> bool:
    """Tell whether the policy is in force, by a Deployment that is not made."""
    labels = {"app": "probe"}
    container = {"name": "c", "image": "probe:1"}
    spec = {
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
    }
    answer = await world.api.request(
        "POST",
        DEPLOYMENT.path(world.namespace),
        query={"dryRun": "All"},
        body={"metadata": {"name": "probe"}, "spec": spec},
    )
    return MIRROR in str(answer)


async def _surge(world: World, pods: int) -> None:
    """Change the Deployment, and nothing about its pods."""
    change = {"spec": {"rollout": {"maxSurge": pods}}}
    await patch(world.api, MODEL, world.namespace, "llama", change)
    await world.settled()


def _revision(deployment: Manifest) -> str:
    return str(deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"])


async def test_a_newer_operator_leaves_pods_alone_that_admission_changed(world: World) -> None:
    async with _mutated(world):
        operator = world.start()
        await world.apply(model(world.namespace, "llama"))
        await world.reported(MODEL, "llama", "Routed/NoProxy")
        await world.settled()
        before = await world.get(DEPLOYMENT, "llama")
        assert MIRROR in str(before["spec"]["template"])
        world.faults.calls.clear()
        await _surge(world, 2)
        await _surge(world, 3)
        assert len(world.faults.writes("deployments")) == 2, "what admission did is noted once"
        operator.stop()
        world.start(NIMWAY_TEST_POD_ENV=NEW)
        await world.apply(model(world.namespace, "other"))
        await world.reported(MODEL, "other", "Routed/NoProxy")
        assert NEW in str(await world.get(DEPLOYMENT, "other")), "it does render differently"
        await _surge(world, 4)
        after = await world.get(DEPLOYMENT, "llama")
        assert after["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 4
        assert after["spec"]["template"] == before["spec"]["template"]
        assert _revision(after) == _revision(before)
        env = {"spec": {"env": [{"name": "WANTED", "value": "1"}]}}
        await patch(world.api, MODEL, world.namespace, "llama", env)
        await world.settled()
        template = str((await world.get(DEPLOYMENT, "llama"))["spec"]["template"])
        assert "WANTED" in template
        assert NEW in template
        assert MIRROR in template
