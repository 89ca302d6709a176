"""From a declared object to a resolved one: parsed, complete, and valid, or refused by name.

Owns what the schema cannot say and what the rest need not ask again. What has come through here
can be rendered without a further check. Pure.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError

from nimway.api.nimmodel import Autoscaling, NIMModelSpec
from nimway.api.nimproxy import NIMProxySpec
from nimway.control.kinds import MODEL, PROXY, Kind, Manifest

RERENDER_ANNOTATION = "nimway.dev/rerender"
"""On a NIMModel: a new value has its pods rendered anew by the operator's current version."""

S = TypeVar("S", bound=BaseModel)

_NOT_IN_POD: dict[str, Any] = {
    "replicas": True,
    "autoscaling": True,
    "rollout": True,
    "aliases": True,
    "adapters": True,
    "routing": True,
    "service": True,
    "metrics": True,
    "queue_name": True,
    "storage": {
        "pvc": {"size": True, "storage_class_name": True, "access_mode": True, "reclaim": True}
    },
}


class InvalidSpecError(Exception):
    """The object cannot work as it is declared; the text names the field and what is allowed."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The object for which children are made."""

    kind: Kind
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A valid NIMModel. `intent` is a hash of all that its user said about the pod.

    `replicas` is the count to have: the declared one, within the bounds of `autoscaling`.
    """

    owner: Owner
    generation: int
    spec: NIMModelSpec
    intent: str

    @property
    def replicas(self) -> int:
        """The count of pods to have."""
        return replicas_within(self.spec.replicas, self.spec.autoscaling)


@dataclass(frozen=True, slots=True)
class ResolvedProxy:
    """A valid NIMProxy. `namespaces` are those it serves, in order.

    None stands for all, or for those that `spec.namespace_selector` chooses.
    """

    owner: Owner
    generation: int
    spec: NIMProxySpec
    namespaces: tuple[str, ...] | None


class NamespaceNotAllowedError(InvalidSpecError):
    """A NIMProxy wants to serve namespaces that it may not reach into.

    `confined` is that proxy within its own namespace: what may be left of one that once could.
    """

    def __init__(self, text: str, confined: ResolvedProxy) -> None:
        super().__init__(text)
        self.confined = confined


def resolve_model(manifest: Manifest) -> ResolvedModel:
    """Parse and check a NIMModel.

    Raises:
        InvalidSpecError: the spec cannot work.
    """
    spec = _parse(NIMModelSpec, manifest)
    metadata = manifest["metadata"]
    said = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=_NOT_IN_POD)
    rerender = metadata.get("annotations", {}).get(RERENDER_ANNOTATION)
    return ResolvedModel(
        owner=owner_of(MODEL, manifest),
        generation=metadata["generation"],
        spec=spec,
        intent=content_hash([said, rerender]),
    )


def replicas_within(replicas: int, autoscaling: Autoscaling | None) -> int:
    """Return `replicas`, within the bounds of `autoscaling` if there is any."""
    if autoscaling is None:
        return replicas
    return max(autoscaling.min_replicas, min(replicas, autoscaling.max_replicas))


def resolve_proxy(manifest: Manifest, *, trusted: frozenset[str]) -> ResolvedProxy:
    """Parse and check a NIMProxy; only one in a `trusted` namespace may serve other namespaces.

    Raises:
        InvalidSpecError: the spec cannot work.
        NamespaceNotAllowedError: it reaches further than it may.
    """
    spec = _parse(NIMProxySpec, manifest)
    owner = owner_of(PROXY, manifest)
    namespaces: tuple[str, ...] | None = tuple(spec.namespaces or (owner.namespace,))
    if namespaces == ("*",) or spec.namespace_selector is not None:
        namespaces = None
    generation = manifest["metadata"]["generation"]
    reaches_out = namespaces is None or set(namespaces) != {owner.namespace}
    if reaches_out and owner.namespace not in trusted:
        field = "namespaces" if spec.namespaces else "namespaceSelector"
        within = spec.model_copy(update={"namespaces": None, "namespace_selector": None})
        raise NamespaceNotAllowedError(
            f"spec.{field}: a NIMProxy in namespace {owner.namespace} may serve only that "
            f"namespace; serving others is allowed from: {', '.join(sorted(trusted)) or 'nowhere'}",
            ResolvedProxy(owner, generation, within, (owner.namespace,)),
        )
    return ResolvedProxy(owner, generation, spec, namespaces)


def owner_of(kind: Kind, manifest: Manifest) -> Owner:
    """Return the identity of a NIMModel or NIMProxy."""
    metadata = manifest["metadata"]
    return Owner(kind, metadata["namespace"], metadata["name"], metadata["uid"])


def content_hash(value: Any) -> str:
    """Return a short hash of JSON, independent of the order of keys."""
    text = msgspec.json.encode(value, order="deterministic")
    return hashlib.sha256(text).hexdigest()[:16]


def _parse(model: type[S], manifest: Manifest) -> S:
    try:
        return model.model_validate(manifest.get("spec", {}))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(part) for part in ("spec", *first["loc"]))
        raise InvalidSpecError(f"{path}: {first['msg']}") from error
