"""From what is seen in the cluster to what has to be reconciled.

Owns the rules "this object changed, so that key is dirty", for watch events and for fresh lists
alike. It keeps the store and decides no more than who is affected and how soon.
"""

import asyncio
import logging
from collections.abc import Callable

from nimway.control.client import KubeClient
from nimway.control.context import STATUS_DELAY_S
from nimway.control.kinds import (
    CHILDREN,
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

RESYNC_SPREAD_S = 15.0
"""After a resync all keys are looked at over this time, so that nobody has to wait behind them."""

TABLE_DELAY_S = 0.01
"""Lets the new model's Deployment go out before its route, which nothing answers yet."""

START_DELAY_S = 0.3
"""At a start the tables are decided first: what that says of the models is one look, not two."""

_log = logging.getLogger(__name__)


class Observer:
    """Feeds the store and marks keys."""

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
        self.last_event_s: float = clock()
        self.last_resync_s: float | None = None
        self.relisted = asyncio.Event()
        """Set when a watch had to list again: deletions that it missed, no event will tell."""

    def seen(self, kind: Kind, event: str | None, manifest: Manifest) -> None:
        """Take in one watch event (`event` is None while a watch lists)."""
        self.last_event_s = self._clock()
        if event is None:
            self.relisted.set()
        ref = ref_of(kind, manifest)
        before = self._store.owner_uid(ref)
        if event == "DELETED":
            change = Change.CONTENT if self._store.remove(kind, manifest) else Change.NONE
        else:
            change = self._store.put(kind, manifest)
        if change is not Change.NONE:
            self._mark(kind, ref, {before, self._store.owner_uid(ref)}, change)

    async def resync(self, jitter: Callable[[], float]) -> None:
        """List everything afresh, drop ghosts, and mark every key.

        Raises:
            ApiError: a list failed; what was listed before it is taken over.
        """
        # Children first: an owner that is created meanwhile must not look absent.
        for kind in (*CHILDREN, POD, NAMESPACE, *OWNERS):
            await self.relist(kind)
        first = self.last_resync_s is None
        self.last_resync_s = self._clock()
        for ref in self._store.refs(PROXY):
            self._workers.mark(ref)
        for ref in self._store.refs(MODEL):
            delay_s = START_DELAY_S if first else jitter() * RESYNC_SPREAD_S
            self._workers.mark(ref, delay_s=delay_s)

    async def relist(self, kind: Kind) -> str:
        """List one kind afresh, drop its ghosts, and return the version to watch from.

        Raises:
            ApiError: the list failed.
        """
        scope = None if kind == NAMESPACE else self._settings.namespaces
        namespaces: list[str | None] = [None] if scope is None else [*sorted(scope)]
        first = ""
        for namespace in namespaces:
            seen: set[Ref] = set()
            version = "0"
            async for page, listed in self._client.pages(
                kind, namespace, selector=SELECTED_BY[kind]
            ):
                version = listed
                first = first or listed
                for manifest in page:
                    ref = ref_of(kind, manifest)
                    seen.add(ref)
                    before = self._store.owner_uid(ref)
                    change = self._store.put(kind, manifest)
                    if change is not Change.NONE:
                        self._mark(kind, ref, {before, self._store.owner_uid(ref)}, change)
            where = None if namespace is None else frozenset({namespace})
            for ref, owner in self._store.prune(kind, where, seen, version):
                _log.info("forgetting: %s reason='not in a fresh list'", ref)
                self._mark(kind, ref, {owner}, Change.CONTENT)
        return first

    def _mark(self, kind: Kind, ref: Ref, owners: set[str], change: Change) -> None:
        at_once = change is Change.CONTENT and kind != POD
        delay_s = 0.0 if at_once else STATUS_DELAY_S
        if kind == NAMESPACE:
            if at_once:
                self._mark_selecting_proxies()
            return
        if kind in OWNERS:
            self._workers.mark(ref, delay_s=delay_s)
            if kind == MODEL and at_once:
                for proxy in self._store.refs(PROXY):
                    self._workers.mark(proxy, delay_s=TABLE_DELAY_S)
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
