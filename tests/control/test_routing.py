from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimway.api.kubernetes import LabelSelector
from nimway.control.routing import Candidate, Decision, candidate, changed_keys, decide, matches
from nimway.routes import Policy
from tests.control import samples


def _candidate(
    key: str, model: str, *aliases: str, created: str = "2026-11-01T00:00:00Z", uid: str = ""
) -> Candidate:
    namespace, _, name = key.partition("/")
    return Candidate(namespace, name, uid or key, created, model, aliases, {})


def _names(*candidates: Candidate, namespaces: tuple[str, ...] | None = None) -> dict[str, Any]:
    decision = decide(candidates, namespaces, None)
    return {key: route.names for key, route in decision.routes.items()}


def _lost(decision: Decision) -> dict[str, dict[str, str]]:
    return {
        key: {name: each.holder for name, each in lost.items()}
        for key, lost in decision.refused.items()
    }


def test_within_a_namespace_the_oldest_holds_a_name() -> None:
    old = _candidate("a/z", "m", created="2026-01-01T00:00:00Z")
    young = _candidate("a/a", "m", created="2026-02-01T00:00:00Z")
    assert _names(young, old) == {"a/z": ("m",)}
    assert _lost(decide([young, old], None, None)) == {"a/a": {"m": "a/z"}}


def test_of_the_same_second_the_lower_uid_holds_a_name() -> None:
    assert _names(_candidate("a/x", "m", uid="2"), _candidate("a/y", "m", uid="1")) == {
        "a/y": ("m",)
    }


def test_case_variants_are_one_name() -> None:
    old = _candidate("a/a", "Org/Model", created="2026-01-01T00:00:00Z")
    assert _names(old, _candidate("b/b", "org/model")) == {"a/a": ("Org/Model",)}


def test_losing_an_alias_does_not_unroute_the_model() -> None:
    old = _candidate("a/a", "one", "shared", created="2026-01-01T00:00:00Z")
    young = _candidate("a/b", "two", "shared")
    decision = decide([old, young], None, None)
    assert decision.routes["a/b"].names == ("two",)
    assert _lost(decision) == {"a/b": {"shared": "a/a"}}


def test_across_namespaces_the_proxys_order_decides_before_age() -> None:
    old = _candidate("b/b", "m", created="2026-01-01T00:00:00Z")
    young = _candidate("a/a", "m", created="2026-02-01T00:00:00Z")
    assert _names(old, young, namespaces=("a", "b")) == {"a/a": ("m",)}
    assert _names(old, young, namespaces=("b", "a")) == {"b/b": ("m",)}
    assert _names(old, young) == {"b/b": ("m",)}


def test_only_the_served_namespaces_are_in_the_table() -> None:
    assert _names(_candidate("a/a", "m"), _candidate("c/c", "n"), namespaces=("a",)) == {
        "a/a": ("m",)
    }


@pytest.mark.parametrize(
    ("probes", "path"),
    [
        ({}, "/v1/health/ready"),
        ({"startup": {"periodSeconds": 1}}, "/v1/health/ready"),
        ({"startup": {"path": "/up"}, "readiness": {"path": "/up"}}, "/up"),
        ({"startup": {"path": "/up"}}, ""),
        ({"readiness": {"path": "/up"}}, ""),
    ],
)
def test_the_route_has_the_path_that_makes_a_pod_ready(probes: dict[str, Any], path: str) -> None:
    model = samples.model(probes=probes)
    found = candidate(model)
    assert found is not None
    key = f"{model['metadata']['namespace']}/{model['metadata']['name']}"
    assert decide([found], None, None).routes[key].ready_path == path


def test_a_model_scaled_to_zero_stays_and_one_that_is_deleted_goes() -> None:
    assert candidate(samples.model(replicas=0)) is not None
    going = samples.model()
    going["metadata"]["deletionTimestamp"] = "2026-11-01T00:00:00Z"
    assert candidate(going) is None


def test_the_route_leads_to_the_slugs_service() -> None:
    decision = decide([_candidate("a/llama-3.1", "m")], None, None)
    assert decision.routes["a/llama-3.1"].service.startswith("llama-3-1-")


@given(
    st.lists(
        st.builds(
            lambda namespace, name, model, aliases, created: _candidate(
                f"{namespace}/{name}", model, *aliases, created=f"2026-01-01T00:00:0{created}Z"
            ),
            st.sampled_from("ab"),
            st.sampled_from("vwxyz"),
            st.sampled_from(["m", "M", "n"]),
            st.lists(st.sampled_from(["m", "M", "o", "O"]), max_size=2, unique=True),
            st.integers(0, 2),
        ),
        unique_by=lambda each: each.key,
    ),
    st.randoms(),
)
def test_no_name_has_two_holders_and_the_order_of_the_list_does_not_matter(
    candidates: list[Candidate], shuffler: Any
) -> None:
    decision = decide(candidates, None, None)
    holders: dict[str, str] = {}
    for key, route in decision.routes.items():
        for name in route.names:
            assert holders.setdefault(name.casefold(), key) == key
    shuffled = list(candidates)
    shuffler.shuffle(shuffled)
    assert decide(shuffled, None, None) == decision


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        ({}, {}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "1", "b": "2"}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "2"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]}, {"a": "1"}, True),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {}, True),
        (
            {"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]},
            {"a": "1"},
            False,
        ),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"a": ""}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {"a": ""}, False),
    ],
)
def test_selectors_follow_kubernetes(
    selector: dict[str, Any], labels: dict[str, str], *, expected: bool
) -> None:
    assert matches(LabelSelector.model_validate(selector), labels) is expected


def test_no_selector_selects_all() -> None:
    assert matches(None, {})


def test_changed_keys_sees_additions_removals_and_changes() -> None:
    assert changed_keys({"a": 1, "b": 2, "c": 3}, {"b": 2, "c": 4, "d": 5}) == {"a", "c", "d"}


def test_routing_settings_and_adapters_reach_the_table() -> None:
    routing = {
        "strategy": "PrefixHash",
        "timeouts": {"connectSeconds": 1, "firstByteSeconds": 2, "idleSeconds": 3},
        "maxConcurrency": 4,
        "queue": {"maxRequests": 5, "maxWaitSeconds": 6},
        "retries": 0,
        "apis": ["chat"],
    }
    spec = {"model": "m", "adapters": [{"name": "lora"}], "routing": routing}
    metadata = {
        "namespace": "a",
        "name": "b",
        "uid": "1",
        "creationTimestamp": "2026-11-01T00:00:00Z",
    }
    made = candidate({"metadata": metadata, "spec": spec})
    assert made is not None
    (route,) = decide([made], None, None).table.routes
    assert (route.names, route.adapters) == (("m",), ("lora",))
    assert route.policy == Policy(
        strategy="PrefixHash",
        timeout_connect_s=1,
        timeout_first_byte_s=2,
        timeout_idle_s=3,
        max_concurrency=4,
        queue_requests_max=5,
        queue_wait_max_s=6,
        retries=0,
        apis=("chat",),
    )
