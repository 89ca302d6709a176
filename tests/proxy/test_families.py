"""Services with two address families: each pod is in two slices, and is one endpoint."""

from typing import Any

import msgspec
import pytest

from nimway.proxy.endpoints import EndpointSlice, NamespaceEndpoints
from tests.proxy.test_tables import build_slice, ready_of


def family_slice(kind: str, *pods: tuple[str, str, bool]) -> EndpointSlice:
    """A slice of Service `a`: pods as address, uid and readiness."""
    endpoints: list[dict[str, Any]] = [
        {"addresses": [address], "conditions": {"ready": ready}, "targetRef": {"uid": uid}}
        for address, uid, ready in pods
    ]
    return msgspec.convert(
        {
            "metadata": {"name": f"a-{kind}", "labels": {"kubernetes.io/service-name": "a"}},
            "addressType": kind,
            "ports": [{"name": "http", "port": 8000}],
            "endpoints": endpoints,
        },
        EndpointSlice,
    )


V4 = family_slice("IPv4", ("10.0.0.1", "one", True), ("10.0.0.2", "two", True))
V6 = family_slice("IPv6", ("fd00::1", "one", True), ("fd00::2", "two", True))
BOTH = {"a": [("10.0.0.1", 8000), ("10.0.0.2", 8000)]}


@pytest.mark.parametrize("order", [(V4, V6), (V6, V4)])
def test_a_pod_with_two_families_counts_once(order: tuple[EndpointSlice, EndpointSlice]) -> None:
    endpoints = NamespaceEndpoints("ns")
    assert ready_of(endpoints.replace(list(order))) == BOTH
    one_by_one = NamespaceEndpoints("ns")
    for item in order:
        one_by_one.update(item, deleted=False)
    assert ready_of(one_by_one.snapshot()) == BOTH


def test_a_pod_that_is_not_ready_does_not_come_back_by_its_other_family() -> None:
    endpoints = NamespaceEndpoints("ns")
    endpoints.replace([V4, V6])
    item = family_slice("IPv4", ("10.0.0.1", "one", False), ("10.0.0.2", "two", True))
    assert ready_of(endpoints.update(item, deleted=False)) == {"a": [("10.0.0.2", 8000)]}


def test_pods_of_one_family_only_count_too() -> None:
    endpoints = NamespaceEndpoints("ns")
    assert ready_of(endpoints.replace([V6])) == {"a": [("fd00::1", 8000), ("fd00::2", 8000)]}
    old = family_slice("IPv4", ("10.0.0.1", "one", True))
    assert ready_of(endpoints.update(old, deleted=False)) == {
        "a": [("10.0.0.1", 8000), ("fd00::2", 8000)]
    }


def test_endpoints_without_a_pod_count_by_their_address() -> None:
    item = build_slice("s", "a", ("10.0.0.1", {}), ("10.0.0.2", {}))
    six = build_slice("t", "a", ("fd00::1", {}))
    six.addressType = "IPv6"
    changed = NamespaceEndpoints("ns").replace([item, six])
    assert ready_of(changed) == {"a": [("10.0.0.1", 8000), ("10.0.0.2", 8000), ("fd00::1", 8000)]}
