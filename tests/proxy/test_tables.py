"""What comes from Kubernetes: slices, tables, messages, and what a worker makes of them."""

import json
import subprocess
import sys

import msgspec
import pytest

from nimway.proxy import exposition
from nimway.proxy.catalog import Catalog
from nimway.proxy.endpoints import EndpointSlice, NamespaceEndpoints
from nimway.proxy.messages import (
    Counters,
    Endpoints,
    Framer,
    RouteEntry,
    ServiceEndpoints,
    Table,
    ToWorker,
    to_worker,
)
from nimway.proxy.messages import encode as encode_message
from nimway.proxy.metrics import DURATION_BUCKETS_S
from nimway.proxy.settings import Settings

SETTINGS = Settings()


def build_slice(
    name: str, service: str, *pods: tuple[str, dict[str, bool]], port: int = 8000
) -> EndpointSlice:
    return msgspec.convert(
        {
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4",
            "ports": [{"name": "metrics", "port": 1}, {"name": "http", "port": port}],
            "endpoints": [
                {"addresses": [address], "conditions": conditions} for address, conditions in pods
            ],
        },
        EndpointSlice,
    )


def ready_of(changed: list[ServiceEndpoints]) -> dict[str, list[tuple[str, int]]]:
    return {service.service: service.ready for service in changed}


@pytest.mark.parametrize(
    ("conditions", "kind"),
    [
        ({"ready": True, "serving": True, "terminating": False}, "ready"),
        ({}, "ready"),
        ({"ready": False, "serving": False, "terminating": False}, "starting"),
        ({"ready": False, "serving": True, "terminating": True}, "neither"),
        ({"ready": True, "terminating": True}, "neither"),
    ],
)
def test_a_pod_that_stays_is_ready_or_starting_and_one_that_goes_is_neither(
    conditions: dict[str, bool], kind: str
) -> None:
    address = ("10.0.0.1", 8000)
    endpoints = NamespaceEndpoints("ns")
    changed = endpoints.replace([build_slice("s1", "a", (address[0], conditions))])
    expected = {
        "ready": [ServiceEndpoints("ns", "a", [address])],
        "starting": [ServiceEndpoints("ns", "a", [], [address])],
        "neither": [],
    }
    assert changed == expected[kind]


def test_a_pod_that_one_slice_still_calls_unready_is_ready() -> None:
    unready = build_slice("s1", "a", ("10.0.0.1", {"ready": False}))
    endpoints = NamespaceEndpoints("ns")
    endpoints.replace([unready])
    changed = endpoints.update(build_slice("s2", "a", ("10.0.0.1", {})), deleted=False)
    assert changed == [ServiceEndpoints("ns", "a", [("10.0.0.1", 8000)])]


def test_the_slices_of_a_service_are_added_up() -> None:
    endpoints = NamespaceEndpoints("ns")
    endpoints.replace([build_slice("s1", "a", ("10.0.0.1", {}))])
    changed = endpoints.update(build_slice("s2", "a", ("10.0.0.2", {})), deleted=False)
    assert ready_of(changed) == {"a": [("10.0.0.1", 8000), ("10.0.0.2", 8000)]}
    changed = endpoints.update(build_slice("s1", "a"), deleted=True)
    assert ready_of(changed) == {"a": [("10.0.0.2", 8000)]}


def test_an_event_that_changes_nothing_is_told_to_nobody() -> None:
    endpoints = NamespaceEndpoints("ns")
    item = build_slice("s1", "a", ("10.0.0.1", {}))
    endpoints.replace([item])
    assert endpoints.update(item, deleted=False) == []
    assert endpoints.replace([item]) == []


def test_a_list_takes_away_what_a_missed_delete_left() -> None:
    endpoints = NamespaceEndpoints("ns")
    endpoints.replace([build_slice("s1", "a", ("10.0.0.1", {}))])
    assert ready_of(endpoints.replace([])) == {"a": []}


def test_a_slice_that_moves_to_another_service_leaves_the_first() -> None:
    endpoints = NamespaceEndpoints("ns")
    endpoints.replace([build_slice("s1", "a", ("10.0.0.1", {}))])
    changed = endpoints.update(build_slice("s1", "b", ("10.0.0.1", {})), deleted=False)
    assert ready_of(changed) == {"a": [], "b": [("10.0.0.1", 8000)]}


def test_a_slice_without_the_http_port_or_of_names_is_ignored() -> None:
    item = build_slice("s1", "a", ("10.0.0.1", {}))
    item.ports = None
    assert NamespaceEndpoints("ns").replace([item]) == []
    item = build_slice("s1", "a", ("example.org", {}))
    item.addressType = "FQDN"
    assert NamespaceEndpoints("ns").replace([item]) == []


def route(name: str, *aliases: str, model: str = "") -> RouteEntry:
    model = model or name
    return RouteEntry(f"ns/{name}", model, (model, *aliases), "ns", name, 1)


def test_a_model_that_stays_keeps_its_counters_over_a_swap() -> None:
    catalog = Catalog(SETTINGS)
    catalog.replace_routes("1", [route("a"), route("b")])
    catalog.replace_endpoints(ServiceEndpoints("ns", "a", [("10.0.0.1", 1)]))
    model = catalog.names["a"]
    model.in_flight = 3
    model.endpoints[0].outstanding = 3
    catalog.replace_routes("2", [route("a", "alias")])
    assert catalog.names["alias"] is model
    assert (model.in_flight, model.endpoints[0].outstanding) == (3, 3)
    assert set(catalog.names) == {"a", "alias"}
    assert catalog.revision == "2"


