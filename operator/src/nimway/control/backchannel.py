"""The back-channel: one streaming connection to each ready proxy pod.

Owns the connections and their repetition; what a report means is the route book's. A pod that says
nothing for three report periods is asked anew. It sends nothing but the request.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping

import aiohttp

from nimway.state import (
    LINE_BYTES_MAX,
    REPORT_PERIOD_S,
    STATE_PATH,
    STATE_PORT,
    ProxyState,
    StateError,
    decode,
)
from nimway.tasks import spawn

CONNECT_TIMEOUT_S = 3.0
SILENCE_MAX_S = 3 * REPORT_PERIOD_S
RETRY_FIRST_S = 0.2
RETRY_MAX_S = 5.0

Report = Callable[[str, str, ProxyState | None], None]
"""Called with the proxy's key, the pod's uid, and its report or None when it broke off."""

_log = logging.getLogger(__name__)


def state_address(address: str, port: int = STATE_PORT) -> str:
    """Return host and port of a pod's back-channel, as a URL has them."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class BackChannel:
    """Streams of all proxies' pods, by uid."""

    def __init__(self, report: Report, *, port: int = STATE_PORT) -> None:
        self._report = report
        self._port = port
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._proxy_of: dict[str, str] = {}
        self._session: aiohttp.ClientSession | None = None

    def follow(self, proxy: str, addresses: Mapping[str, str]) -> None:
        """Listen to exactly these pods of one proxy, given as address by uid."""
        for uid, owner in list(self._proxy_of.items()):
            if owner == proxy and uid not in addresses:
                self._tasks.pop(uid).cancel()
                del self._proxy_of[uid]
        for uid, address in addresses.items():
            if uid not in self._tasks:
                self._proxy_of[uid] = proxy
                self._tasks[uid] = spawn(
                    self._listen(proxy, uid, address), name=f"state of {proxy} at {address}"
                )

    async def close(self) -> None:
        """Close all connections."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._proxy_of.clear()
        if self._session is not None:
            await self._session.close()

    async def _listen(self, proxy: str, uid: str, address: str) -> None:
        url = f"http://{state_address(address, self._port)}{STATE_PATH}"
        retry_s = RETRY_FIRST_S
        while True:
            heard = False
            try:
                async for state in self._stream(url):
                    heard = True
                    self._report(proxy, uid, state)
            except (aiohttp.ClientError, StateError, TimeoutError, OSError, ValueError) as error:
                _log.info("listening failed: proxy=%s pod=%s error=%r", proxy, address, error)
            if heard:
                retry_s = RETRY_FIRST_S
                self._report(proxy, uid, None)
            await asyncio.sleep(retry_s)
            retry_s = min(retry_s * 2, RETRY_MAX_S)

    async def _stream(self, url: str) -> AsyncIterator[ProxyState]:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_MAX_S
            )
            self._session = aiohttp.ClientSession(timeout=timeout, read_bufsize=LINE_BYTES_MAX)
        async with self._session.get(url, allow_redirects=False) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                yield decode(line)
