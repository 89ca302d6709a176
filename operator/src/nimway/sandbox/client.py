"""A small Kubernetes client: raw JSON over one aiohttp session.

Owns transport and errors. It knows no object's shape: callers pass and get plain dictionaries.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from nimway.sandbox.config import API_PORT, BRIDGE_ADDRESS

MERGE_PATCH: Final = "application/merge-patch+json"
STRATEGIC_PATCH: Final = "application/strategic-merge-patch+json"
_RELIST_AFTER_S: Final = 0.2
_LINE_BYTES_MAX: Final = 8 << 20


_UNREACHABLE: Final = "Unreachable"


class ApiError(Exception):
    """The API server said no: `status` is the HTTP code, `reason` Kubernetes' word for it.

    When it could not be asked at all, `status` is 0 and `reason` is `Unreachable`.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message


class Client:
    """One session with the API server inside the sandbox; use it as an async context manager."""

    def __init__(self, pki: Path) -> None:
        context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        context.load_cert_chain(pki / "agent.crt", pki / "agent.key")
        self._context = context
        self._base = f"https://{BRIDGE_ADDRESS}:{API_PORT}"
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._context, limit=64)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, read_bufsize=_LINE_BYTES_MAX
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the client is used before it was entered")
        return self._session

    async def is_ready(self) -> bool:
        """Tell whether /readyz answers 200 (its failing body contains "ok" too)."""
        try:
            async with self._open_session.get(f"{self._base}/readyz") as response:
                return response.status == 200  # noqa: PLR2004 - HTTP's OK
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        """Read an object or a list."""
        return await self._request("GET", path, query=query)

    async def create(self, path: str, body: dict[str, Any], **query: str) -> dict[str, Any]:
        """Create an object."""
        return await self._request("POST", path, body=body, query=query)

    async def patch(
        self, path: str, body: dict[str, Any], content_type: str = MERGE_PATCH
    ) -> dict[str, Any]:
        """Change an object."""
        return await self._request("PATCH", path, body=body, content_type=content_type)

    async def put(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Replace an object."""
        return await self._request("PUT", path, body=body)

    async def delete(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Delete an object."""
        return await self._request("DELETE", path, body=body)

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: dict[str, Any] | None = None,
        content_type: str = "application/json",
        query: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type} if data is not None else {}
        try:
            async with self._open_session.request(
                method, self._base + path, data=data, headers=headers, params=query
            ) as response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(0, _UNREACHABLE, str(error)) from error
        if response.status >= 400:  # noqa: PLR2004 - HTTP's first error
            raise _error(response.status, answer)
        decoded: dict[str, Any] = json.loads(answer)
        return decoded

    async def watch(self, path: str, **query: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield (event type, object) until the server ends the watch."""
        query = {"watch": "true", "allowWatchBookmarks": "true", **query}
        try:
            async with self._open_session.get(self._base + path, params=query) as response:
                if response.status >= 400:  # noqa: PLR2004 - HTTP's first error
                    raise _error(response.status, await response.read())
                async for line in response.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise ApiError(status["code"], status["reason"], status["message"])
                    yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            # ValueError: a line cut short by a connection that broke.
            raise ApiError(0, _UNREACHABLE, str(error)) from error

    async def follow(self, path: str, **query: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield every change for ever: a list as SYNCED and ADDED events, then its watch, again.

        After each (re)listing a `SYNCED` event carries the list object, its `items` complete:
        what is not in it has gone.
        """
        while True:
            try:
                listed = await self.get(path, **query)
                yield "SYNCED", listed
                version = listed["metadata"]["resourceVersion"]
                async for kind, item in self.watch(path, resourceVersion=version, **query):
                    if kind != "BOOKMARK":
                        yield kind, item
            except ApiError:
                await asyncio.sleep(_RELIST_AFTER_S)


def _error(status: int, answer: bytes) -> ApiError:
    try:
        decoded = json.loads(answer)
        return ApiError(status, decoded.get("reason", ""), decoded.get("message", ""))
    except (json.JSONDecodeError, AttributeError):
        return ApiError(status, "", answer.decode(errors="replace")[:500])
