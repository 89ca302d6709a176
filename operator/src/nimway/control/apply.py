"""Carries plans out: the only place where children are written.

Every write checks leadership first, carries what was observed as a precondition, and is followed
by putting the server's answer into the store, so that the next reconcile does not act on what this
one already changed. A refused precondition is looked at again, from a fresh read.
"""

import logging
from collections.abc import Callable, Iterable

from nimway.control.client import (
    CREATE_ONLY_VERSION,
    ConflictError,
    ForbiddenError,
    InvalidError,
    KubeClient,
    NamespaceTerminatingError,
    NotFoundError,
)
from nimway.control.contests import FREE_REPAIRS, WHOLE, Contest, Contests, Fight
from nimway.control.election import LeadershipLostError
from nimway.control.facts import claims_of
from nimway.control.fields import last_writer
from nimway.control.kinds import BY_KIND, CLAIM, DEPLOYMENT, POD, SERVICE, Kind, Manifest, Ref
from nimway.control.metrics import Metrics
from nimway.control.plan import APPLIED_ANNOTATION, Action, Plan, controller_uid, plan, seal
from nimway.control.resolve import Owner
from nimway.control.store import Store, ref_of

CONFLICT_RETRIES = 8
"""Times that a refused precondition is looked at from a fresh read: a Deployment in a rollout is
written by its controller all the time, and a conflict costs less than the queue's back-off."""

_RESET = {SERVICE: ("spec", "ports"), DEPLOYMENT: ("spec", "template", "spec")}
"""Where others' items of a list can make the API server refuse ours."""

_log = logging.getLogger(__name__)


class NotOursError(Exception):
    """An object of the name we need exists and was not made for this owner."""


class WaitingError(Exception):
    """A child of this name is on its way out; its successor comes after it."""


class ContestedError(Exception):
    """Somebody else changes a child again and again; it is put back in `wait_s` seconds."""

    def __init__(self, text: str, wait_s: float) -> None:
        super().__init__(text)
        self.wait_s = wait_s


class OwnerGoneError(Exception):
    """The owner does not exist any more, and the store did not know."""


_REFUSED = (InvalidError, ForbiddenError, NotOursError, WaitingError)
"""What says something of one child alone."""


