"""Raw JSON over the official client: the one place where the API server is called.

Owns connections, credentials and the translation of failures into one family of errors. It decides
nothing and repeats nothing: retrying is the work queue's. Objects are plain dictionaries, since the
generated model classes cost more CPU than everything else in a reconcile.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlencode

import aiohttp
import kopf
import msgspec
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config

import nimway
from nimway.control.kinds import FIELD_MANAGER, Kind, Manifest

REQUEST_TIMEOUT_S = 30.0
LIST_PAGE_ITEMS = 100
WATCH_GRACE_S = 5.0
CONNECTIONS_MAX = 64

CREATE_ONLY_VERSION = "1"
"""A resourceVersion that no object has: an apply that carries it can create, but not change."""

_APPLY = "application/apply-patch+yaml"
_JSON = "application/json"
_JSON_PATCH = "application/json-patch+json"


class ApiError(Exception):
    """The API server refused or did not answer; `status` is the HTTP code, 0 without an answer."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class NotFoundError(ApiError):
    """404: the object, its namespace or its kind does not exist."""


class ConflictError(ApiError):
    """409: the object is not the one, or not in the state, that was observed."""


class InvalidError(ApiError):
    """400, 405 or 422: the API server will never accept this."""


class ForbiddenError(ApiError):
    """401 or 403: missing rights, a quota, an admission policy, or a namespace that is going."""


class NamespaceTerminatingError(ForbiddenError):
    """403: the namespace is being deleted, so nothing new comes into it."""


class TransientError(ApiError):
    """429, 5xx, a timeout or a lost connection: the same request may succeed later."""


class ConfigurationError(Exception):
    """There is no usable cluster configuration; the text says what to do."""


class KubeClient:
    """The verbs that the operator uses, on one connection pool."""

    def __init__(self, configuration: kubernetes_client.Configuration) -> None:
        self.configuration = configuration
        self._api = kubernetes_client.ApiClient(configuration)
        self._agent = f"nimway/{nimway.__version__}"
        self._host = configuration.host.rstrip("/")

    async def close(self) -> None:
        """Close all connections."""
        await self._api.close()

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        """Read one object from storage, not from a cache."""
        answer: Manifest = await self.request("GET", kind.path(namespace, name))
        return answer

    async def pages(
        self, kind: Kind, namespace: str | None, *, selector: str = ""
    ) -> AsyncIterator[tuple[list[Manifest], str]]:
        """Yield all objects of a kind page by page, each with the version of the whole list."""
        query = {"limit": str(LIST_PAGE_ITEMS)}
        if selector:
            query["labelSelector"] = selector
        while True:
            page = await self.request("GET", kind.path(namespace), query=query)
            for item in page["items"]:
                # Items of a list leave these out, and who reads one object wants them.
                item["apiVersion"], item["kind"] = kind.api_version, kind.kind
            yield page["items"], page["metadata"]["resourceVersion"]
            token = page["metadata"].get("continue")
            if not token:
                return
            query["continue"] = token

    async def watch(
        self, kind: Kind, version: str, *, selector: str, timeout_s: float
    ) -> AsyncIterator[tuple[str, Manifest]]:
        """Yield events (type and object) of all namespaces since `version` for about `timeout_s`.

        Raises:
            ApiError: the watch was refused, broke, or said what cannot be read.
        """
        query = {"watch": "true", "resourceVersion": version, "labelSelector": selector}
        query["timeoutSeconds"] = str(max(1, int(timeout_s)))
        path = f"{kind.path()}?{urlencode(query)}"
        headers = {"Accept": _JSON, "User-Agent": self._agent}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, "GET", None)
        limit: Any = aiohttp.ClientTimeout(total=timeout_s + WATCH_GRACE_S)
        try:
            answer = await self._api.call_api(
                "GET", f"{self._host}{path}", headers, _request_timeout=limit
            )
            async with answer.response as response:
                if answer.status >= 400:  # noqa: PLR2004 - HTTP's boundary, as below
                    raise _error(answer.status, await response.read())
                carry = b""
                async for chunk in response.content.iter_any():
                    *lines, carry = (carry + chunk).split(b"\n")
                    for line in lines:
                        event = msgspec.json.decode(line)
                        yield event["type"], event["object"]
        except TimeoutError:
            return
        except (aiohttp.ClientError, OSError, msgspec.DecodeError) as error:
            raise TransientError(0, "NoAnswer", f"GET {path}: {error!r}") from error

    async def apply(self, kind: Kind, manifest: Manifest, *, subresource: str = "") -> Manifest:
        """Apply `manifest` on the server under our field manager, and return the whole object.

        The uid and resourceVersion in it are preconditions; `CREATE_ONLY_VERSION` refuses to touch
        an object that exists.
        """
        metadata = manifest["metadata"]
        path = kind.path(metadata["namespace"], metadata["name"])
        answer: Manifest = await self.request(
            "PATCH",
            f"{path}/{subresource}" if subresource else path,
            query={"fieldManager": FIELD_MANAGER, "force": "true"},
            body=manifest,
            content_type=_APPLY,
        )
        return answer

    async def patch(
        self, kind: Kind, namespace: str, name: str, operations: list[Manifest]
    ) -> Manifest:
        """Change an object by a JSON patch (RFC 6902); its first operations are preconditions."""
        answer: Manifest = await self.request(
            "PATCH",
            kind.path(namespace, name),
            query={"fieldManager": FIELD_MANAGER},
            body=operations,
            content_type=_JSON_PATCH,
        )
        return answer

    async def delete(self, kind: Kind, manifest: Manifest) -> None:
        """Delete the very object that was observed, in the state it was observed in."""
        metadata = manifest["metadata"]
        await self.request(
            "DELETE",
            kind.path(metadata["namespace"], metadata["name"]),
            body={
                "apiVersion": "v1",
                "kind": "DeleteOptions",
                "propagationPolicy": "Background",
                "preconditions": {
                    "uid": metadata["uid"],
                    "resourceVersion": metadata["resourceVersion"],
                },
            },
        )

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Manifest | list[Manifest] | None = None,
        content_type: str = _JSON,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Any:
        """Send one request and return the decoded answer.

        Raises:
            ApiError: one of its kinds, with the API server's own words.
        """
        headers = {"Accept": _JSON, "Content-Type": content_type, "User-Agent": self._agent}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = f"{self._host}{path}" + (f"?{urlencode(query)}" if query else "")
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._api.call_api(method, url, headers, body)
                content = await answer.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            text = str(error) or type(error).__name__
            raise TransientError(0, "NoAnswer", f"{method} {path}: {text}") from error
        if answer.status >= 400:  # noqa: PLR2004 - HTTP's boundary between success and failure
            raise _error(answer.status, content)
        return msgspec.json.decode(content)


