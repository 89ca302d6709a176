"""The last seen state of every object that the operator watches.

Owns a compact copy of each object, fed by watch events, by the answers to our own writes, and by
fresh lists, which also drop ghosts: objects whose deletion a broken watch did not report. Copies
are kept as JSON bytes, an eighth of the size of dictionaries. Nothing here is trusted for a write:
each write carries the uid and resourceVersion of the copy it was decided from.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from nimway.control.desired.names import OWNER_LABEL
from nimway.control.facts import claims_of
from nimway.control.kinds import (
    CHILDREN,
    DEPLOYMENT,
    FIELD_MANAGER,
    NAMESPACE,
    OPTIONAL,
    OWNERS,
    POD,
    Kind,
    Manifest,
    Ref,
)
from nimway.control.sleep import rounded_s, usual_s

TOMBSTONES_MAX = 10_000
"""How many deletions are remembered, so that a late answer does not bring an object back, and that
what is gone is not created again for an owner that is gone as well."""

_REVISION_ANNOTATION = "deployment.kubernetes.io/revision"
_HAS_GENERATION = frozenset({"NIMModel", "NIMProxy", "Deployment", "PodDisruptionBudget"})


class Change(Enum):
    """What an observation changed.

    Nothing, the status, in it the number of ready pods, or anything that somebody declared.
    """

    NONE = "none"
    STATUS = "status"
    READY = "ready"
    CONTENT = "content"


@dataclass(slots=True)
class _Entry:
    uid: str
    version: str
    owner: str
    content: int
    owned: int
    ready: int
    raw: bytes
    settled: str = ""
    """Hash of the declared manifest that this state was found to agree with."""


class Store:
    """Objects by kind, namespace and name, and children by the uid of their owner."""

    def __init__(self) -> None:
        self._entries: dict[Ref, _Entry] = {}
        self._refs: dict[str, dict[Ref, None]] = {}
        self._children: dict[str, set[Ref]] = {}
        self._owners: dict[str, Ref] = {}
        self._tombstones: OrderedDict[str, int] = OrderedDict()
        self._lost: OrderedDict[tuple[str, Ref], None] = OrderedDict()

    def put(self, kind: Kind, manifest: Manifest) -> Change:
        """Remember `manifest` unless a newer state of it is known, and tell what it changed."""
        ref = ref_of(kind, manifest)
        metadata = manifest["metadata"]
        known = self._entries.get(ref)
        if known is not None and not _is_newer(metadata, known):
            return Change.NONE
        if _number(metadata["resourceVersion"]) <= self._tombstones.get(metadata["uid"], -1):
            return Change.NONE  # the answer to a write that came after the news of the deletion
        trimmed = _trim(kind, manifest)
        entry = _Entry(
            uid=metadata["uid"],
            version=metadata["resourceVersion"],
            owner=owner_uid(kind, manifest),
            content=_content_hash(kind, trimmed),
            owned=_owned_hash(kind, trimmed),
            ready=_ready(kind, trimmed),
            raw=msgspec.json.encode(trimmed),
        )
        if known is not None:
            self._unindex(ref, known)
            if (known.uid, known.content, known.owned) == (entry.uid, entry.content, entry.owned):
                entry.settled = known.settled  # only the status differs
        self._entries[ref] = entry
        self._refs.setdefault(ref.kind, {})[ref] = None
        if kind in OWNERS:
            self._owners[entry.uid] = ref
        elif entry.owner:
            self._children.setdefault(entry.owner, set()).add(ref)
        if known is None or known.uid != entry.uid or known.content != entry.content:
            return Change.CONTENT
        return Change.STATUS if known.ready == entry.ready else Change.READY

    def remove(self, kind: Kind, manifest: Manifest) -> bool:
        """Forget the object if it is the one that was deleted; tell whether it was known.

        `manifest` is its last state, with the version of the deletion.
        """
        ref, metadata = ref_of(kind, manifest), manifest["metadata"]
        self._tombstones[metadata["uid"]] = _number(metadata["resourceVersion"])
        if len(self._tombstones) > TOMBSTONES_MAX:
            self._tombstones.popitem(last=False)
        known = self._entries.get(ref)
        if known is None or known.uid != metadata["uid"]:
            return False
        self._forget(ref, known)
        return True

    def prune(
        self, kind: Kind, namespaces: frozenset[str] | None, seen: set[Ref], version: str
    ) -> list[tuple[Ref, str]]:
        """Forget what a fresh list of `version` did not hold; return it as (ref, owner's uid).

        What is newer than the list stays: a watch event brought it while the list was on its way.
        """
        gone = [
            (ref, self._entries[ref])
            for ref in self._refs.get(kind.kind, ())
            if ref not in seen
            and (namespaces is None or ref.namespace in namespaces)
            and _number(self._entries[ref].version) <= _number(version)
        ]
        for ref, entry in gone:
            self._forget(ref, entry)
        return [(ref, entry.owner) for ref, entry in gone]

    def version(self, ref: Ref) -> str:
        """Return the version of what is known under `ref`, "" if there is none."""
        known = self._entries.get(ref)
        return known.version if known is not None else ""

    def holds(self, ref: Ref, uid: str, version: str) -> bool:
        """Tell whether this very state of an object is known."""
        known = self._entries.get(ref)
        return known is not None and known.uid == uid and known.version == version

    def was_lost(self, ref: Ref, owner: str) -> bool:
        """Tell whether the owner with this uid had such a child, and it went."""
        return (owner, ref) in self._lost

    def settle(self, ref: Ref, version: str, digest: str) -> None:
        """Note that `version` of an object agrees with the declared manifest of this hash."""
        known = self._entries.get(ref)
        if known is not None and known.version == version:
            known.settled = digest

    def is_settled(self, ref: Ref, digest: str) -> bool:
        """Tell whether what is known agrees with the declared manifest of this hash."""
        known = self._entries.get(ref)
        return known is not None and known.settled == digest

    def get(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """Return a copy of one object, trimmed to what reconciling needs."""
        entry = self._entries.get(Ref(kind.kind, namespace, name))
        return msgspec.json.decode(entry.raw) if entry is not None else None

    def children(self, uid: str, *kinds: Kind) -> Iterator[tuple[Kind, Manifest]]:
        """Yield copies of the children of one owner, ordered by kind, namespace and name."""
        wanted = {kind.kind: kind for kind in kinds or (*CHILDREN, POD)}
        for ref in sorted(self._children.get(uid, ())):
            if ref.kind in wanted:
                yield wanted[ref.kind], msgspec.json.decode(self._entries[ref].raw)

    def child_refs(self, uid: str) -> frozenset[Ref]:
        """Return the children of one owner, pods included."""
        return frozenset(self._children.get(uid, ()))

    def refs(self, kind: Kind) -> list[Ref]:
        """Return what is known of one kind."""
        return list(self._refs.get(kind.kind, ()))

    def owner_of(self, uid: str) -> Ref | None:
        """Return the NIMModel or NIMProxy that has this uid."""
        return self._owners.get(uid)

    def living(self, uid: str) -> Ref | None:
        """Return the NIMModel or NIMProxy that has this uid, unless it is gone or going."""
        ref = self._owners.get(uid)
        entry = self._entries.get(ref) if ref is not None else None
        if entry is None or entry.uid != uid:
            return None  # another one took its name
        going = "deletionTimestamp" in msgspec.json.decode(entry.raw)["metadata"]
        return None if going else ref

    def owner_uid(self, ref: Ref) -> str:
        """Return the uid of the owner of what is known under `ref`, "" if there is none."""
        entry = self._entries.get(ref)
        return entry.owner if entry is not None else ""

    def __contains__(self, ref: Ref) -> bool:
        return ref in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def _forget(self, ref: Ref, entry: _Entry) -> None:
        del self._entries[ref]
        del self._refs[ref.kind][ref]
        self._unindex(ref, entry)
        self._owners.pop(entry.uid, None)
        if entry.owner and ref.kind != POD.kind:
            self._lost[entry.owner, ref] = None
            if len(self._lost) > TOMBSTONES_MAX:
                self._lost.popitem(last=False)

    def _unindex(self, ref: Ref, entry: _Entry) -> None:
        siblings = self._children.get(entry.owner)
        if siblings is not None:
            siblings.discard(ref)
            if not siblings:
                del self._children[entry.owner]


def ref_of(kind: Kind, manifest: Manifest) -> Ref:
    """Return the key of an object."""
    metadata = manifest["metadata"]
    return Ref(kind.kind, metadata.get("namespace", ""), metadata["name"])


def owner_uid(kind: Kind, manifest: Manifest) -> str:
    """Return the uid of the owner: the label, else the controller reference, else ""."""
    if kind in (*OWNERS, NAMESPACE):
        return ""
    metadata = manifest["metadata"]
    label = metadata.get("labels", {}).get(OWNER_LABEL)
    if label:
        return str(label)
    for reference in metadata.get("ownerReferences", ()):
        if reference.get("controller"):
            return str(reference["uid"])
    return ""


def _is_newer(metadata: Manifest, known: _Entry) -> bool:
    if metadata["uid"] != known.uid:
        return _number(metadata["resourceVersion"]) > _number(known.version)
    return metadata["resourceVersion"] != known.version and _number(
        metadata["resourceVersion"]
    ) >= _number(known.version)


def _number(version: str) -> int:
    """Versions are comparable numbers since Kubernetes 1.35, and in practice always were."""
    return int(version) if version.isdigit() else 0


def _trim(kind: Kind, manifest: Manifest) -> Manifest:
    metadata = dict(manifest["metadata"])
    managed = metadata.pop("managedFields", ())
    if kind == POD:
        return _trim_pod(metadata, manifest)
    if kind == NAMESPACE:
        return {"metadata": {key: metadata[key] for key in _NAMESPACE_METADATA if key in metadata}}
    if kind in (*CHILDREN, *OPTIONAL):
        metadata["managedFields"] = [
            entry
            for entry in managed
            if entry.get("manager") == FIELD_MANAGER
            and entry.get("operation") == "Apply"
            and not entry.get("subresource")
        ]
    return {**manifest, "metadata": metadata}


_NAMESPACE_METADATA = ("name", "uid", "resourceVersion", "labels", "deletionTimestamp")
_POD_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "labels",
    "ownerReferences",
    "deletionTimestamp",
)
_POD_SPEC = ("nodeName", "schedulingGates")
_POD_STATUS = (
    "phase",
    "reason",
    "message",
    "podIP",
    "conditions",
    "containerStatuses",
    "initContainerStatuses",
)


def _trim_pod(metadata: Manifest, manifest: Manifest) -> Manifest:
    status = manifest.get("status", {})
    trimmed = {
        "metadata": {key: metadata[key] for key in _POD_METADATA if key in metadata},
        "status": {key: status[key] for key in _POD_STATUS if key in status},
    }
    spec = manifest.get("spec", {})
    kept = {key: spec[key] for key in _POD_SPEC if key in spec}
    if claims := claims_of(spec):
        volumes = [{"persistentVolumeClaim": {"claimName": claim}} for claim in claims]
        kept["volumes"] = volumes
    if kept:
        trimmed["spec"] = kept
    return trimmed


def _owned_hash(kind: Kind, trimmed: Manifest) -> int:
    """Hash which fields are ours."""
    if kind not in CHILDREN:
        return 0
    ours = [entry.get("fieldsV1") for entry in trimmed["metadata"]["managedFields"]]
    return hash(msgspec.json.encode(ours))


def _ready(kind: Kind, trimmed: Manifest) -> int:
    """Return how many pods of a Deployment are ready."""
    if kind != DEPLOYMENT:
        return 0
    ready: int = trimmed.get("status", {}).get("readyReplicas", 0)
    return ready


def _content_hash(kind: Kind, trimmed: Manifest) -> int:
    """Hash what somebody declared: not the status, nor what the API server counts."""
    metadata: dict[str, Any] = trimmed["metadata"]
    if kind == POD:
        return hash(metadata.get("deletionTimestamp"))
    annotations = dict(metadata.get("annotations", {}))
    annotations.pop(_REVISION_ANNOTATION, None)
    if kind.kind in _HAS_GENERATION:
        # How long a cold start takes is in the routes, so it counts as declared.
        body: Any = [metadata.get("generation"), rounded_s(usual_s(trimmed))]
    else:
        body = {key: value for key, value in trimmed.items() if key not in {"metadata", "status"}}
    declared = (
        body,
        annotations,
        metadata.get("labels"),
        metadata.get("ownerReferences"),
        metadata.get("deletionTimestamp"),
    )
    return hash(msgspec.json.encode(declared))