class Applier:
    """Applies and deletes children of one owner at a time. `may_write` is asked before each.

    `is_current` tells whether the store was lately compared with a fresh list; `clock` returns
    monotonic seconds.
    """

    def __init__(
        self,
        client: KubeClient,
        store: Store,
        metrics: Metrics,
        *,
        may_write: Callable[[], bool],
        is_current: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._store = store
        self._metrics = metrics
        self._may_write = may_write
        self._is_current = is_current
        self._clock = clock
        self._contests = Contests()
        self._refused: set[Ref] = set()

    async def confirm(self, owner: Owner, children: Iterable[tuple[Kind, Manifest]]) -> None:
        """Read the owner afresh where creating one of `children` for one that is gone would harm.

        A watch can miss a deletion. What is created for an owner that is gone the garbage collector
        deletes, and that would be answered by creating it again. So who is about to create again
        what went asks first, and who creates what no garbage collector will delete.

        Raises:
            OwnerGoneError: it is gone or going; the store knows it now.
        """
        missing = [each for each in children if ref_of(*each) not in self._store]
        if not missing or (
            self._is_current() and not any(self._outlives(owner, *each) for each in missing)
        ):
            return
        await self._require(owner)

    async def _require(self, owner: Owner) -> None:
        """Read the owner afresh, and raise OwnerGoneError if it is gone or going.

        Another one of its name is left to the watch, which marks it: what the store knows already
        is no news any more.
        """
        try:
            fresh = await self._client.get(owner.kind, owner.namespace, owner.name)
        except NotFoundError:
            fresh = None
        if fresh is not None and fresh["metadata"]["uid"] == owner.uid:
            self._store.put(owner.kind, fresh)
            if "deletionTimestamp" not in fresh["metadata"]:
                return
        else:
            ghost = self._store.get(owner.kind, owner.namespace, owner.name)
            if ghost is not None and ghost["metadata"]["uid"] == owner.uid:
                self._store.remove(owner.kind, ghost)
        raise OwnerGoneError(f"{owner.kind.kind} {owner.namespace}/{owner.name} is gone")

    def _outlives(self, owner: Owner, kind: Kind, manifest: Manifest) -> bool:
        """Tell whether a child could come back for ever, or stay, after its owner."""
        return not manifest["metadata"].get("ownerReferences") or self._store.was_lost(
            ref_of(kind, manifest), owner.uid
        )

    async def apply(self, kind: Kind, desired: Manifest, owner: Owner) -> Manifest:
        """Make one child as declared and return it as the server holds it.

        Raises:
            NotOursError: the name is taken.
            WaitingError: the name becomes free soon.
            ContestedError: somebody changes it again and again.
            OwnerGoneError: the child is orphaned, for its owner is going.
            ApiError: the API server refused.
        """
        sealed = seal(desired)
        metadata = sealed["metadata"]
        live = self._store.get(kind, metadata["namespace"], metadata["name"])
        if live is not None and self._is_settled(kind, sealed):
            return live
        if live is not None and self._plan(kind, sealed, live, owner).action is Action.FOREIGN:
            live = await self._look_again(kind, live)
        if live is not None and _is_stripped(sealed, live, owner):
            # An orphaning deletion takes the reference first, and its news may come before that of
            # the deletion: what got the reference back would be deleted with its owner.
            await self._require(owner)
        try:
            for _ in range(CONFLICT_RETRIES):
                try:
                    return await self._carry_out(kind, sealed, live, owner)
                except ConflictError:
                    live = await self._read(kind, metadata["namespace"], metadata["name"])
            return await self._carry_out(kind, sealed, live, owner)
        except (InvalidError, NotOursError):
            self._refused.add(Ref(owner.kind.kind, owner.namespace, owner.name))
            raise

    async def apply_all(self, children: Iterable[tuple[Kind, Manifest]], owner: Owner) -> None:
        """Make every child as declared; one that is refused does not keep the others waiting.

        Only a Deployment does not come to mount a claim that was refused before it: what has the
        claim's name may be somebody else's. One whose pods mount it already goes on: it has to be
        scaled down for a claim that waits for its pods. What is contested comes later: see `fight`.

        Raises:
            Exception: what `apply` raised first, after all were tried.
        """
        refusals: list[Exception] = []
        lacking: set[str] = set()
        for kind, manifest in children:
            if self._is_settled(kind, seal(manifest)):
                continue
            if lacking and kind == DEPLOYMENT and lacking & self._newly_mounted(manifest):
                continue
            try:
                await self.apply(kind, manifest, owner)
            except NamespaceTerminatingError:
                raise  # it concerns them all
            except _REFUSED as error:
                refusals.append(error)
            except ContestedError:
                pass
            else:
                continue
            if kind == CLAIM:
                lacking.add(manifest["metadata"]["name"])
        if refusals:
            raise refusals[0]

    def _newly_mounted(self, deployment: Manifest) -> set[str]:
        """Return the claims that a Deployment's pods shall mount and do not yet."""
        metadata = deployment["metadata"]
        live = self._store.get(DEPLOYMENT, metadata["namespace"], metadata["name"])
        return _mounted(deployment) - (_mounted(live) if live else set())

    def take_refused(self) -> set[Ref]:
        """Return, once, the owners of what was refused: what stood in the way may have gone."""
        refused, self._refused = self._refused, set()
        return refused

    def _is_settled(self, kind: Kind, sealed: Manifest) -> bool:
        """Tell whether the child was found as declared, and nobody changed it since."""
        digest = sealed["metadata"]["annotations"][APPLIED_ANNOTATION]
        return self._store.is_settled(ref_of(kind, sealed), digest)

    async def prune(self, kept: Iterable[tuple[Kind, Manifest]], owner: Owner) -> None:
        """Delete the owner's children that are not among `kept`, claims never.

        They hold weights, and a user may take back what does without them. Those that shall not
        outlive their model the garbage collector takes with it.
        """
        known = {ref_of(kind, manifest) for kind, manifest in kept}
        for ref in sorted(self._store.child_refs(owner.uid) - known):
            kind = BY_KIND[ref.kind]
            if kind in {POD, CLAIM}:
                continue
            live = self._store.get(kind, ref.namespace, ref.name)
            if live is not None:
                await self.delete(kind, live, reason="it is not declared any more")

    async def delete(self, kind: Kind, live: Manifest, *, reason: str) -> None:
        """Delete the very object that was observed; one that is gone already is fine."""
        if "deletionTimestamp" in live["metadata"]:
            return
        self._check(kind)
        _log.info("deleting: %s reason=%r", _text(kind, live), reason)
        try:
            await self._client.delete(kind, live)
        except NotFoundError:
            self._store.remove(kind, live)
        self._metrics.writes.labels(kind.kind, "delete").inc()
        self._contests.forget(ref_of(kind, live), WHOLE)

    def fight(self, owner: str) -> Fight | None:
        """Say what somebody else changes again and again of the owner with this uid."""
        return self._contests.fight(owner, self._clock())

    def _check(self, kind: Kind) -> None:
        if not self._may_write():
            raise LeadershipLostError(f"not leader: {kind.kind} is left alone")

    async def _carry_out(
        self, kind: Kind, sealed: Manifest, live: Manifest | None, owner: Owner
    ) -> Manifest:
        step = self._plan(kind, sealed, live, owner)
        if step.action is Action.FOREIGN:
            raise NotOursError(f"{_text(kind, sealed)}: {step.reason}")
        if step.action is Action.WAIT:
            raise WaitingError(f"{_text(kind, sealed)}: {step.reason}")
        if live is not None and step.action is Action.NONE:
            digest = sealed["metadata"]["annotations"][APPLIED_ANNOTATION]
            self._store.settle(ref_of(kind, live), live["metadata"]["resourceVersion"], digest)
            return live
        taken = step.fields
        if live is None and self._store.was_lost(ref_of(kind, sealed), owner.uid):
            taken = (WHOLE,)
        if not taken:
            return await self._write(kind, sealed, live, step)
        # Somebody else's doing is undone, ever more rarely if it is done again and again.
        ref, now_s = ref_of(kind, sealed), self._clock()
        digest = sealed["metadata"]["annotations"][APPLIED_ANNOTATION]
        contests = [self._contests.at(owner.uid, ref, field, now_s) for field in taken]
        await self._name_writers(kind, contests)
        waits = [each.wait_s(digest, now_s) for each in contests]
        if min(waits) > 0:
            for each, wait_s in zip(contests, waits, strict=True):
                self._contests.wait(each, now_s + wait_s)
            raise ContestedError(contests[0].text, min(waits))
        answer = await self._write(kind, sealed, live, step)
        for each in contests:
            self._contests.repaired(each, digest, self._clock())
        return answer

    async def _name_writers(self, kind: Kind, contests: list[Contest]) -> None:
        """Find out who took fields again and again, before they are put back and that is lost."""
        unknown = [
            each
            for each in contests
            if each.repairs >= FREE_REPAIRS and each.asked != each.repairs and each.field != WHOLE
        ]
        if not unknown:
            return
        live = await self._read(kind, unknown[0].ref.namespace, unknown[0].ref.name)
        for each in unknown:
            each.asked = each.repairs
            each.writer = (last_writer(live) if live is not None else "") or each.writer

    def _plan(self, kind: Kind, sealed: Manifest, live: Manifest | None, owner: Owner) -> Plan:
        holder = controller_uid(live) if live is not None else None
        rival = None if holder in {None, owner.uid} else self._store.living(holder)
        return plan(kind, sealed, live, owner, rival=rival)

    async def _write(
        self, kind: Kind, sealed: Manifest, live: Manifest | None, step: Plan
    ) -> Manifest:
        if live is None:
            fence = {"resourceVersion": CREATE_ONLY_VERSION}
        else:
            observed = live["metadata"]
            fence = {"uid": observed["uid"], "resourceVersion": observed["resourceVersion"]}
        self._check(kind)
        _log.info("applying: %s reason=%r", _text(kind, sealed), step.reason)
        manifest = {**sealed, "metadata": {**sealed["metadata"], **fence}}
        try:
            answer = await self._client.apply(kind, manifest)
        except InvalidError:
            if live is None or kind not in _RESET:
                raise
            manifest["metadata"]["resourceVersion"] = await self._reset(kind, sealed, live)
            answer = await self._client.apply(kind, manifest)
        self._metrics.writes.labels(kind.kind, step.action.value).inc()
        self._store.put(kind, answer)
        return answer

    async def _reset(self, kind: Kind, sealed: Manifest, live: Manifest) -> str:
        """Put our lists in the place of somebody's that exclude them; return the new version.

        Apply leaves others' items alone, and refuses ours if theirs have the same name or port.
        """
        metadata, steps = live["metadata"], _RESET[kind]
        value = sealed
        for step in steps:
            value = value[step]
        answer = await self._client.patch(
            kind,
            metadata["namespace"],
            metadata["name"],
            [
                {"op": "test", "path": "/metadata/uid", "value": metadata["uid"]},
                {
                    "op": "replace",
                    "path": "/metadata/resourceVersion",
                    "value": metadata["resourceVersion"],
                },
                {"op": "replace", "path": f"/{'/'.join(steps)}", "value": value},
            ],
        )
        self._metrics.writes.labels(kind.kind, "patch").inc()
        version: str = answer["metadata"]["resourceVersion"]
        return version

    async def _look_again(self, kind: Kind, theirs: Manifest) -> Manifest | None:
        """Read somebody else's object afresh: no watch of ours tells that it is gone."""
        metadata = theirs["metadata"]
        fresh = await self._read(kind, metadata["namespace"], metadata["name"])
        if fresh is None:
            self._store.remove(kind, theirs)
        return fresh

    async def _read(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        try:
            fresh = await self._client.get(kind, namespace, name)
        except NotFoundError:
            return None
        self._store.put(kind, fresh)
        return fresh


def _mounted(deployment: Manifest) -> set[str]:
    """Return the claims that a Deployment's pods mount."""
    return set(claims_of(deployment["spec"]["template"]["spec"]))


def _is_stripped(sealed: Manifest, live: Manifest, owner: Owner) -> bool:
    """Tell whether a child lost the reference to its owner."""
    if not sealed["metadata"].get("ownerReferences"):
        return False
    references = live["metadata"].get("ownerReferences", ())
    return all(each["uid"] != owner.uid for each in references)


def _text(kind: Kind, manifest: Manifest) -> str:
    return str(ref_of(kind, manifest))
