"""What the proxy learns from Kubernetes: the routing table and the endpoints, kept current.

Owns the watches: list, then watch, and list again at each reconnect and at least every
`RELIST_PERIOD_S`, so that a missed DELETE cannot live. What it learns goes to its `Sink` at once.
Bad input and an API server that is away change nothing: the last good table stays.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

from nimway import routes
from nimway.proxy.assembly import Assembly, ConfigMap
from nimway.proxy.endpoints import EndpointSlice, Metadata, NamespaceEndpoints
from nimway.proxy.kube import KubeError
from nimway.proxy.messages import ServiceEndpoints
from nimway.tasks import spawn

RELIST_PERIOD_S = 50.0
LIST_TIMEOUT_S = 10.0
BACKOFF_MIN_S = 0.2
BACKOFF_MAX_S = 5.0
REFUSED_WAIT_S = 15.0
"""How long a namespace whose list is refused (no RoleBinding yet) keeps the pod from readiness."""

_FORBIDDEN = 403
_ROUTES_SUFFIX = "-routes"
"""The ConfigMap of a proxy has the name of its Service and this."""

_log = logging.getLogger(__name__)


class Reader(Protocol):
    """The two verbs the feed has."""

    async def list(self, path: str, query: dict[str, str], *, timeout_s: float) -> bytes:
        """Return the body of a list."""

    def watch(self, path: str, query: dict[str, str], *, timeout_s: float) -> AsyncIterator[bytes]:
        """Yield the lines of a watch."""


class Sink(Protocol):
    """Who is told."""

    def replace_table(self, table: routes.RoutingTable) -> None:
        """Take a new, valid routing table."""

    def confirm_table(self) -> None:
        """Take note that the API server still has this table."""

    def replace_endpoints(self, services: list[ServiceEndpoints]) -> None:
        """Take the Services whose endpoints changed."""

    def count_proxies(self, pods: int) -> None:
        """Take the number of ready pods of this proxy's own Service."""

    def set_complete(self, *, complete: bool) -> None:
        """Take note that the table and all its endpoints are known, or are not."""

    def count_table_error(self) -> None:
        """Count a routing table that was refused."""

    def count_watch_error(self, resource: str) -> None:
        """Count a list or watch that failed."""


class _ConfigMapList(msgspec.Struct):
    metadata: Metadata
    items: list[ConfigMap]


class _ConfigMapEvent(msgspec.Struct):
    type: str
    object: ConfigMap


class _SliceList(msgspec.Struct):
    metadata: Metadata
    items: list[EndpointSlice]


class _SliceEvent(msgspec.Struct):
    type: str
    object: EndpointSlice


_configmaps = msgspec.json.Decoder(_ConfigMapList)
_configmap_event = msgspec.json.Decoder(_ConfigMapEvent)
_slices = msgspec.json.Decoder(_SliceList)
_slice_event = msgspec.json.Decoder(_SliceEvent)


async def follow(
    reader: Reader,
    path: str,
    query: dict[str, str],
    *,
    take_list: Callable[[bytes], str],
    take_event: Callable[[bytes], None],
    on_error: Callable[[KubeError], None],
) -> None:
    """List and watch `path` for ever.

    `take_list` returns the resourceVersion to watch from; both raise `KubeError` for what they
    cannot read, which starts again with a list. So does what nobody thought of: a watch that ended
    by it would leave a pod that is ready and serves an old table.
    """
    backoff_s = BACKOFF_MIN_S
    while True:
        try:
            version = take_list(await reader.list(path, query, timeout_s=LIST_TIMEOUT_S))
            backoff_s = BACKOFF_MIN_S
            period_s = RELIST_PERIOD_S * random.uniform(0.9, 1.1)
            watch = reader.watch(path, {**query, "resourceVersion": version}, timeout_s=period_s)
            async for line in watch:
                if line:
                    take_event(line)
            continue
        except KubeError as error:
            on_error(error)
        except Exception as error:  # noqa: BLE001 # logged whole, counted, and tried again
            _log.exception("watching again after an unexpected error", extra=_fields(path=path))
            on_error(KubeError(0, repr(error)))
        await asyncio.sleep(backoff_s * random.uniform(0.75, 1.25))
        backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)


