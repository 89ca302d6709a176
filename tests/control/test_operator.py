from typing import Any

import pytest

from nimway.control.client import InvalidError, KubeClient
from nimway.control.fields import extract
from nimway.control.kinds import (
    CHILDREN,
    CLAIM,
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    MODEL,
    PROXY,
    ROLE_BINDING,
    SERVICE,
    SERVICE_ACCOUNT,
    Kind,
    Manifest,
)
from nimway.routes import decode
from tests.control import samples
from tests.control.conftest import OPERATOR_NAMESPACE
from tests.control.process import (
    OperatorProcess,
    condition,
    create,
    delete,
    find,
    patch,
    until,
)

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator")]

REPAIR_S = 5.0
COLLECT_S = 60.0
"""The garbage collector hears of new kinds every 30 s; before, it deletes nothing of theirs."""

OTHER_PORT = {"name": "nim", "image": "x", "ports": [{"name": "http", "containerPort": 8001}]}
"""A container whose port excludes ours: same name, another number."""

MODEL_CHILDREN = (DEPLOYMENT, SERVICE, DISRUPTION_BUDGET)


def _model(namespace: str, name: str, **spec: Any) -> Manifest:
    manifest = samples.model(name, namespace, **{"model": f"org/{namespace}-{name}", **spec})
    return {**manifest, "metadata": {"name": name, "namespace": namespace}}


def _proxy(namespace: str, name: str, **spec: Any) -> Manifest:
    manifest = samples.proxy(name, namespace, **spec)
    return {**manifest, "metadata": {"name": name, "namespace": namespace}}


async def _have(api: KubeClient, namespace: str, name: str, *kinds: Kind) -> None:
    for kind in kinds:
        await until(
            lambda kind=kind: find(api, kind, namespace, name),  # type: ignore[misc]
            f"{kind.kind} {name} exists",
        )


async def _reported(
    api: KubeClient, kind: Kind, namespace: str, name: str, wanted: str
) -> Manifest:
    """Wait for a condition and its reason, given as `Type/Reason`."""
    type_, _, reason = wanted.partition("/")

    async def probe() -> Manifest | None:
        live = await find(api, kind, namespace, name)
        return live if condition(live, type_).get("reason") == reason else None

    return await until(probe, f"{name}: {wanted}")


async def test_a_model_gets_its_children_and_a_status(api: KubeClient, namespace: str) -> None:
    await create(api, MODEL, _model(namespace, "llama", replicas=0))
    await _have(api, namespace, "llama", *MODEL_CHILDREN)

    live = await _reported(api, MODEL, namespace, "llama", "Ready/SwitchedOff")
    status = live["status"]
    assert status["observedGeneration"] == live["metadata"]["generation"]
    assert status["ready"] == "0/0"
    assert status["endpoint"] == f"http://llama.{namespace}.svc:8000"
    assert "app.kubernetes.io/instance=llama" in status["selector"]
    assert condition(live, "Stalled")["status"] == "False"
    assert condition(live, "Routed")["reason"] == "NoProxy"


async def test_a_model_without_a_gpu_says_how_many_it_waits_for(
    api: KubeClient, namespace: str
) -> None:
    await create(api, MODEL, _model(namespace, "big", gpus=64, nodeSelector=None))
    live = await _reported(api, MODEL, namespace, "big", "Ready/WaitingForGPU")
    assert "needs 64 nvidia.com/gpu" in condition(live, "Ready")["message"]
    assert condition(live, "Stalled")["status"] == "False"
    assert condition(live, "Reconciling")["status"] == "True"


async def test_what_users_wrote_gets_neither_a_finalizer_nor_an_annotation(
    api: KubeClient, namespace: str
) -> None:
    theirs = {"example.com/team": "a"}
    model, proxy = _model(namespace, "llama", replicas=0), _proxy(namespace, "edge", replicas=0)
    for kind, manifest in ((MODEL, model), (PROXY, proxy)):
        manifest["metadata"]["annotations"] = theirs
        await create(api, kind, manifest)
    await until(lambda: _table(api, namespace, "edge", 1), "the model is routed")
    for kind, name in ((MODEL, "llama"), (PROXY, "edge")):
        live = await _reported(api, kind, namespace, name, "Ready/SwitchedOff")
        assert "finalizers" not in live["metadata"]
        assert live["metadata"]["annotations"] == theirs


