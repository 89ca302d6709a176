"""Asking a pod whether it is ready, as its kubelet does; for the parent process only."""

import aiohttp

from nimway.proxy.addresses import format_authority, is_allowed
from nimway.proxy.endpoints import Address

TIMEOUT_S = 1.0
_OK = 200


class ReadinessProbe:
    """Asks pods over connections of their own, as each may be gone a moment later."""

    def __init__(self, *, allow_loopback: bool) -> None:
        self._allow_loopback = allow_loopback
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            headers={"User-Agent": "nimway-proxy"},
        )

    async def aclose(self) -> None:
        """End what is being asked."""
        await self._session.close()

    async def is_ready(self, address: Address, path: str) -> bool:
        """Return whether a GET of `path` is answered 200 within `TIMEOUT_S`.

        An address that no request may be sent to is not asked.
        """
        host, port = address
        if not is_allowed(host, allow_loopback=self._allow_loopback):
            return False
        url = f"http://{format_authority(host, port)}{path}"
        try:
            async with self._session.get(url, allow_redirects=False) as answer:
                return answer.status == _OK
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
