"""What is remembered of served names: who was refused one, and for whom one is kept.

A name that another namespace held is not passed on when its holder disappears: a GitOps tool may
be about to apply the holder again. Two memories see to that. Who was refused stays refused until
its claim changes, as its own status says. And a name whose holder is gone is kept for the holder's
namespace for `HOLD_S`, as the routing ConfigMap says in the same write that takes the route away,
so that neither a crash nor a claim of just then finds the name free. Pure.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from nimway.control.clock import timestamp, unix_s
from nimway.control.kinds import Manifest

HOLD_S = 600
"""How long a name is kept for the namespace whose model had it."""

CLAIM_ANNOTATION = "nimway.dev/claim"
"""On a NIMModel: a new value claims its names anew, as a change of its spec does."""

RESERVED_ANNOTATION = "nimway.dev/reserved-names"
"""On the routing ConfigMap: names without a holder, kept for the namespace of the last one."""

ANNOTATION_BYTES_MAX = 64 << 10
"""All annotations of an object together may have 256 KiB; what does not fit, memory still knows."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A name that a model claims at a proxy and does not get.

    `holder` is the `namespace/name` of the model that has it or, if `gone`, had it last. `claim` is
    the claim that was refused. `until_s` (Unix seconds) says that the name is only kept for another
    namespace meanwhile.
    """

    proxy: str
    name: str
    holder: str
    claim: str = ""
    until_s: int | None = None
    gone: bool = False

    @property
    def text(self) -> str:
        """What to tell the user."""
        if not self.gone:
            return f"the name {self.name} is held by NIMModel {self.holder}"
        was = f"the name {self.name} was held by NIMModel {self.holder}"
        if self.until_s is not None:
            return (
                f"{was} and is kept for namespace {namespace_of(self.holder)} "
                f"until {_stamp(self.until_s)}"
            )
        return (
            f"{was} and is not passed on to another namespace: "
            f"change the spec or the annotation {CLAIM_ANNOTATION} to claim it anew"
        )


@dataclass(frozen=True, slots=True)
class Reservation:
    """A name without a holder. `claims` are those of models that were refused it before."""

    holder: str
    until_s: int
    claims: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Memory:
    """What an earlier decision of one proxy left behind; names are case-folded.

    `holders` are models by the name they had, `refused` refusals by model and name. It is not
    `complete` when it was read back from the routing ConfigMap, which has no `refused`.
    """

    holders: Mapping[str, str] = field(default_factory=dict)
    reservations: Mapping[str, Reservation] = field(default_factory=dict)
    refused: Mapping[str, Mapping[str, Refusal]] = field(default_factory=dict)
    complete: bool = False


NO_MEMORY = Memory()


def namespace_of(key: str) -> str:
    """Return the namespace of a `namespace/name`."""
    return key.partition("/")[0]


def claim_of(manifest: Manifest) -> str:
    """Return what tells a model's claim to its names from an earlier or a later one.

    `replicas` does not count: autoscalers write it, and would claim anew with each step.
    """
    metadata, spec = manifest["metadata"], manifest.get("spec", {})
    said = {key: value for key, value in spec.items() if key != "replicas"}
    anew = (metadata.get("annotations") or {}).get(CLAIM_ANNOTATION)
    content = msgspec.json.encode([metadata["uid"], said, anew], order="deterministic")
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def refusals_of(status: Manifest) -> tuple[Refusal, ...]:
    """Read `status.refusedNames`."""
    return tuple(
        Refusal(
            proxy=each["proxy"],
            name=each["name"],
            holder=each["holder"],
            claim=each["claim"],
            until_s=unix_s(each["until"]) if "until" in each else None,
        )
        for each in status.get("refusedNames") or ()
    )


def refused_names(refusals: Iterable[Refusal]) -> list[Manifest]:
    """Return `status.refusedNames`."""
    found = []
    for each in sorted(refusals, key=lambda each: (each.proxy, each.name)):
        entry = {
            "proxy": each.proxy,
            "name": each.name,
            "holder": each.holder,
            "claim": each.claim,
        }
        if each.until_s is not None:
            entry["until"] = _stamp(each.until_s)
        found.append(entry)
    return found


def encode(reservations: Mapping[str, Reservation]) -> str:
    """Return the value of `RESERVED_ANNOTATION`; of too many the newest, "" for none."""
    kept, size = {}, 2
    for name, each in sorted(reservations.items(), key=lambda item: (-item[1].until_s, item[0])):
        entry = [each.holder, each.until_s, dict(each.claims)]
        size += len(msgspec.json.encode([name, entry]))
        if size > ANNOTATION_BYTES_MAX:
            break
        kept[name] = entry
    return msgspec.json.encode(kept, order="sorted").decode() if kept else ""


def decode(text: str) -> dict[str, Reservation]:
    """Read it back; what is damaged counts as nothing."""
    try:
        entries = msgspec.json.decode(text, type=dict[str, tuple[str, int, dict[str, str]]])
    except msgspec.DecodeError:
        return {}
    return {name: Reservation(*entry) for name, entry in entries.items()}


def _stamp(at_s: int) -> str:
    return timestamp(datetime.fromtimestamp(at_s, tz=UTC))