async def test_a_name_with_dots_works(api: KubeClient, namespace: str) -> None:
    await create(api, MODEL, _model(namespace, "llama-3.1-8b", replicas=0))
    live = await _reported(api, MODEL, namespace, "llama-3.1-8b", "Ready/SwitchedOff")
    slug = live["status"]["selector"].partition("instance=")[2].partition(",")[0]
    await _have(api, namespace, slug, *MODEL_CHILDREN)


async def test_a_proxy_gets_its_table_its_rights_and_its_pods(
    api: KubeClient, namespace: str
) -> None:
    await create(api, MODEL, _model(namespace, "one", replicas=0, aliases=["uno"]))
    await create(api, PROXY, _proxy(namespace, "edge", replicas=0))
    await _have(api, namespace, "nimway-edge-routes", CONFIG_MAP, ROLE_BINDING)
    workload = (DEPLOYMENT, SERVICE, SERVICE_ACCOUNT, DISRUPTION_BUDGET)
    await _have(api, namespace, "nimway-edge", *workload)

    table = await until(lambda: _table(api, namespace, "edge", 1), "the model is in the table")
    assert table.routes[0].names == (f"org/{namespace}-one", "uno")
    assert table.routes[0].service == "one"
    live = await _reported(api, PROXY, namespace, "edge", "Ready/SwitchedOff")
    assert live["status"]["models"] == 1
    assert live["status"]["endpoint"] == f"http://nimway-edge.{namespace}.svc:8000"


async def _table(api: KubeClient, namespace: str, proxy: str, routes: int) -> Any:
    live = await find(api, CONFIG_MAP, namespace, f"nimway-{proxy}-routes")
    table = decode(live["data"]) if live else None
    return table if table is not None and len(table.routes) == routes else None


async def test_a_proxy_outside_the_trusted_namespaces_may_not_reach_out(
    api: KubeClient, namespace: str
) -> None:
    await create(api, PROXY, _proxy(namespace, "greedy", namespaces=["*"]))
    live = await _reported(api, PROXY, namespace, "greedy", "Stalled/NamespaceNotAllowed")
    assert "spec.namespaces" in condition(live, "Stalled")["message"]
    assert await find(api, DEPLOYMENT, namespace, "nimway-greedy") is None


async def test_rights_follow_the_served_namespaces(api: KubeClient, namespace: str) -> None:
    name = f"wide-{namespace}"
    await create(api, MODEL, _model(namespace, "here", replicas=0, labels={"t": namespace}))
    await patch(api, MODEL, namespace, "here", {"metadata": {"labels": {"t": namespace}}})
    selector = {"matchLabels": {"t": namespace}}
    wide = _proxy(OPERATOR_NAMESPACE, name, namespaces=["*"], modelSelector=selector, replicas=0)
    await create(api, PROXY, wide)

    async def bindings() -> list[Manifest]:
        return [
            item
            async for page, _ in api.pages(ROLE_BINDING, namespace)
            for item in page
            if item["roleRef"]["name"] == "nimway-proxy-endpoints"
        ]

    async def bound() -> bool:
        return len(await bindings()) == 1

    async def unbound() -> bool:
        return not await bindings()

    await until(bound, "the served namespace has a binding")
    await delete(api, MODEL, namespace, "here")
    await until(unbound, "the binding goes with the last model")
    again = _model(namespace, "back", replicas=0)
    again["metadata"]["labels"] = {"t": namespace}
    await create(api, MODEL, again)
    await until(bound, "the binding is back")
    await delete(api, PROXY, OPERATOR_NAMESPACE, name)
    await until(unbound, "the binding goes with the proxy, without a garbage collector")


async def test_a_deleted_child_comes_back(api: KubeClient, namespace: str) -> None:
    await create(api, MODEL, _model(namespace, "llama", replicas=0))
    await _have(api, namespace, "llama", *MODEL_CHILDREN)
    for kind in MODEL_CHILDREN:
        live = await api.get(kind, namespace, "llama")
        await delete(api, kind, namespace, "llama")

        async def recreated(kind: Kind = kind, old: str = live["metadata"]["uid"]) -> bool:
            found = await find(api, kind, namespace, "llama")
            return found is not None and found["metadata"]["uid"] != old

        await until(recreated, f"{kind.kind} is back", timeout_s=REPAIR_S)