class Feed:
    """The watches of one proxy pod."""

    def __init__(self, reader: Reader, sink: Sink, namespace: str, configmap: str) -> None:
        self._reader = reader
        self._sink = sink
        self._path = f"/api/v1/namespaces/{namespace}/configmaps"
        self._configmap = configmap
        self._assembly = Assembly(configmap)
        self._refused = False
        self._namespaces: dict[str, _Namespace] = {}
        self._own = _Namespace(
            reader,
            sink,
            namespace,
            selector=f"{routes.SERVICE_LABEL}={configmap.removesuffix(_ROUTES_SUFFIX)}",
            publish=self._take_own,
            on_settled=_ignore,
        )
        self._revision: str | None = None

    async def run(self) -> None:
        """Follow the table's ConfigMaps for ever, and the endpoints of each of its namespaces."""
        try:
            await follow(
                self._reader,
                self._path,
                {"labelSelector": f"{routes.TABLE_LABEL}={self._configmap}"},
                take_list=self._take_list,
                take_event=self._take_event,
                on_error=self._on_error,
            )
        finally:
            for namespace in (*self._namespaces.values(), self._own):
                namespace.stop()

    def _take_list(self, body: bytes) -> str:
        try:
            found = _configmaps.decode(body)
        except msgspec.DecodeError as error:
            raise KubeError(0, f"a list of ConfigMaps cannot be read: {error}") from error
        self._assembly.replace(found.items)
        if self._assembly.has_head or self._revision is not None:
            self._take_table()
        else:
            _log.info("waiting for the routing ConfigMap", extra=_fields(name=self._configmap))
        return found.metadata.resourceVersion

    def _take_event(self, line: bytes) -> None:
        try:
            event = _configmap_event.decode(line)
        except msgspec.DecodeError as error:
            raise KubeError(0, f"an event cannot be read: {error}") from error
        if event.type == "ERROR":
            raise KubeError(0, "the watch ended with an error")
        if event.type in ("ADDED", "MODIFIED", "DELETED"):
            deleted = event.type == "DELETED"
            self._assembly.update(event.object, deleted=deleted)
            # A shard comes before the head that names it; after, it is one that was repaired.
            if self._assembly.is_head(event.object) or (self._refused and not deleted):
                self._take_table()

    def _take_table(self) -> None:
        try:
            table = self._assembly.read()
        except routes.RoutesError as error:
            self._refuse(str(error))
            return
        self._refused = False
        if table.revision != self._revision:
            self._serve(table)
            self._revision = table.revision  # only now: what fails before is tried again
        self._sink.confirm_table()

    def _serve(self, table: routes.RoutingTable) -> None:
        _log.info(
            "serving a new routing table",
            extra=_fields(revision=table.revision, models=len(table.routes)),
        )
        self._sink.replace_table(table)
        self._follow_namespaces(table.namespaces)
        policies = {route.policy for route in table.routes}
        if any(policy.max_concurrency or policy.queue_requests_max for policy in policies):
            self._own.start()

    def _take_own(self, changed: list[ServiceEndpoints]) -> None:
        """Count the pods among which models' own limits are divided; watched once one has any.

        Without the right to see them (no RoleBinding in the proxy's namespace) it stays one pod.
        """
        for service in changed:
            self._sink.count_proxies(max(1, len(service.ready)))

    def _refuse(self, reason: str) -> None:
        self._refused = True
        self._sink.count_table_error()
        _log.warning("keeping the last routing table", extra=_fields(reason=reason))

    def _on_error(self, error: KubeError) -> None:
        self._sink.count_watch_error("configmaps")
        _log.warning("watching the routing ConfigMap again", extra=_fields(reason=str(error)))

    def _follow_namespaces(self, wanted: frozenset[str]) -> None:
        for name in sorted(self._namespaces.keys() - wanted):
            self._namespaces.pop(name).stop()
        for name in sorted(wanted - self._namespaces.keys()):
            namespace = _Namespace(
                self._reader,
                self._sink,
                name,
                selector=routes.MODEL_ENDPOINTS_SELECTOR,
                publish=self._sink.replace_endpoints,
                on_settled=self._check_complete,
            )
            self._namespaces[name] = namespace
            namespace.start()
        self._check_complete()

    def _check_complete(self) -> None:
        complete = all(namespace.settled for namespace in self._namespaces.values())
        self._sink.set_complete(complete=complete)


