"""Reading from the API server: one list, one watch, as raw JSON; for the parent process only.

Owns the Kubernetes client and its configuration; its exceptions stop here and become `KubeError`.
It has no verb that writes.
"""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import aiohttp
from kubernetes.aio import client, config

LINE_BYTES_MAX = 16 * 1024 * 1024
WATCH_GRACE_S = 2.0
"""How long a server that was told to end a watch may take; then the watch ends without it."""

_OK = 200


class KubeError(Exception):
    """A list or a watch failed; `status` is the server's, or 0 if there was no answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}" if status else reason)
        self.status = status


async def load_configuration(kubeconfig: str | None) -> client.Configuration:
    """Return the client configuration: of `kubeconfig`, else of the pod, else of the user.

    Raises:
        KubeError: there is none.
    """
    configuration = client.Configuration()
    configuration.connection_pool_maxsize = 0  # a watch per namespace, without a bound
    try:
        if kubeconfig is None:
            try:
                config.load_incluster_config(client_configuration=configuration)
            except config.ConfigException:
                await config.load_kube_config(client_configuration=configuration)
        else:
            await config.load_kube_config(
                config_file=kubeconfig, client_configuration=configuration
            )
    except Exception as error:  # the loader meets a broken file with any of them
        why = " ".join(str(error).split())
        raise KubeError(0, f"no Kubernetes configuration: {why}") from error
    return configuration


class KubeReader:
    """Lists and watches over one session."""

    def __init__(self, configuration: client.Configuration) -> None:
        self._api = client.ApiClient(configuration)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._api.close()

    async def list(self, path: str, query: dict[str, str], *, timeout_s: float) -> bytes:
        """Return the body of a GET.

        Raises:
            KubeError: any answer but 200, or none in time, or no credentials to ask with.
        """
        try:
            response = await self._get(path, query, timeout_s)
            async with response:
                body: bytes = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise KubeError(0, repr(error)) from error
        if response.status != _OK:
            raise KubeError(response.status, body[:200].decode(errors="replace"))
        return body

    async def watch(
        self, path: str, query: dict[str, str], *, timeout_s: float
    ) -> AsyncIterator[bytes]:
        """Yield each line of a watch until the server ends it or `timeout_s` are over.

        Raises:
            KubeError: any answer but 200, a line too long, a broken connection, or no credentials.
        """
        query = {**query, "watch": "true", "timeoutSeconds": str(max(1, int(timeout_s)))}
        try:
            response = await self._get(path, query, timeout_s + WATCH_GRACE_S)
            async with response:
                if response.status != _OK:
                    body = await response.read()
                    raise KubeError(response.status, body[:200].decode(errors="replace"))
                carry = b""
                async for chunk in response.content.iter_any():
                    *lines, carry = (carry + chunk).split(b"\n")
                    for line in lines:
                        yield line
                    if len(carry) > LINE_BYTES_MAX:
                        raise KubeError(0, "a watch event is too long")
        except TimeoutError:
            return
        except (aiohttp.ClientError, OSError) as error:
            raise KubeError(0, repr(error)) from error

    async def _get(
        self, path: str, query: dict[str, str], timeout_s: float
    ) -> aiohttp.ClientResponse:
        try:
            method, url, headers, *_ = await self._api.param_serialize(
                "GET",
                path,
                query_params=list(query.items()),
                header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
            )
        except config.ConfigException as error:  # the token is read anew each minute
            raise KubeError(0, f"no credentials: {error}") from error
        timeout: Any = aiohttp.ClientTimeout(total=timeout_s, connect=5)
        answer = await self._api.call_api(method, url, headers, _request_timeout=timeout)
        response: aiohttp.ClientResponse = answer.response
        return response