@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
async def test_a_deleted_model_leaves_nothing(
    api: KubeClient, namespace: str, propagation: str
) -> None:
    storage = {"pvc": {"size": "1Gi", "reclaim": "Delete"}}
    await create(api, MODEL, _model(namespace, "llama", replicas=0, storage=storage))
    await create(api, PROXY, _proxy(namespace, "edge", replicas=0))
    await _have(api, namespace, "llama", *MODEL_CHILDREN)
    await _have(api, namespace, "llama-store", CLAIM)
    await until(lambda: _table(api, namespace, "edge", 1), "the model is routed")

    await delete(api, MODEL, namespace, "llama", propagation)

    await until(lambda: _table(api, namespace, "edge", 0), "the route is gone", timeout_s=5)

    for kind in (MODEL, *MODEL_CHILDREN):
        await until(
            lambda kind=kind: _gone(api, kind, namespace, "llama"),  # type: ignore[misc]
            f"no {kind.kind}",
            timeout_s=COLLECT_S,
        )


async def _gone(api: KubeClient, kind: Kind, namespace: str, name: str) -> bool:
    return await find(api, kind, namespace, name) is None


async def test_a_kept_claim_outlives_its_model_and_is_adopted_again(
    api: KubeClient, namespace: str
) -> None:
    storage = {"pvc": {"size": "1Gi"}}
    await create(api, MODEL, _model(namespace, "llama", replicas=0, storage=storage))
    await _have(api, namespace, "llama-store", CLAIM)
    claim = await api.get(CLAIM, namespace, "llama-store")
    await delete(api, MODEL, namespace, "llama", "Foreground")

    async def gone() -> bool:
        return await _gone(api, MODEL, namespace, "llama")

    await until(gone, "the model is gone", timeout_s=COLLECT_S)
    created = await create(
        api, MODEL, _model(namespace, "llama", replicas=0, storage={"pvc": {"size": "2Gi"}})
    )

    async def adopted() -> bool:
        live = await api.get(CLAIM, namespace, "llama-store")
        assert live["metadata"]["uid"] == claim["metadata"]["uid"]
        owner = live["metadata"]["labels"]["nimway.dev/owner-uid"]
        return bool(owner == created["metadata"]["uid"])

    # A claim without a class cannot grow: the API server says so, and the owner's label stays.
    live = await _reported(api, MODEL, namespace, "llama", "Stalled/InvalidSpec")
    assert "llama-store" in condition(live, "Stalled")["message"]
    await delete(api, MODEL, namespace, "llama", "Foreground")
    await until(gone, "the model is gone again", timeout_s=COLLECT_S)
    created = await create(api, MODEL, _model(namespace, "llama", replicas=0, storage=storage))
    await until(adopted, "the claim belongs to the new model")


async def test_an_object_that_is_not_ours_is_left_alone(api: KubeClient, namespace: str) -> None:
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "llama", "namespace": namespace, "labels": {"a": "b"}},
        "spec": {"ports": [{"port": 8000}], "selector": {"x": "y"}},
    }
    before = await create(api, SERVICE, theirs)
    await create(api, MODEL, _model(namespace, "llama", replicas=0))

    live = await _reported(api, MODEL, namespace, "llama", "Stalled/ObjectConflict")
    assert f"Service {namespace}/llama" in condition(live, "Stalled")["message"]
    assert await api.get(SERVICE, namespace, "llama") == before

    await delete(api, MODEL, namespace, "llama", "Foreground")

    async def gone() -> bool:
        return await _gone(api, MODEL, namespace, "llama")

    await until(gone, "the model is gone", timeout_s=COLLECT_S)
    assert await api.get(SERVICE, namespace, "llama") == before


async def test_what_the_api_server_refuses_stalls_one_model_and_is_undone_by_a_fix(
    api: KubeClient, namespace: str
) -> None:
    bad = {"limits": {"no-standard-resource": "1"}}
    await create(api, MODEL, _model(namespace, "bad", replicas=0, resources=bad))
    await create(api, MODEL, _model(namespace, "good", replicas=0))
    live = await _reported(api, MODEL, namespace, "bad", "Stalled/InvalidSpec")
    assert "no-standard-resource" in condition(live, "Stalled")["message"]
    await _reported(api, MODEL, namespace, "good", "Ready/SwitchedOff")

    await patch(api, MODEL, namespace, "bad", {"spec": {"resources": None}})
    fixed = await _reported(api, MODEL, namespace, "bad", "Ready/SwitchedOff")
    assert condition(fixed, "Stalled")["status"] == "False"


