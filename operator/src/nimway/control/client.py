"""Raw JSON over the official client: the one place where the API server is called.

Owns connections, credentials and the translation of failures into one family of errors. It decides
nothing and repeats nothing: retrying is the work queue's. Objects are plain dictionaries, since the
generated model classes cost more CPU than everything else in a reconcile.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
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
CONNECT_TIMEOUT_S = 5.0
FROZEN_S = 5.0
"""How much longer than it was asked for a watch may last before it counts as frozen."""

LIST_PAGE_ITEMS = 100
LINE_BYTES_MAX = 8 << 20
"""Of one watch event: several times what etcd takes of an object."""

CONNECTIONS_UNLIMITED = 0
"""Each watch holds one, so a number would be one of namespaces; workers bound all others."""

CREATE_ONLY_VERSION = "1"
"""A resourceVersion that no object has: an apply that carries it can create, but not change."""

_APPLY = "application/apply-patch+yaml"
_APPLY_OPTIONS = {
    "fieldManager": FIELD_MANAGER,
    "force": "true",
    # Validation would parse the body a second time, 4 % of the API server's CPU in a burst, to look
    # for fields that come twice; unknown ones an apply refuses anyway.
    "fieldValidation": "Ignore",
}
_JSON = "application/json"
_JSON_PATCH = "application/json-patch+json"
_OK = 200
_INTERNAL = 500


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


class ServerError(TransientError):
    """500 with the reason InternalError: the server says what failed, such as a webhook it asks."""


class ExpiredError(ApiError):
    """A list or watch cannot go on from where it was (410, or ended by an error): list anew."""


class ConfigurationError(Exception):
    """There is no usable cluster configuration; the text says what to do."""


class Head(msgspec.Struct, rename="camel", gc=False):
    """What tells one state of an object from another."""

    name: str
    uid: str
    resource_version: str
    namespace: str = ""


class _Headed(msgspec.Struct):
    metadata: Head


class _ListMetadata(msgspec.Struct):
    version: str = msgspec.field(name="resourceVersion")
    token: str = msgspec.field(name="continue", default="")


class _Page(msgspec.Struct):
    metadata: _ListMetadata
    items: list[msgspec.Raw]


class _Event(msgspec.Struct):
    type: str
    object: Manifest


_headed = msgspec.json.Decoder(_Headed)
_page = msgspec.json.Decoder(_Page)
_event = msgspec.json.Decoder(_Event)


class Listed:
    """One object of a list, read only as far as somebody asks."""

    __slots__ = ("_kind", "_raw", "head")

    def __init__(self, kind: Kind, raw: msgspec.Raw) -> None:
        self._kind = kind
        self._raw = raw
        self.head = _headed.decode(raw).metadata

    def manifest(self) -> Manifest:
        """Return all of it."""
        # Items of a list leave these two out, and who reads one object wants them.
        kind = {"apiVersion": self._kind.api_version, "kind": self._kind.kind}
        return {**msgspec.json.decode(self._raw), **kind}


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
        async for page, version in self.listed(kind, namespace, selector=selector):
            yield [each.manifest() for each in page], version

    async def listed(
        self, kind: Kind, namespace: str | None, *, selector: str = ""
    ) -> AsyncIterator[tuple[list[Listed], str]]:
        """Yield the same, each object's body yet unread."""
        query = {"limit": str(LIST_PAGE_ITEMS)}
        if selector:
            query["labelSelector"] = selector
        path = kind.path(namespace)
        while True:
            content = await self._send("GET", path, query=query)
            try:
                page = _page.decode(content)
                items = [Listed(kind, raw) for raw in page.items]
            except msgspec.DecodeError as error:
                raise TransientError(0, "BadAnswer", f"GET {path}: {error}") from error
            yield items, page.metadata.version
            if not page.metadata.token:
                return
            query["continue"] = page.metadata.token

    async def watch(
        self,
        kind: Kind,
        namespace: str | None,
        *,
        selector: str = "",
        version: str,
        duration_s: float,
    ) -> AsyncGenerator[tuple[str, Manifest], None]:
        """Yield what happens after `version`, as event type and object, bookmarks included.

        The API server ends it after `duration_s`. One that lasts longer is frozen.

        Raises:
            ExpiredError: only a new list helps.
            ApiError: it broke off; it can go on from the last version that was seen.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(round(duration_s)),
        }
        if selector:
            query["labelSelector"] = selector
        path = kind.path(namespace)
        limits = aiohttp.ClientTimeout(total=duration_s + FROZEN_S, connect=CONNECT_TIMEOUT_S)
        with _answering(f"watching {path}"):
            async with await self._open("GET", path, query=query, limits=limits) as answer:
                if answer.status != _OK:
                    raise _error(answer.status, await answer.read())
                async for line in _lines(answer):
                    yield _read_event(line)

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
            query=_APPLY_OPTIONS,
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
        content = await self._send(
            method, path, query=query, body=body, content_type=content_type, timeout_s=timeout_s
        )
        return msgspec.json.decode(content)

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Manifest | list[Manifest] | None = None,
        content_type: str = _JSON,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> bytes:
        with _answering(f"{method} {path}"):
            async with asyncio.timeout(timeout_s):
                answer = await self._open(
                    method, path, query=query, body=body, content_type=content_type
                )
                content = await answer.read()
        if answer.status >= 400:  # noqa: PLR2004 - HTTP's boundary between success and failure
            raise _error(answer.status, content)
        return content

    async def _open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Manifest | list[Manifest] | None = None,
        content_type: str = _JSON,
        limits: aiohttp.ClientTimeout | None = None,
    ) -> aiohttp.ClientResponse:
        headers = {
            "Accept": _JSON,
            # The API server would spend more CPU on compressing lists than a network saves.
            "Accept-Encoding": "identity",
            "Content-Type": content_type,
            "User-Agent": self._agent,
        }
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = f"{self._host}{path}" + (f"?{urlencode(query)}" if query else "")
        answer = await self._api.call_api(method, url, headers, body, _request_timeout=limits)
        response: aiohttp.ClientResponse = answer.response
        return response


@contextlib.contextmanager
def _answering(what: str) -> Iterator[None]:
    """Have a connection that fails or is silent raise TransientError, which tells `what`."""
    try:
        yield
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        text = str(error) or type(error).__name__
        raise TransientError(0, "NoAnswer", f"{what}: {text}") from error


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield whole lines; the rest after the last one is an event that was cut off."""
    carry = b""
    async for chunk in answer.content.iter_any():
        *lines, carry = (carry + chunk).split(b"\n")
        for line in lines:
            yield line
        if len(carry) > LINE_BYTES_MAX:
            raise ExpiredError(0, "BadEvent", f"a watch event exceeds {LINE_BYTES_MAX} bytes")
    if carry:
        raise ExpiredError(0, "BadEvent", "a watch ended within an event")


