"""Kinds that a cluster may lack: lists and watches them once they are there.

Kopf watches what exists when the operator starts. A ServiceMonitor's kind may come with another
release later, or never: its absence is asked for now and then and is no error.
"""

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING

from nimway.control.client import ApiError, KubeClient, NotFoundError
from nimway.control.kinds import OWNERS, SELECTED_BY, Kind, Manifest, Ref
from nimway.control.settings import Settings
from nimway.control.store import Store
from nimway.control.workqueue import Lanes

if TYPE_CHECKING:
    from nimway.control.observe import Observer

ABSENT_S = 20.0
"""Between two looks for a kind that is not served."""

BROKEN_S = 5.0
WATCH_S = 50.0
"""A watch ends after so long, and everything is listed afresh."""

_log = logging.getLogger(__name__)


class OptionalKind:
    """Feeds the store with one kind while the API server serves it."""

    def __init__(
        self,
        kind: Kind,
        settings: Settings,
        client: KubeClient,
        *,
        observer: "Observer",
        store: Store,
        workers: Lanes[Ref],
    ) -> None:
        self._kind = kind
        self._settings = settings
        self._client = client
        self._observer = observer
        self._store = store
        self._workers = workers
        self.served = False

    async def run(self) -> None:
        """Follow the kind for ever."""
        while True:
            try:
                await self._follow()
            except NotFoundError:
                self._leave()
                await asyncio.sleep(ABSENT_S * random.uniform(0.9, 1.1))
            except ApiError as error:
                _log.warning("watching again: kind=%s error=%s", self._kind.kind, error)
                await asyncio.sleep(BROKEN_S * random.uniform(0.9, 1.1))

    async def _follow(self) -> None:
        kind = self._kind
        version = await self._observer.relist(kind)
        if not self.served:
            self.served = True
            _log.info("found: kind=%s", kind.kind)
            self._mark_who_wants_it()
        watch = self._client.watch(
            kind,
            None,
            selector=SELECTED_BY[kind],
            version=version,
            duration_s=WATCH_S * random.uniform(0.9, 1.1),
        )
        async with contextlib.aclosing(watch):
            async for event, manifest in watch:
                if event != "BOOKMARK" and self._settings.watches(
                    manifest["metadata"]["namespace"]
                ):
                    self._observer.seen(kind, event, manifest)

    def _leave(self) -> None:
        """Forget what there was: without their kind the objects do not exist any more."""
        if self.served:
            self.served = False
            _log.info("gone: kind=%s", self._kind.kind)
            for ref in self._store.refs(self._kind):
                live = self._store.get(self._kind, ref.namespace, ref.name)
                if live is not None:
                    self._store.remove(self._kind, live)

    def _mark_who_wants_it(self) -> None:
        for kind in OWNERS:
            for ref in self._store.refs(kind):
                if _wants(self._store.get(kind, ref.namespace, ref.name)):
                    self._workers.mark(ref)


def _wants(live: Manifest | None) -> bool:
    return "serviceMonitor" in (((live or {}).get("spec") or {}).get("metrics") or {})