async def test_of_two_models_of_one_name_the_older_wins_and_the_younger_is_promoted(
    api: KubeClient, namespace: str
) -> None:
    await create(api, PROXY, _proxy(namespace, "edge", replicas=0))
    older = _model(namespace, "z-older", replicas=0, model=f"Org/{namespace}")
    younger = _model(namespace, "a-younger", replicas=0, model=f"org/{namespace}")
    created = await create(api, MODEL, older)
    await until(lambda: _table(api, namespace, "edge", 1), "the older is routed")
    # creationTimestamp has whole seconds; the uid breaks a tie, so wait for the next second.
    second = created["metadata"]["creationTimestamp"]

    async def ticked() -> bool:
        probe = await api.request(
            "POST",
            CONFIG_MAP.path(namespace),
            query={"dryRun": "All"},
            body={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "clock"}},
        )
        return bool(probe["metadata"]["creationTimestamp"] > second)

    await until(ticked, "the next second")
    await create(api, MODEL, younger)

    live = await _reported(api, MODEL, namespace, "a-younger", "Routed/NameConflict")
    assert f"{namespace}/z-older" in condition(live, "Routed")["message"]
    assert condition(live, "Stalled")["status"] == "True"
    table = await until(lambda: _table(api, namespace, "edge", 1), "one route")
    assert table.routes[0].name == "z-older"

    await delete(api, MODEL, namespace, "z-older")

    async def promoted() -> bool:
        table = await _table(api, namespace, "edge", 1)
        return table is not None and table.routes[0].name == "a-younger"

    await until(promoted, "the younger is routed", timeout_s=5)
    promoted_live = await _reported(api, MODEL, namespace, "a-younger", "Ready/SwitchedOff")
    assert condition(promoted_live, "Stalled")["status"] == "False"


async def test_scaling_changes_the_deployments_replicas_only(
    api: KubeClient, namespace: str
) -> None:
    await create(api, MODEL, _model(namespace, "llama", replicas=0))
    await _have(api, namespace, "llama", *MODEL_CHILDREN)
    before = await api.get(DEPLOYMENT, namespace, "llama")
    path = MODEL.path(namespace, "llama") + "/scale"
    await api.request(
        "PATCH",
        path,
        body={"spec": {"replicas": 2}},
        content_type="application/merge-patch+json",
    )

    async def scaled() -> Manifest | None:
        live = await api.get(DEPLOYMENT, namespace, "llama")
        return live if live["spec"]["replicas"] == 2 else None

    after = await until(scaled, "two replicas")
    assert after["spec"]["template"] == before["spec"]["template"]


async def test_what_others_add_to_a_child_stays(api: KubeClient, namespace: str) -> None:
    await create(api, MODEL, _model(namespace, "llama", replicas=0))
    await _have(api, namespace, "llama", *MODEL_CHILDREN)
    theirs = {"labels": {"istio.io/rev": "x"}, "annotations": {"argocd": "y"}}
    await patch(api, DEPLOYMENT, namespace, "llama", {"metadata": theirs})
    await patch(api, MODEL, namespace, "llama", {"spec": {"replicas": 1, "gpus": 64}})

    async def changed() -> Manifest | None:
        live = await api.get(DEPLOYMENT, namespace, "llama")
        return live if live["spec"]["replicas"] == 1 else None

    live = await until(changed, "our change is applied")
    assert live["metadata"]["labels"]["istio.io/rev"] == "x"
    assert live["metadata"]["annotations"]["argocd"] == "y"


def _leaves(value: Any, path: str = "") -> list[str]:
    """Return the JSON pointers of all leaves, and of all list items."""
    if isinstance(value, dict) and value:
        return [
            leaf
            for key, item in value.items()
            for leaf in _leaves(item, f"{path}/{key.replace('~', '~0').replace('/', '~1')}")
        ]
    return [path]


