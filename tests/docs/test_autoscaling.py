"""The examples for KEDA and HPAs name real fields, and metrics that the proxies have."""

import re
from typing import Any

import pytest

from nimway.api.nimmodel import Autoscaling
from nimway.control import autoscale
from nimway.proxy.exposition import METRICS
from tests.docs.pages import DOCS, manifests, table

PAGE = DOCS / "autoscaling.md"
EXAMPLES = [manifest for where, manifest in manifests() if where.startswith(f"{PAGE.name}:")]
SCALED_OBJECTS = [each for each in EXAMPLES if each["kind"] == "ScaledObject"]

SCALED_OBJECT_SPEC: dict[str, type] = {
    "scaleTargetRef": dict,
    "pollingInterval": int,
    "cooldownPeriod": int,
    "initialCooldownPeriod": int,
    "idleReplicaCount": int,
    "minReplicaCount": int,
    "maxReplicaCount": int,
    "fallback": dict,
    "advanced": dict,
    "triggers": list,
}
"""Fields of keda.sh/v1alpha1 ScaledObjectSpec and their types, after keda.sh/docs (2.17)."""

PROMETHEUS = {"serverAddress", "query", "threshold", "activationThreshold", "ignoreNullValues"}
"""What KEDA's Prometheus scaler takes, as far as it is used here; each value is a string."""


@pytest.mark.parametrize("manifest", SCALED_OBJECTS)
def test_keda_examples_have_kedas_fields(manifest: dict[str, Any]) -> None:
    spec = manifest["spec"]
    assert set(spec) <= set(SCALED_OBJECT_SPEC)
    assert {"scaleTargetRef", "triggers"} <= set(spec)
    assert all(isinstance(value, SCALED_OBJECT_SPEC[key]) for key, value in spec.items())
    assert set(spec["scaleTargetRef"]) == {"apiVersion", "kind", "name"}
    for trigger in spec["triggers"]:
        assert set(trigger) == {"type", "metadata"}
        assert trigger["type"] == "prometheus"
        assert {"serverAddress", "query", "threshold"} <= set(trigger["metadata"]) <= PROMETHEUS
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
        float(trigger["metadata"]["threshold"])


def test_the_page_has_an_example_for_keda_and_two_for_an_hpa() -> None:
    assert len(SCALED_OBJECTS) == 1
    assert sum(each["kind"] == "HorizontalPodAutoscaler" for each in EXAMPLES) == 2


def test_autoscalers_of_others_use_metrics_that_exist_and_what_wakes_counts_refused_ones() -> None:
    known = {each.name for each in METRICS}
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"\bnimway_proxy_\w+", text)) <= known
    queries = [
        trigger["metadata"]["query"]
        for each in SCALED_OBJECTS
        for trigger in each["spec"]["triggers"]
    ]
    assert any("nimway_proxy_demand_total" in query for query in queries)
    assert any("nimway_proxy_requests_queued" in query for query in queries)


def test_the_defaults_on_the_page_are_those_of_the_types() -> None:
    fields = {str(field.alias): field for field in Autoscaling.model_fields.values()}
    rows = {row[0].strip("`"): row[1] for row in table(PAGE, "The rules")}
    assert set(rows) == set(fields)
    for name, field in fields.items():
        assert rows[name] == ("" if field.is_required() else str(field.default))


def test_the_limits_on_the_page_are_those_of_the_rules() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    up_s, by = autoscale.UP_PERIOD_S, autoscale.UP_REPLICAS_MIN
    assert f"in {up_s:.0f} s at most to twice the count or by {by}" in text
    assert autoscale.DOWN_PERIOD_S == 60.0
    assert "in a minute at most by half" in text