_TERMINATING = "NamespaceTerminating"
"""Cause in a Status (core/v1 `NamespaceTerminatingCause`)."""

_ERRORS: dict[int, type[ApiError]] = {
    400: InvalidError,
    401: ForbiddenError,
    403: ForbiddenError,
    404: NotFoundError,
    405: InvalidError,
    409: ConflictError,
    422: InvalidError,
}


def _error(status: int, content: bytes) -> ApiError:
    causes: list[Manifest] = []
    try:
        answer = msgspec.json.decode(content)
        reason, message = answer.get("reason", ""), answer.get("message", "")
        causes = (answer.get("details") or {}).get("causes") or []
    except (msgspec.DecodeError, AttributeError):
        reason, message = "", content[:500].decode(errors="replace")
    kind = _ERRORS.get(status, TransientError)
    if kind is ForbiddenError and any(each.get("reason") == _TERMINATING for each in causes):
        kind = NamespaceTerminatingError
    return kind(status, reason, message or f"HTTP {status}")


async def load_configuration() -> kubernetes_client.Configuration:
    """Return the pod's own configuration, or the one that KUBECONFIG names.

    Raises:
        ConfigurationError: there is neither.
    """
    configuration = kubernetes_client.Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            kubernetes_config.load_incluster_config(client_configuration=configuration)
        else:
            await kubernetes_config.load_kube_config(client_configuration=configuration)
    except (kubernetes_config.ConfigException, OSError) as error:
        raise ConfigurationError(
            f"no cluster configuration: run in a pod, or set KUBECONFIG ({error})"
        ) from error
    configuration.connection_pool_maxsize = CONNECTIONS_MAX
    # The API server is never reached through a web proxy that the environment happens to name.
    configuration.client_session_kwargs = {"trust_env": False}
    return configuration


async def kopf_login(configuration: kubernetes_client.Configuration) -> kopf.ConnectionInfo:
    """Return the same credentials for Kopf's watches, with a token read just now."""
    settings = (await configuration.auth_settings()).get("BearerToken", {})
    scheme, _, token = str(settings.get("value", "")).partition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme.capitalize() or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )
