"""From what is seen in the cluster to what has to be reconciled.

Owns the rules "this object changed, so that key is dirty", for watch events and for fresh lists
alike. It keeps the store and decides no more than who is affected and how soon.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from nimway.control.client import KubeClient
from nimway.control.context import READY_DELAY_S, STATUS_DELAY_S
from nimway.control.follow import Follower
from nimway.control.kinds import (
    FOLLOWED,
    MODEL,
    NAMESPACE,
    OWNERS,
    POD,
    PROXY,
    SELECTED_BY,
    Kind,
    Manifest,
    Ref,
)
from nimway.control.settings import Settings
from nimway.control.store import Change, Store, ref_of
from nimway.control.workqueue import Lanes

TABLE_DELAY_S = 0.01
"""Lets the new model's Deployment go out before its route, which nothing answers yet."""

START_DELAY_S = 0.3
START_DELAY_PER_MODEL_S = 0.001
"""At a start the tables are decided first: what that says of the models is one look, not two."""

_DELAYS_S = {Change.CONTENT: 0.0, Change.READY: READY_DELAY_S, Change.STATUS: STATUS_DELAY_S}

_log = logging.getLogger(__name__)


class Observer:
    """Feeds the store, and marks keys from `begin` on: who only stands by has none to look at."""

    def __init__(
        self,
        settings: Settings,
        client: KubeClient,
        store: Store,
        workers: Lanes[Ref],
        *,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._client = client
        self._store = store
        self._workers = workers
        self._clock = clock
        self._versions: dict[tuple[Kind, str | None], str] = {}
        self._begun = False
        self.last_event_s: float = clock()
        self.last_resync_s: float | None = None
        self.relisted = asyncio.Event()
        """Set when Kopf had to list again: deletions that it missed, no event will tell."""

    def seen(self, kind: Kind, event: str | None, manifest: Manifest) -> None:
        """Take in one watch event (`event` is None while a watch lists)."""
        self.last_event_s = self._clock()
        if event is None and self._begun:
            self.relisted.set()
        if event == "BOOKMARK":
            return
        ref = ref_of(kind, manifest)
        before = self._store.owner_uid(ref)
        if event == "DELETED":
            change = Change.CONTENT if self._store.remove(kind, manifest) else Change.NONE
        else:
            change = self._store.put(kind, manifest)
        self._mark(kind, ref, {before, self._store.owner_uid(ref)}, change)

    async def resync(self) -> None:
        """List everything afresh, drop ghosts, and mark what that changed.

        Raises:
            ApiError: a list failed; what was listed before it is taken over.
        """
        # Children first: an owner that is created meanwhile must not look absent.
        await self._relist_all(FOLLOWED)
        await self.relist_owners()
        self.last_resync_s = self._clock()

    async def relist_owners(self) -> None:
        """List afresh what users write.

        Raises:
            ApiError: a list failed.
        """
        await self._relist_all(OWNERS)

    async def _relist_all(self, kinds: Iterable[Kind]) -> None:
        """List several kinds at once: one after the other takes long where each answer does."""
        answers = await asyncio.gather(*map(self.relist, kinds), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    def begin(self) -> None:
        """Mark everything, and from now on what changes."""
        self._begun = True
        delay_s = START_DELAY_S + START_DELAY_PER_MODEL_S * len(self._store.refs(MODEL))
        self.sweep(lambda: delay_s)

    def sweep(self, delay_s: Callable[[], float]) -> None:
        """Mark everything, whatever changed: the proxies at once, each model after a delay."""
        self.mark_proxies()
        for ref in self._store.refs(MODEL):
            self._workers.mark(ref, delay_s=delay_s())

    def mark_proxies(self, delay_s: float = 0.0) -> None:
        """Mark all proxies."""
        for ref in self._store.refs(PROXY):
            self._workers.mark(ref, delay_s=delay_s)

    async def follow(self) -> None:
        """Watch for ever, from the first list on, all that Kopf does not."""
        async with asyncio.TaskGroup() as group:
            for kind in FOLLOWED:
                for namespace in self._namespaces(kind):
                    follower = Follower(
                        self._client,
                        (kind, namespace, SELECTED_BY[kind]),
                        relist=partial(self._list, kind, namespace),
                        take=partial(self.seen, kind),
                        clock=self._clock,
                        jitter=random.random,
                    )
                    group.create_task(
                        follower.run(self._versions[kind, namespace]),
                        name=f"watch of {kind.plural}",
                    )

    def _namespaces(self, kind: Kind) -> Iterator[str | None]:
        scope = self._settings.namespaces
        yield from [None] if scope is None or kind == NAMESPACE else sorted(scope)

    async def relist(self, kind: Kind) -> str:
        """List one kind afresh, drop its ghosts, and return the version to watch from.

        Raises:
            ApiError: a list failed; what was listed before it is taken over.
        """
        versions = [await self._list(kind, namespace) for namespace in self._namespaces(kind)]
        return versions[0]

    async def _list(self, kind: Kind, namespace: str | None) -> str:
        seen: set[Ref] = set()
        version = "0"
        async for page, listed in self._client.listed(kind, namespace, selector=SELECTED_BY[kind]):
            version = listed
            for item in page:
                head = item.head
                ref = Ref(kind.kind, head.namespace, head.name)
                seen.add(ref)
                if self._store.holds(ref, head.uid, head.resource_version):
                    continue
                before = self._store.owner_uid(ref)
                change = self._store.put(kind, item.manifest())
                self._mark(kind, ref, {before, self._store.owner_uid(ref)}, change)
        where = None if namespace is None else frozenset({namespace})
        for ref, owner in self._store.prune(kind, where, seen, version):
            _log.info("forgetting: %s reason='not in a fresh list'", ref)
            self._mark(kind, ref, {owner}, Change.CONTENT)
        self._versions[kind, namespace] = version
        return version

    def _mark(self, kind: Kind, ref: Ref, owners: set[str], change: Change) -> None:
        if change is Change.NONE or not self._begun:
            return
        at_once = change is Change.CONTENT and kind != POD
        delay_s = _DELAYS_S[change if kind != POD else Change.STATUS]
        if kind == NAMESPACE:
            if at_once:
                self._mark_selecting_proxies()
            return
        if kind in OWNERS:
            self._workers.mark(ref, delay_s=delay_s)
            if kind == MODEL and at_once:
                self.mark_proxies(TABLE_DELAY_S)
            return
        for uid in owners:
            owner = self._store.owner_of(uid) if uid else None
            if owner is not None:
                self._workers.mark(owner, delay_s=delay_s)

    def _mark_selecting_proxies(self) -> None:
        """A namespace came, went, or has other labels: who selects by them looks again."""
        for ref in self._store.refs(PROXY):
            live = self._store.get(PROXY, ref.namespace, ref.name)
            if live is not None and "namespaceSelector" in live.get("spec", {}):
                self._workers.mark(ref)
