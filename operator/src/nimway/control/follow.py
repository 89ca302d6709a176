"""Follows one collection: watches from a version on, and lists anew where that is gone.

Owns when to connect again and from where. What an event or a list means is the observer's. Owners
are followed by Kopf; their children are ten times as many events, which need nothing of Kopf.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from nimway.control.client import ApiError, ExpiredError, KubeClient, TransientError
from nimway.control.kinds import Kind, Manifest

WATCH_S = 60.0
"""How long a watch is asked for; it goes on from its last version. The more often, the sooner one
that is frozen is noticed."""

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 3.0
STEADY_S = 5.0
"""A watch that lasted so long ended in order."""

_log = logging.getLogger(__name__)


class Follower:
    """One kind in one namespace, or in all. `jitter` returns numbers in [0, 1).

    `relist` takes in a fresh list and returns its version, `take` takes in one event.
    """

    def __init__(
        self,
        client: KubeClient,
        collection: tuple[Kind, str | None, str],
        *,
        relist: Callable[[], Awaitable[str]],
        take: Callable[[str, Manifest], None],
        clock: Callable[[], float],
        jitter: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._kind, self._namespace, self._selector = collection
        self._relist = relist
        self._take = take
        self._clock = clock
        self._jitter = jitter
        self._sleep = sleep
        self._version = ""
        self._backoff_s = BACKOFF_FIRST_S

    async def run(self, version: str) -> None:
        """Follow for ever, beginning after `version`."""
        self._version = version
        while True:
            began_s = self._clock()
            try:
                if not self._version:
                    self._version = await self._relist()
                await self._watch(self._version)
            except ApiError as error:
                self._failed(error)
            else:
                if self._clock() - began_s >= STEADY_S:
                    continue
            await self._sleep(self._backoff_s * (0.5 + self._jitter()))
            self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)

    async def _watch(self, version: str) -> None:
        events = self._client.watch(
            self._kind,
            self._namespace,
            selector=self._selector,
            version=version,
            duration_s=WATCH_S * (0.9 + self._jitter() / 5),
        )
        async with contextlib.aclosing(events):
            async for event, manifest in events:
                self._version = manifest["metadata"]["resourceVersion"]
                self._backoff_s = BACKOFF_FIRST_S
                self._take(event, manifest)

    def _failed(self, error: ApiError) -> None:
        _log.warning("watching %s again: error=%s", self._kind.plural, error)
        if isinstance(error, ExpiredError) or not isinstance(error, TransientError):
            self._version = ""  # what was missed, only a list tells
