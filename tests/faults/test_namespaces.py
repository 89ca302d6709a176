"""Proxies that serve namespaces by their labels: who may, and what follows a change of a label."""

import json
from typing import Any

import pytest

from nimway.control.kinds import CONFIG_MAP, NAMESPACE, PROXY, ROLE_BINDING
from nimway.routes import decode
from tests.control.process import condition, create
from tests.faults.world import World, model, proxy, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

PROMPT_S = 5.0
"""Typically 0.3 s; the machine of a test run is shared."""

LABEL = "nimway.example.com/team"


async def label(world: World, namespace: str, team: str | None) -> None:
    await world.api.request(
        "PATCH",
        NAMESPACE.path(None, namespace),
        body={"metadata": {"labels": {LABEL: team}}},
        content_type="application/merge-patch+json",
    )


def selecting(world: World, name: str, team: str, **spec: Any) -> Any:
    selector = {"matchLabels": {LABEL: team}}
    return proxy(world.namespace, name, namespaceSelector=selector, **spec)


async def bindings(world: World, proxy_name: str, *namespaces: str) -> set[str]:
    """Return in which of these namespaces a proxy may see endpoints."""
    found = set()
    for namespace in namespaces:
        async for page, _ in world.api.pages(ROLE_BINDING, namespace):
            for item in page:
                if item["subjects"][0]["name"] == f"nimway-{proxy_name}":
                    found.add(namespace)
    return found


async def test_each_proxy_serves_the_namespaces_that_have_its_labels_and_follows_them(
    world: World, others: tuple[str, str]
) -> None:
    a, b = others
    await label(world, a, "red")
    await world.apply(
        selecting(world, "red", "red"),
        selecting(world, "blue", "blue"),
        model(a, "one"),
        model(b, "two"),
        model(world.namespace, "own"),
    )
    world.start_for(*others)
    await world.routed("one", name="red")
    await world.routed(name="blue")
    assert await bindings(world, "red", *others) == {a}

    await label(world, b, "red")
    await world.routed("one", "two", name="red", timeout_s=PROMPT_S)
    await label(world, a, "blue")
    await world.routed("two", name="red", timeout_s=PROMPT_S)
    await world.routed("one", name="blue", timeout_s=PROMPT_S)
    await _bound(world, "red", b, others)
    await _bound(world, "blue", a, others)

    await label(world, b, None)
    await world.routed(name="red", timeout_s=PROMPT_S)

    async def unbound() -> bool:
        return not await bindings(world, "red", *others)

    await until(unbound, "no right is left in a namespace that is not served")


async def _bound(world: World, name: str, where: str, others: tuple[str, str]) -> None:
    async def probe() -> bool:
        return await bindings(world, name, *others) == {where}

    await until(probe, f"{name} may look into {where} alone")


async def test_an_empty_selector_serves_all_and_what_names_no_team_can_be_left_out(
    world: World, others: tuple[str, str]
) -> None:
    a, b = others
    await label(world, a, "red")
    without = {"matchExpressions": [{"key": LABEL, "operator": "DoesNotExist"}]}
    await world.apply(
        proxy(world.namespace, "all", namespaceSelector={}),
        proxy(world.namespace, "rest", namespaceSelector=without),
        model(a, "one"),
        model(b, "two"),
    )
    world.start_for(*others)
    await world.routed("one", "two", name="all")
    await world.routed("two", name="rest")


async def test_of_the_chosen_namespaces_the_oldest_model_has_a_name(
    world: World, others: tuple[str, str]
) -> None:
    a, b = others
    for each in others:
        await label(world, each, "red")
    [_, older] = await world.apply(
        selecting(world, "red", "red"), model(b, "older", model="org/name")
    )
    await _next_second(world, older)
    await world.apply(model(a, "younger", model="org/name"))
    world.start_for(*others)
    await world.routed("older", name="red")


async def _next_second(world: World, than: dict[str, Any]) -> None:
    async def ticked() -> bool:
        probe = await world.api.request(
            "POST",
            NAMESPACE.path(),
            query={"dryRun": "All"},
            body={"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "clock"}},
        )
        stamp = "creationTimestamp"
        return bool(probe["metadata"][stamp] > than["metadata"][stamp])

    await until(ticked, "the next second")


async def test_a_selector_is_no_way_around_the_consent_of_the_namespaces(
    world: World, others: tuple[str, str]
) -> None:
    a, b = others
    await label(world, b, "red")
    selector = {"matchLabels": {LABEL: "red"}}
    await create(world.api, PROXY, proxy(a, "greedy", namespaceSelector=selector))
    await world.apply(model(b, "two"))
    world.start_for(*others)

    async def refused() -> Any:
        live = await world.api.get(PROXY, a, "greedy")
        return condition(live, "Stalled") or None

    told = await until(refused, "the proxy is told")
    assert (told["status"], told["reason"]) == ("True", "NamespaceNotAllowed")
    assert told["message"].startswith(f"spec.namespaceSelector: a NIMProxy in namespace {a} may")
    assert await bindings(world, "greedy", *others) == set()
    written = json.dumps([str(call) for call in world.faults.writes("configmaps", "deployments")])
    assert "nimway-greedy" not in written


async def test_a_namespace_that_is_not_chosen_any_more_holds_no_name(
    world: World, others: tuple[str, str]
) -> None:
    a, b = others
    for each in others:
        await label(world, each, "red")
    [_, first] = await world.apply(
        selecting(world, "red", "red"), model(a, "first", model="org/name")
    )
    world.start_for(*others)
    await world.routed("first", name="red")
    await label(world, a, None)
    await world.routed(name="red", timeout_s=PROMPT_S)
    await _next_second(world, first)
    await world.apply(model(b, "second", model="org/name"))
    await world.routed("second", name="red", timeout_s=PROMPT_S)


async def test_where_trust_is_taken_back_others_are_served_no_more(
    world: World, others: tuple[str, str]
) -> None:
    a, b = others
    await label(world, b, "red")
    selector = {"matchLabels": {LABEL: "red"}}
    await create(world.api, PROXY, proxy(a, "far", namespaceSelector=selector))
    await world.apply(model(a, "own"), model(b, "two"))
    world.others = others
    operator = world.start(NIMWAY_TRUSTED_PROXY_NAMESPACES=a)

    async def reaches() -> bool:
        return await bindings(world, "far", *others) == {a, b}

    await until(reaches, "the proxy may look into the other namespace")
    operator.stop()
    world.start()

    async def told() -> bool:
        live = await world.api.get(PROXY, a, "far")
        return bool(condition(live, "Stalled").get("reason") == "NamespaceNotAllowed")

    await until(told, "the proxy is told")

    async def confined() -> bool:
        live = await world.api.get(CONFIG_MAP, a, "nimway-far-routes")
        routed = {route.name for route in decode(live["data"]).routes}
        return routed == {"own"} and await bindings(world, "far", *others) == {a}

    await until(confined, "it serves its own namespace alone")
