"""The metadata that every child carries: names, labels, and the reference to its owner."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from nimway.control.desired import names
from nimway.control.desired.quantity import canonical
from nimway.control.kinds import MODEL, Kind, Manifest
from nimway.control.resolve import Owner

LEFT_BY_ARGO_CD = {
    "argocd.argoproj.io/compare-options": "IgnoreExtraneous",
    "argocd.argoproj.io/sync-options": "Prune=false,Delete=false",
}
"""Annotations of a child that no owner reference protects.

Until 3.0 Argo CD takes the label `app.kubernetes.io/instance` for the name of an Application (its
"Resource Tracking"), so one named like a model would prune the claim that holds the weights.
"""


def metadata(
    owner: Owner,
    name: str,
    *,
    component: str = "",
    user_labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    owned: bool = True,
    namespace: str | None = None,
) -> Manifest:
    """Return a child's metadata; our labels win over the user's.

    A child that is not `owned`, or lives in another namespace, gets no owner reference: the garbage
    collector would delete it at once, or with an owner it shall survive. Argo CD is told to leave
    it.
    """
    component = component or component_of(owner)
    ours = names.labels(component, namespace=owner.namespace, name=owner.name, uid=owner.uid)
    result: Manifest = {
        "name": name,
        "namespace": namespace or owner.namespace,
        "labels": {**(user_labels or {}), **ours},
    }
    is_owned = owned and result["namespace"] == owner.namespace
    said = {**(annotations or {}), **({} if is_owned else LEFT_BY_ARGO_CD)}
    if said:
        result["annotations"] = said
    if is_owned:
        result["ownerReferences"] = [owner_reference(owner)]
    return result


def owner_reference(owner: Owner) -> Manifest:
    """Return the controller reference, by which the garbage collector finds the child."""
    return {
        "apiVersion": owner.kind.api_version,
        "kind": owner.kind.kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def component_of(owner: Owner) -> str:
    """Return the component label's value."""
    return names.MODEL_COMPONENT if owner.kind == MODEL else names.PROXY_COMPONENT


def child(kind: Kind, meta: Manifest, **body: Any) -> Manifest:
    """Return a manifest of `kind`."""
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta, **body}


def dump(value: BaseModel) -> Any:
    """Return an API type as JSON, without what was left out."""
    return value.model_dump(mode="json", by_alias=True, exclude_none=True)


def dump_list(values: "list[Any] | None") -> list[Any]:
    """Return a list of API types as JSON."""
    return [dump(value) for value in values or ()]


def quantities(values: Mapping[str, str | int] | None) -> dict[str, str]:
    """Return a resource list with canonical quantities."""
    return {name: canonical(value) for name, value in (values or {}).items()}


def given(**fields: Any) -> Manifest:
    """Return the fields that have a value: neither None nor empty."""
    return {key: value for key, value in fields.items() if value not in (None, "", [], {})}
