import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nimway.api.nimproxy import ProxyLimits, ProxyTimeouts
from nimway.control.desired import names
from nimway.control.desired.model import (
    ADMITTED_ANNOTATION,
    TEMPLATE_ANNOTATION,
    admitted_digest,
    build_claim,
    build_deployment,
    build_model,
    build_model_monitor,
    count_replicas,
)
from nimway.control.desired.pod import build_env, build_template
from nimway.control.desired.proxy import (
    build_limits,
    build_proxy_monitor,
    build_rights,
    build_routes,
    build_shards,
    build_workload,
)
from nimway.control.desired.quantity import canonical
from nimway.control.resolve import content_hash
from nimway.control.routing import candidate, decide
from nimway.proxy import environment
from nimway.proxy.settings import KIB, MIB, Settings
from nimway.routes import KEY_PACKED, TABLE_LABEL, build_table, decode, decode_shard
from tests.control import samples
from tests.test_shards import build_route

Golden = Callable[[str, str], None]
CASES: dict[str, dict[str, Any]] = {
    "minimal": {},
    "maximal": samples.MAXIMAL,
    "cpu": {"gpus": 0, "drain": {"seconds": 0}, "storage": {"emptyDir": {"sizeLimit": "20Gi"}}},
    "existing-claim": {"storage": {"pvc": {"claimName": "weights"}, "readOnly": True}},
    "autoscaled": {"replicas": 9, "autoscaling": {"minReplicas": 0, "maxReplicas": 4}},
    "kept-claim": {"storage": {"pvc": {"size": "10Gi"}}},
    "dra": {
        "gpus": 0,
        "resourceClaims": [
            {"name": "gpu", "resourceClaimTemplateName": "one-gpu", "request": "main"}
        ],
    },
}


def _yaml(children: list[Any]) -> str:
    return yaml.safe_dump_all([manifest for _, manifest in children], sort_keys=False)


@pytest.mark.parametrize("case", CASES)
def test_a_models_children_are_the_golden_ones(case: str, golden: Golden) -> None:
    children = build_model(samples.resolved(**CASES[case]), None)
    monitor = build_model_monitor(samples.resolved(**CASES[case]))
    golden(
        f"control/model-{case}.yaml",
        _yaml([*children, *([("ServiceMonitor", monitor)] if monitor else [])]),
    )


@pytest.mark.parametrize(
    ("case", "spec"),
    [
        ("minimal", {}),
        (
            "maximal",
            {
                "replicas": 3,
                "workers": 2,
                "image": "registry.example/nimway:1",
                "service": {"type": "LoadBalancer", "port": 80, "annotations": {"a": "b"}},
                "resources": {"limits": {"memory": "1024Mi"}},
                "namespaces": ["*"],
                "drainSeconds": 30,
                **samples.PROXY_LIMITS,
                "metrics": {"serviceMonitor": {"labels": {"release": "prometheus"}}},
                "labels": {"team": "a"},
                "annotations": {"note": "n"},
            },
        ),
    ],
)
def test_a_proxys_children_are_the_golden_ones(
    case: str, spec: dict[str, Any], golden: Golden
) -> None:
    proxy = samples.resolved_proxy(**spec)
    found = candidate(samples.model())
    assert found is not None
    decision = decide([found], None, None)
    children = [
        *build_rights(proxy, decision.table.namespaces, samples.SETTINGS),
        ("ConfigMap", build_routes(proxy, decision.table)),
        *build_workload(proxy, samples.SETTINGS),
    ]
    if monitor := build_proxy_monitor(proxy):
        children.append(("ServiceMonitor", monitor))
    golden(f"control/proxy-{case}.yaml", _yaml(children))


@pytest.mark.parametrize(("reclaim", "is_owned"), [("Retain", False), ("Delete", True)])
def test_an_argo_cd_application_named_like_the_model_leaves_a_kept_claim(
    reclaim: str, *, is_owned: bool
) -> None:
    """It tracks by the label `app.kubernetes.io/instance` until 3.0, and prunes what Git has not.

    What has an owner reference is not its to prune; a kept claim has none and holds the weights.
    """
    model = samples.resolved(storage={"pvc": {"size": "1Gi", "reclaim": reclaim}})
    claim = build_claim(model)
    assert claim is not None
    metadata = claim["metadata"]
    assert metadata["labels"]["app.kubernetes.io/instance"] == model.owner.name
    assert ("ownerReferences" in metadata) is is_owned
    if not is_owned:
        assert metadata["annotations"] == {
            "argocd.argoproj.io/sync-options": "Prune=false,Delete=false",
            "argocd.argoproj.io/compare-options": "IgnoreExtraneous",
        }