async def _removals(api: KubeClient, kind: Kind, namespace: str, name: str) -> tuple[int, int]:
    """Remove each field we set, one after the other; return (accepted, refused) removals."""
    accepted = refused = 0
    before = await api.get(kind, namespace, name)
    ours = next(
        entry["fieldsV1"]
        for entry in before["metadata"]["managedFields"]
        if entry["manager"] == "nimway" and "subresource" not in entry
    )
    applied = {key: extract(before[key], ours[f"f:{key}"]) for key in before if f"f:{key}" in ours}
    for pointer in _leaves(applied):
        try:
            body = [{"op": "remove", "path": pointer}]
            changed = await patch(api, kind, namespace, name, body)
        except InvalidError:
            refused += 1
            continue
        if changed["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]:
            refused += 1  # the API server put its default in the place, which is our value
            continue
        accepted += 1

        async def repaired() -> bool:
            live = await find(api, kind, namespace, name)
            return live is not None and all(
                extract(live.get(key), ours[f"f:{key}"]) == value for key, value in applied.items()
            )

        await until(repaired, f"{kind.kind} {pointer} is repaired", timeout_s=REPAIR_S)
        before = await api.get(kind, namespace, name)
    return accepted, refused


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", MODEL_CHILDREN, ids=lambda kind: kind.kind)
async def test_every_field_of_a_models_child_is_repaired(
    api: KubeClient, namespace: str, kind: Kind
) -> None:
    spec = {**samples.MAXIMAL, "replicas": 0}
    spec.pop("storage")
    await create(api, MODEL, _model(namespace, "llama", **spec))
    await _have(api, namespace, "llama", *MODEL_CHILDREN)
    accepted, _ = await _removals(api, kind, namespace, "llama")
    assert accepted >= {"Deployment": 35, "Service": 10, "PodDisruptionBudget": 10}[kind.kind]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", CHILDREN, ids=lambda kind: kind.kind)
async def test_every_field_of_a_proxys_child_is_repaired(
    api: KubeClient, namespace: str, kind: Kind
) -> None:
    if kind == CLAIM:
        pytest.skip("a proxy has no claim")
    await create(api, MODEL, _model(namespace, "one", replicas=0))
    await create(api, PROXY, _proxy(namespace, "edge", replicas=0))
    await until(lambda: _table(api, namespace, "edge", 1), "the model is routed")
    name = "nimway-edge-routes" if kind in {CONFIG_MAP, ROLE_BINDING} else "nimway-edge"
    await _have(api, namespace, name, kind)
    accepted, _ = await _removals(api, kind, namespace, name)
    assert accepted >= 8


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (
            DEPLOYMENT,
            {"spec": {"replicas": 3, "progressDeadlineSeconds": 99}},
        ),
        (DEPLOYMENT, {"spec": {"template": {"spec": {"containers": [OTHER_PORT]}}}}),
        (SERVICE, {"spec": {"selector": {"app.kubernetes.io/instance": "other"}}}),
        (SERVICE, {"spec": {"ports": [{"name": "http", "port": 81, "targetPort": 9}]}}),
        (DEPLOYMENT, {"metadata": {"ownerReferences": []}}),
        (DEPLOYMENT, {"metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}}}),
        (DEPLOYMENT, {"metadata": {"labels": {"nimway.dev/owner-uid": "another"}}}),
        (DEPLOYMENT, {"metadata": {"managedFields": [{}]}}),
        (DISRUPTION_BUDGET, {"spec": {"maxUnavailable": 0}}),
    ],
    ids=str,
)
async def test_a_changed_value_is_put_back(
    api: KubeClient, namespace: str, kind: Kind, change: Manifest
) -> None:
    await create(api, MODEL, _model(namespace, "llama", replicas=0))
    await _have(api, namespace, "llama", *MODEL_CHILDREN)
    await _reported(api, MODEL, namespace, "llama", "Ready/SwitchedOff")
    before = await api.get(kind, namespace, "llama")
    await patch(api, kind, namespace, "llama", change)

    async def repaired() -> bool:
        live = await api.get(kind, namespace, "llama")
        ours = [e for e in live["metadata"].get("managedFields", ()) if e["manager"] == "nimway"]
        return bool(
            ours
            and live["spec"] == before["spec"]
            and live["metadata"]["labels"] == before["metadata"]["labels"]
            and live["metadata"].get("ownerReferences") == before["metadata"]["ownerReferences"]
        )

    await until(repaired, "it is as before", timeout_s=REPAIR_S)


async def test_the_operators_pages_answer(operator: OperatorProcess) -> None:
    assert operator.process.poll() is None
    text = operator.log.read_text(encoding="utf-8")
    assert "Traceback" not in text