def _read_event(line: bytes) -> tuple[str, Manifest]:
    try:
        event = _event.decode(line)
    except msgspec.DecodeError as error:
        raise ExpiredError(0, "BadEvent", f"a watch event cannot be read: {error}") from error
    if event.type == "ERROR":
        status = event.object
        raise ExpiredError(
            status.get("code", 0), status.get("reason", ""), status.get("message", "")
        )
    return event.type, event.object


_TERMINATING = "NamespaceTerminating"
"""Cause in a Status (core/v1 `NamespaceTerminatingCause`)."""

_ERRORS: dict[int, type[ApiError]] = {
    400: InvalidError,
    401: ForbiddenError,
    403: ForbiddenError,
    404: NotFoundError,
    405: InvalidError,
    409: ConflictError,
    410: ExpiredError,
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
    if (status, reason) == (_INTERNAL, "InternalError"):
        kind = ServerError
    return kind(status, reason, message or f"HTTP {status}")


async def load_configuration() -> kubernetes_client.Configuration:
    """Return the pod's own configuration, or the one that KUBECONFIG names.

    Raises:
        ConfigurationError: there is neither, or it cannot be read.
    """
    configuration = kubernetes_client.Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            kubernetes_config.load_incluster_config(client_configuration=configuration)
        else:
            # Left to itself the client would use what the variable said when it was imported.
            await kubernetes_config.load_kube_config(
                os.environ.get("KUBECONFIG"), client_configuration=configuration
            )
    except Exception as error:  # the loader meets a broken file with any of them
        why = " ".join(str(error).split())
        raise ConfigurationError(
            f"no cluster configuration: run in a pod, or set KUBECONFIG ({why})"
        ) from error
    configuration.connection_pool_maxsize = CONNECTIONS_UNLIMITED
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