def test_a_claim_that_is_named_by_its_user_does_not_go_with_the_model_any_more() -> None:
    made = build_claim(samples.resolved(storage={"pvc": {"size": "1Gi", "reclaim": "Delete"}}))
    assert made is not None
    live = _applied(made)
    live["spec"] = {**made["spec"], "volumeName": "pvc-1", "volumeMode": "Filesystem"}
    named = samples.resolved(storage={"pvc": {"claimName": made["metadata"]["name"]}})
    kept = build_claim(named, live)
    assert kept is not None
    assert "ownerReferences" not in kept["metadata"]
    assert kept["spec"] == made["spec"], "what we applied: the API server lets nothing else be"
    assert build_claim(named, _applied(kept)) is None, "then it is its user's"
    assert build_claim(named, None) is None
    other = samples.resolved(storage={"pvc": {"claimName": "weights"}})
    assert build_claim(other, live) is None
    assert build_claim(samples.resolved(), live) is None
    going = {**live["metadata"], "deletionTimestamp": "2026-11-01T00:00:00Z"}
    assert build_claim(named, {**live, "metadata": going}) is None


@pytest.mark.parametrize(
    ("declared", "there", "expected"), [(9, None, 4), (9, 2, 4), (9, 6, 6), (3, 6, 3), (0, 2, 0)]
)
def test_pods_above_lowered_bounds_wait_to_be_ranked(
    declared: int, there: int | None, expected: int
) -> None:
    autoscaling = {"minReplicas": 0, "maxReplicas": 4}
    model = samples.resolved(replicas=declared, autoscaling=autoscaling)
    live = None if there is None else {**build_deployment(model, None), "spec": {"replicas": there}}
    assert count_replicas(model, live) == expected


def test_the_routing_config_map_can_be_read_back() -> None:
    found = candidate(samples.model())
    assert found is not None
    decision = decide([found], None, None)
    manifest = build_routes(samples.resolved_proxy(), decision.table)
    assert decode(manifest["data"]) == decision.table


def test_a_large_tables_config_maps_carry_the_label_and_the_name_by_which_a_proxy_finds_them() -> (
    None
):
    proxy = samples.resolved_proxy()
    table = build_table([build_route(number) for number in range(4000)])
    head, shards = build_routes(proxy, table), build_shards(proxy, table, {})
    assert len(shards) > 1
    for digest, shard in shards.items():
        assert shard["metadata"]["name"] == f"nimway-default-routes-{digest}"
    for each in (head, *shards.values()):
        assert each["metadata"]["labels"][TABLE_LABEL] == "nimway-default-routes"
    whole = {
        digest: decode_shard(digest, shard["binaryData"][KEY_PACKED])
        for digest, shard in shards.items()
    }
    assert decode(head["data"], whole) == table


def test_each_limit_of_a_proxy_is_a_variable_that_it_reads() -> None:
    env = build_limits(samples.resolved_proxy(**samples.PROXY_LIMITS).spec)
    settings = environment.read(env)
    assert len(settings) == len(env) - 1, "the share of the access log is an option"
    assert env["NIMWAY_ACCESS_LOG_SAMPLE"] == "0.1"
    assert settings == {
        "connections_max": 500,
        "body_bytes_max": 1048576,
        "bodies_bytes_max": 8388608,
        "head_bytes_max": 32768,
        "head_line_bytes_max": 8192,
        "head_fields_max": 50,
        "queue_requests_max": 100,
        "queue_wait_max_s": 20.0,
        "timeout_connect_s": 1.0,
        "timeout_first_byte_s": 60.0,
        "timeout_idle_s": 30.0,
        "timeout_total_s": 600.0,
        "timeout_head_s": 5.0,
        "timeout_client_idle_s": 60.0,
        "pass_authorization": True,
    }


def test_a_limit_left_out_is_left_to_the_proxy() -> None:
    empty = {"limits": {}, "timeouts": {}, "passAuthorization": False}
    assert build_limits(samples.resolved_proxy().spec) == {}
    assert build_limits(samples.resolved_proxy(**empty).spec) == {}
    assert build_limits(samples.resolved_proxy(limits={"queue": {"maxRequests": 0}}).spec) == {
        "NIMWAY_QUEUE_REQUESTS_MAX": "0"
    }


