"""What to do about one child: nothing, create it, apply it again, wait for it, or leave it alone.

Pure. An ordered list of checks, each with a reason: the reason goes into the log, and where it is
not ours to change into a condition.
"""

from dataclasses import dataclass
from enum import Enum

from nimway.control import fields
from nimway.control.desired import names
from nimway.control.kinds import CLAIM, Kind, Manifest, Ref
from nimway.control.resolve import Owner, content_hash

APPLIED_ANNOTATION = "nimway.dev/applied"
"""Hash of the manifest that was applied; a field left out since then changes it."""


CLAIM_GOING = (
    "it is deleted as soon as no pod uses it, and made anew, empty; "
    "to have it now set spec.replicas to 0; leave its finalizer alone"
)
"""Of a claim in use; without its finalizer the volume would go from under the pod."""


class Action(Enum):
    """What to do about a child."""

    NONE = "none"
    CREATE = "create"
    APPLY = "apply"
    WAIT = "wait"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Plan:
    """An action and, in words, why; `fields` are those that somebody else changed."""

    action: Action
    reason: str
    fields: tuple[str, ...] = ()


def seal(desired: Manifest) -> Manifest:
    """Return `desired` with the hash of itself as an annotation."""
    metadata = desired["metadata"]
    annotations = {**metadata.get("annotations", {}), APPLIED_ANNOTATION: content_hash(desired)}
    return {**desired, "metadata": {**metadata, "annotations": annotations}}


def plan(
    kind: Kind, sealed: Manifest, live: Manifest | None, owner: Owner, *, rival: Ref | None = None
) -> Plan:
    """Compare a sealed manifest with the live object, which `rival` has if it is somebody."""
    if live is None:
        return Plan(Action.CREATE, "it does not exist")
    metadata = live["metadata"]
    if not is_ours(kind, live, owner):
        if rival is not None:
            return Plan(Action.FOREIGN, f"it belongs to {rival}")
        if controller_uid(live) is not None and metadata.get("labels", {}).get(names.OWNER_LABEL):
            return Plan(Action.WAIT, "it belongs to an older object of this name that is going")
        return Plan(Action.FOREIGN, "it exists and was not made for this object")
    if "deletionTimestamp" in metadata:
        return Plan(Action.WAIT, CLAIM_GOING if kind == CLAIM else "it is being deleted")
    wanted = sealed["metadata"]["annotations"][APPLIED_ANNOTATION]
    ours = fields.owned_fields(live)
    if metadata.get("annotations", {}).get(APPLIED_ANNOTATION) != wanted:
        note = {"metadata": {"annotations": {APPLIED_ANNOTATION: wanted}}}
        if ours is None or not fields.lost_fields(note, ours):
            return Plan(Action.APPLY, "the declared state changed")
    if ours is None:
        return Plan(Action.APPLY, "our field ownership is gone", ("metadata.managedFields",))
    if lost := fields.lost_fields(sealed, ours):
        return Plan(Action.APPLY, f"{lost[0]} was changed by someone else", tuple(lost))
    return Plan(Action.NONE, "it is as declared")


def is_ours(kind: Kind, live: Manifest, owner: Owner) -> bool:
    """Tell whether a child was made for this very object, or is a claim that it kept."""
    controller = controller_uid(live)
    if controller is not None:
        return controller == owner.uid
    labels = live["metadata"].get("labels", {})
    if labels.get(names.OWNER_LABEL) == owner.uid:
        return True
    kept = names.selector_labels(names.STORE_COMPONENT, owner.name)
    return kind == CLAIM and kept.items() <= labels.items()


def controller_uid(live: Manifest) -> str | None:
    """Return the uid of the object that controls this one, None if none does."""
    for reference in live["metadata"].get("ownerReferences", ()):
        if reference.get("controller"):
            return str(reference["uid"])
    return None