class _Namespace:
    """The EndpointSlices of one namespace that a selector finds."""

    def __init__(
        self,
        reader: Reader,
        sink: Sink,
        name: str,
        *,
        selector: str,
        publish: Callable[[list[ServiceEndpoints]], None],
        on_settled: Callable[[], None],
    ) -> None:
        self._reader = reader
        self._sink = sink
        self._name = name
        self._selector = selector
        self._on_changed = publish
        self._on_settled = on_settled
        self._endpoints = NamespaceEndpoints(name)
        self._unpublished: dict[str, ServiceEndpoints] = {}
        self._refused_since: float | None = None
        self._task: asyncio.Task[None] | None = None
        self.settled = False

    def start(self) -> None:
        """Begin to follow, unless begun."""
        if self._task is None:
            self._task = spawn(self._run(), name=f"endpoints of {self._name}")

    def stop(self) -> None:
        """Stop, and take the endpoints out of service."""
        if self._task is not None:
            self._task.cancel()
        self._publish(self._endpoints.clear())

    async def _run(self) -> None:
        await follow(
            self._reader,
            f"/apis/discovery.k8s.io/v1/namespaces/{self._name}/endpointslices",
            {"labelSelector": self._selector},
            take_list=self._take_list,
            take_event=self._take_event,
            on_error=self._on_error,
        )

    def _take_list(self, body: bytes) -> str:
        try:
            found = _slices.decode(body)
        except msgspec.DecodeError as error:
            raise KubeError(0, f"a list of EndpointSlices cannot be read: {error}") from error
        self._publish(self._endpoints.replace(found.items))
        self._refused_since = None
        self._settle()
        return found.metadata.resourceVersion

    def _take_event(self, line: bytes) -> None:
        try:
            event = _slice_event.decode(line)
        except msgspec.DecodeError as error:
            raise KubeError(0, f"an event cannot be read: {error}") from error
        if event.type == "ERROR":
            raise KubeError(0, "the watch ended with an error")
        if event.type in ("ADDED", "MODIFIED", "DELETED"):
            deleted = event.type == "DELETED"
            self._publish(self._endpoints.update(event.object, deleted=deleted))

    def _publish(self, changed: list[ServiceEndpoints]) -> None:
        """Publish what changed, and what could not be published before."""
        self._unpublished |= {each.service: each for each in changed}
        if self._unpublished:
            self._on_changed(list(self._unpublished.values()))
            self._unpublished.clear()

    def _on_error(self, error: KubeError) -> None:
        """Try again soon; a namespace that is refused for long does not hold up the pod."""
        self._sink.count_watch_error("endpointslices")
        _log.warning(
            "watching endpoints again", extra=_fields(namespace=self._name, reason=str(error))
        )
        if error.status == _FORBIDDEN:
            now = asyncio.get_running_loop().time()
            if self._refused_since is None:
                self._refused_since = now
            elif now - self._refused_since > REFUSED_WAIT_S:
                self._settle()

    def _settle(self) -> None:
        if not self.settled:
            self.settled = True
            self._on_settled()


def _ignore() -> None:
    """Nobody waits for the own pods."""


def _fields(**fields: object) -> dict[str, dict[str, object]]:
    return {"fields": fields}
