from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nimway.control.desired import names
from nimway.control.desired.model import TEMPLATE_ANNOTATION, build_deployment, build_model
from nimway.control.desired.pod import build_env, build_template
from nimway.control.desired.proxy import build_rights, build_routes, build_workload
from nimway.control.desired.quantity import canonical
from nimway.control.resolve import content_hash
from nimway.control.routing import candidate, decide
from nimway.routes import decode
from tests.control import samples

Golden = Callable[[str, str], None]
CASES: dict[str, dict[str, Any]] = {
    "minimal": {},
    "maximal": samples.MAXIMAL,
    "cpu": {"gpus": 0, "drain": {"seconds": 0}, "storage": {"emptyDir": {"sizeLimit": "20Gi"}}},
    "existing-claim": {"storage": {"pvc": {"claimName": "weights"}, "readOnly": True}},
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
    golden(f"control/model-{case}.yaml", _yaml(children))


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
    golden(f"control/proxy-{case}.yaml", _yaml(children))


def test_the_routing_config_map_can_be_read_back() -> None:
    found = candidate(samples.model())
    assert found is not None
    decision = decide([found], None, None)
    manifest = build_routes(samples.resolved_proxy(), decision.table)
    assert decode(manifest["data"]) == decision.table


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


def test_a_template_that_was_tampered_with_is_rendered_anew() -> None:
    model = samples.resolved()
    live = _applied(build_deployment(model, None))
    live["spec"]["template"]["spec"]["containers"][0]["image"] = "evil"
    assert build_deployment(model, live) == build_deployment(model, None)


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
