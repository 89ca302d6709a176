"""Which namespaces a NIMProxy serves, and what is kept of a Namespace."""

from typing import Any

import pytest

from nimway.control.kinds import NAMESPACE
from nimway.control.resolve import NamespaceNotAllowedError, resolve_proxy
from nimway.control.store import Change, Store
from tests.control import samples

TRUSTED = frozenset({"nimway-system"})


@pytest.mark.parametrize(
    ("spec", "namespaces"),
    [
        ({}, ("nimway-system",)),
        ({"namespaces": ["b", "a"]}, ("b", "a")),
        ({"namespaces": ["*"]}, None),
        ({"namespaceSelector": {"matchLabels": {"team": "a"}}}, None),
        ({"namespaceSelector": {}}, None),
    ],
)
def test_a_trusted_proxy_serves_what_it_says(
    spec: dict[str, Any], namespaces: tuple[str, ...] | None
) -> None:
    assert resolve_proxy(samples.proxy(**spec), trusted=TRUSTED).namespaces == namespaces


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"namespaces": ["*"]}, "namespaces"),
        ({"namespaces": ["team", "other"]}, "namespaces"),
        ({"namespaceSelector": {}}, "namespaceSelector"),
        ({"namespaceSelector": {"matchLabels": {"team": "a"}}}, "namespaceSelector"),
    ],
)
def test_another_one_serves_its_own_namespace_only(spec: dict[str, Any], field: str) -> None:
    own = samples.proxy(namespace="team", namespaces=["team"])
    assert resolve_proxy(own, trusted=TRUSTED).namespaces == ("team",)
    told = rf"spec\.{field}: .* from: nimway-system"
    with pytest.raises(NamespaceNotAllowedError, match=told) as caught:
        resolve_proxy(samples.proxy(namespace="team", **spec), trusted=TRUSTED)
    confined = caught.value.confined
    assert confined.namespaces == ("team",)
    assert confined.spec.namespace_selector is None


def _namespace(version: int, **labels: str) -> dict[str, Any]:
    metadata = {"name": "a", "uid": "1", "resourceVersion": str(version), "labels": labels}
    return {"metadata": metadata, "status": {"phase": "Active"}}


def test_only_other_labels_of_a_namespace_are_a_change() -> None:
    store = Store()
    assert store.put(NAMESPACE, _namespace(1, team="a")) is Change.CONTENT
    assert store.put(NAMESPACE, _namespace(2, team="a")) is not Change.CONTENT
    assert store.put(NAMESPACE, _namespace(3, team="b")) is Change.CONTENT
    kept = store.get(NAMESPACE, "", "a")
    assert kept is not None
    assert kept["metadata"]["labels"] == {"team": "b"}


def test_a_namespace_is_nobodys_child_whatever_its_labels_say() -> None:
    store = Store()
    store.put(NAMESPACE, _namespace(1, **{"nimway.dev/owner-uid": samples.PROXY_UID}))
    assert store.child_refs(samples.PROXY_UID) == frozenset()