def test_an_endpoint_that_stays_keeps_its_counters() -> None:
    catalog = Catalog(SETTINGS)
    catalog.replace_routes("1", [route("a")])
    catalog.replace_endpoints(ServiceEndpoints("ns", "a", [("10.0.0.1", 1), ("10.0.0.2", 1)]))
    first, second = catalog.names["a"].endpoints
    gone = catalog.replace_endpoints(ServiceEndpoints("ns", "a", [("10.0.0.1", 1)]))
    assert gone == [second]
    assert not second.listed
    assert catalog.names["a"].endpoints == [first]


def test_endpoints_that_come_before_their_route_are_kept_for_it() -> None:
    catalog = Catalog(SETTINGS)
    catalog.replace_endpoints(ServiceEndpoints("ns", "a", [("10.0.0.1", 1)]))
    catalog.replace_routes("1", [route("a")])
    assert len(catalog.names["a"].endpoints) == 1


def test_a_forbidden_address_never_becomes_an_endpoint() -> None:
    catalog = Catalog(SETTINGS)
    catalog.replace_routes("1", [route("a")])
    addresses = [("127.0.0.1", 1), ("169.254.169.254", 80), ("::1", 1), ("10.0.0.1", 1)]
    catalog.replace_endpoints(ServiceEndpoints("ns", "a", addresses))
    assert [endpoint.address for endpoint in catalog.names["a"].endpoints] == ["10.0.0.1"]


def test_the_list_of_models_names_aliases_with_their_root() -> None:
    catalog = Catalog(SETTINGS)
    catalog.replace_routes("1", [route("a", "alias", model="org/a")])
    cards = json.loads(catalog.listing)["data"]
    assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
        ("alias", "org/a", None),
        ("org/a", "org/a", None),
    ]
    card = json.loads(catalog.encode_card("org/a") or b"{}")
    assert card == {
        "id": "org/a",
        "object": "model",
        "created": 1,
        "owned_by": "nimway",
        "root": "org/a",
        "parent": None,
    }
    assert catalog.encode_card("b") is None


def test_messages_survive_any_split() -> None:
    messages: list[ToWorker] = [
        Table("r", [route("a", "b")]),
        Endpoints([ServiceEndpoints("ns", "a", [("10.0.0.1", 1)])]),
    ]
    data = b"".join(encode_message(message) for message in messages)
    for size in (1, 3, len(data)):
        framer = Framer()
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        frames = [frame for part in parts for frame in framer.feed(part)]
        assert [to_worker.decode(frame) for frame in frames] == messages


def test_a_frame_without_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        list(Framer().feed(b"\xff\xff\xff\xff"))


def test_the_metrics_of_two_workers_are_added_and_named() -> None:
    report = Counters(
        1,
        {
            "requests": [(("m", "/v1/completions", "200"), [2])],
            "durations": [(("m", "chat", ""), [1.0] * (len(DURATION_BUCKETS_S) + 1) + [7.5])],
            "retries": [((), [1])],
        },
    )
    text = exposition.encode_text(exposition.add_up([report, report])).decode()
    assert 'nimway_proxy_requests_total{model="m",path="/v1/completions",status="200"} 4\n' in text
    assert "nimway_proxy_retries_total 2\n" in text
    name = "gen_ai_server_request_duration_seconds"
    labels = 'gen_ai_request_model="m",gen_ai_operation_name="chat",error_type=""'
    assert f'{name}_bucket{{{labels},le="+Inf"}} 30\n' in text
    assert f"{name}_sum{{{labels}}} 15\n" in text
    assert f"{name}_count{{{labels}}} 30\n" in text


def test_a_label_s_value_cannot_break_out_of_its_quotes() -> None:
    text = exposition.encode_text({"in_flight": {('a"b\\c\nd',): [1]}}).decode()
    assert '{model="a\\"b\\\\c\\nd"} 1' in text


def test_every_default_of_the_contract_is_a_setting() -> None:
    assert (SETTINGS.body_bytes_max, SETTINGS.bodies_bytes_max) == (64 * 2**20, 256 * 2**20)
    assert (SETTINGS.head_line_bytes_max, SETTINGS.head_fields_max) == (16 * 1024, 100)
    assert (SETTINGS.head_bytes_max, SETTINGS.timeout_head_s) == (64 * 1024, 10)
    assert (SETTINGS.timeout_client_idle_s, SETTINGS.timeout_upstream_idle_s) == (75, 3)
    assert (SETTINGS.timeout_connect_s, SETTINGS.timeout_first_byte_s) == (2, 600)
    assert (SETTINGS.timeout_idle_s, SETTINGS.timeout_total_s) == (300, 3600)
    assert (SETTINGS.connections_max, SETTINGS.retry_budget_ratio) == (10_000, 0.2)
    assert (SETTINGS.drain_s, SETTINGS.propagation_delay_s) == (600, 5)
    assert (SETTINGS.ejection_failures, SETTINGS.ejection_base_s) == (3, 5)


def test_a_worker_imports_no_client_of_kubernetes() -> None:
    program = "import sys, nimway.proxy.worker; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    roots = {name.partition(".")[0] for name in done.stdout.split()}
    assert not roots & {"kubernetes", "kopf", "pydantic", "click", "aiohttp"}