def test_the_limits_of_the_api_are_told_with_the_proxys_defaults() -> None:
    settings = Settings()
    for text, value in (
        ("10000", settings.connections_max),
        ("64 MiB", settings.body_bytes_max // MIB),
        ("256 MiB", settings.bodies_bytes_max // MIB),
        ("64 KiB", settings.head_bytes_max // KIB),
        ("16 KiB", settings.head_line_bytes_max // KIB),
        ("100 if", settings.head_fields_max),
        ("1000 requests", settings.queue_requests_max),
        ("50 s", settings.queue_wait_max_s),
        ("10 if", settings.timeout_head_s),
        ("75 if", settings.timeout_client_idle_s),
    ):
        told = f"{ProxyLimits.model_json_schema()}{ProxyTimeouts.model_json_schema()}"
        assert text in told
        assert text.startswith(f"{value:g}")


def test_the_users_variable_wins_over_ours_and_keeps_its_place() -> None:
    env = build_env(samples.resolved(env=[{"name": "NIM_LOG_LEVEL", "value": "DEBUG"}]).spec)
    assert [each["value"] for each in env if each["name"] == "NIM_LOG_LEVEL"] == ["DEBUG"]


def test_what_we_render_is_not_expanded_by_the_kubelet() -> None:
    spec = samples.resolved().spec.model_copy(update={"model": "$(NGC_API_KEY)"})
    env = {each["name"]: each.get("value") for each in build_env(spec)}
    assert env["NIM_SERVED_MODEL_NAME"] == "$$(NGC_API_KEY)"


@pytest.mark.parametrize(
    "spec",
    [
        {"replicas": 5},
        {"aliases": ["other"]},
        {"rollout": {"maxSurge": 0, "maxUnavailable": 1}},
        {"service": {"annotations": {"a": "b"}}},
        {"queueName": "team-a"},
        {"metrics": {"serviceMonitor": {}}},
        {"storage": {"pvc": {"size": "10Gi", "reclaim": "Delete"}}},
    ],
)
def test_what_does_not_concern_the_pod_leaves_its_template_alone(spec: dict[str, Any]) -> None:
    base: dict[str, Any] = {"storage": {"pvc": {"size": "10Gi"}}} if "storage" in spec else {}
    before, after = samples.resolved(**base), samples.resolved(**spec)
    assert build_template(before) == build_template(after)
    assert before.intent == after.intent


@pytest.mark.parametrize(
    "spec",
    [
        {"image": "nvcr.io/nim/x:2"},
        {"gpus": 2},
        {"env": [{"name": "A", "value": "1"}]},
        {"labels": {"a": "b"}},
        {"storage": {"pvc": {"size": "10Gi"}}},
        {"drain": {"seconds": 10}},
    ],
)
def test_what_concerns_the_pod_changes_the_intent(spec: dict[str, Any]) -> None:
    assert samples.resolved().intent != samples.resolved(**spec).intent


def _applied(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a Deployment as the server holds it after our apply: all fields are ours."""

    def owned(value: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return {f"f:{key}": owned(item) for key, item in value.items()}
        return {}

    fields = {key: value for key, value in manifest.items() if key not in {"apiVersion", "kind"}}
    entry = {"manager": "nimway", "operation": "Apply", "fieldsV1": owned(fields)}
    return {**manifest, "metadata": {**manifest["metadata"], "managedFields": [entry]}}


def test_a_running_template_is_kept_when_a_newer_operator_would_render_another() -> None:
    model = samples.resolved()
    old = build_deployment(model, None)
    old["spec"]["template"]["spec"]["containers"][0]["env"].append({"name": "OLD", "value": "1"})
    live = _applied(_rehashed(old))
    kept = build_deployment(model, live)
    assert kept["spec"]["template"] == old["spec"]["template"]
    assert kept["metadata"]["annotations"] == live["metadata"]["annotations"]


def test_a_changed_intent_renders_anew() -> None:
    live = _applied(build_deployment(samples.resolved(), None))
    changed = samples.resolved(gpus=4)
    assert build_deployment(changed, live) == build_deployment(changed, None)


def _owned(live: dict[str, Any], *path: str) -> dict[str, Any]:
    """Return the node of our own fields below `path`."""
    [entry] = live["metadata"]["managedFields"]
    node: dict[str, Any] = entry["fieldsV1"]
    for part in path:
        node = node[f"f:{part}"]
    return node


def test_a_template_that_was_tampered_with_is_rendered_anew() -> None:
    model = samples.resolved()
    old = build_deployment(model, None)
    old["spec"]["template"]["spec"]["hostNetwork"] = False
    live = _applied(_rehashed(old))
    live["spec"]["template"]["spec"]["hostNetwork"] = True
    del _owned(live, "spec", "template", "spec")["f:hostNetwork"]
    assert build_deployment(model, live) == build_deployment(model, None)


def _admitted(manifest: dict[str, Any], image: str) -> dict[str, Any]:
    """Return a Deployment as the server holds it where a webhook replaces the image."""
    live = _applied(copy.deepcopy(manifest))
    live["spec"]["template"]["spec"]["containers"][0]["image"] = image
    return live


def test_what_admission_made_of_the_template_is_noted_once_and_kept() -> None:
    model = samples.resolved()
    old = build_deployment(model, None)
    old["spec"]["template"]["spec"]["containers"][0]["env"].append({"name": "OLD", "value": "1"})
    before = _admitted(_rehashed(old), "mirror/nim:1")
    renders_old = copy.deepcopy(old["spec"]["template"])
    note = admitted_digest(renders_old, content_hash(renders_old), before)
    assert note == content_hash(before["spec"]["template"])
    noted = copy.deepcopy(old)
    noted["metadata"]["annotations"][ADMITTED_ANNOTATION] = note
    live = _admitted(noted, "mirror/nim:1")
    again = _admitted(noted, "mirror/nim:2")
    assert admitted_digest(renders_old, content_hash(renders_old), again) == note, (
        "or it never ends"
    )
    kept = build_deployment(model, live)
    assert kept["spec"]["template"] == live["spec"]["template"]
    annotations = kept["metadata"]["annotations"]
    assert annotations[TEMPLATE_ANNOTATION] == note
    assert ADMITTED_ANNOTATION not in annotations, "it is what is rendered from now on"
    after = _admitted(kept, "mirror/nim:1")
    assert build_deployment(model, after) == kept


def test_nothing_is_noted_where_admission_changes_nothing_or_somebody_else_did() -> None:
    model = samples.resolved()
    template = build_template(model)
    made = build_deployment(model, None)
    digest = content_hash(template)
    assert admitted_digest(template, digest, None) is None
    assert admitted_digest(template, digest, _applied(made)) is None
    assert admitted_digest(template, "another", _admitted(made, "mirror/nim:1")) is None
    taken = _admitted(made, "evil")
    del _owned(taken, "spec", "template", "spec")["f:containers"]
    assert admitted_digest(template, digest, taken) is None


def _rehashed(manifest: dict[str, Any]) -> dict[str, Any]:
    manifest["metadata"]["annotations"][TEMPLATE_ANNOTATION] = content_hash(
        manifest["spec"]["template"]
    )
    return manifest


@pytest.mark.parametrize(
    ("given_", "held"),
    [
        ("1000m", "1"),
        ("0.5", "500m"),
        ("0.5Gi", "512Mi"),
        ("1024Mi", "1Gi"),
        ("1Gi", "1Gi"),
        ("1500M", "1500M"),
        ("1000M", "1G"),
        ("1e3", "1e3"),
        ("10e3", "10e3"),
        ("0", "0"),
        (8, "8"),
        ("512", "512"),
        ("2048", "2048"),
        ("0.1Gi", "107374182400m"),
        ("100Ki", "100Ki"),
        ("no quantity", "no quantity"),
    ],
)
def test_a_quantity_is_rendered_as_the_api_server_holds_it(given_: str | int, held: str) -> None:
    assert canonical(given_) == held


@pytest.mark.parametrize("name", ["llama", "a", "a-b-1"])
def test_a_dns_label_is_its_own_slug(name: str) -> None:
    assert names.slug(name) == name


@given(st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?", fullmatch=True))
def test_every_derived_name_is_a_dns_1035_label_within_its_limit(name: str) -> None:
    derived = [
        names.slug(name),
        names.claim_name(name),
        names.proxy_name(name),
        names.routes_name(name),
        names.endpoints_binding_name("namespace", name),
    ]
    for each in derived:
        assert len(each) <= names.LABEL_CHARS_MAX
        assert each[0].isalpha()
        assert each.replace("-", "").isalnum()
        assert not each.endswith("-")


def test_names_that_differ_only_in_what_a_slug_drops_stay_apart() -> None:
    assert len({names.slug(name) for name in ("a.b", "a-b", "1a.b", "a.b" * 30, "a.b" * 31)}) == 5
