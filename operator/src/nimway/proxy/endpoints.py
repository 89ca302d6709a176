"""EndpointSlices to endpoints: which addresses of a Service may get new requests (pure).

Owns the reading of slices as the API server sends them and the state of one namespace. A
terminating pod gets no new request, an unready one is told apart; a Service may have several
slices. With two address families each pod is in two of them, and counts once: by its IPv4 address.
"""

from typing import NamedTuple

import msgspec

from nimway.proxy.messages import ServiceEndpoints
from nimway.routes import HTTP_PORT_NAME, SERVICE_LABEL

Address = tuple[str, int]
_IPV6 = "IPv6"


class Conditions(msgspec.Struct):
    """discovery.k8s.io/v1 EndpointConditions; an absent `ready` means true."""

    ready: bool | None = None
    terminating: bool | None = None


class Target(msgspec.Struct):
    """v1 ObjectReference: the pod behind an endpoint, if it has one."""

    uid: str = ""


class SliceEndpoint(msgspec.Struct):
    """discovery.k8s.io/v1 Endpoint: its addresses are the same pod."""

    addresses: list[str] = []
    conditions: Conditions = msgspec.field(default_factory=Conditions)
    targetRef: Target | None = None  # noqa: N815 # the API's name


class Port(msgspec.Struct):
    """discovery.k8s.io/v1 EndpointPort."""

    name: str | None = None
    port: int | None = None


class Metadata(msgspec.Struct):
    """What is read of an object's metadata."""

    name: str = ""
    resourceVersion: str = ""  # noqa: N815 # the API's name
    labels: dict[str, str] | None = None


class EndpointSlice(msgspec.Struct):
    """discovery.k8s.io/v1 EndpointSlice."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)
    addressType: str = "IPv4"  # noqa: N815 # the API's name
    endpoints: list[SliceEndpoint] | None = None
    ports: list[Port] | None = None


class _Slice(NamedTuple):
    """What one slice says: the addresses that may get requests, each with its pod's uid or "".

    `starting` are those of unready pods that stay, `known` the pods that it lists in IPv4.
    """

    ready: frozenset[tuple[Address, str]]
    starting: frozenset[tuple[Address, str]]
    known: frozenset[str]
    is_ipv6: bool


class NamespaceEndpoints:
    """The slices of one namespace, and what they come to per Service."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._slices: dict[str, dict[str, _Slice]] = {}  # of each Service, by name
        self._owners: dict[str, str] = {}
        self._services: dict[str, ServiceEndpoints] = {}

    def replace(self, slices: list[EndpointSlice]) -> list[ServiceEndpoints]:
        """Take a full list; return the Services whose endpoints differ from before."""
        self._slices, self._owners = {}, {}
        for item in slices:
            self._put(item)
        return self._refresh(self._slices.keys() | self._services.keys())

    def update(self, item: EndpointSlice, *, deleted: bool) -> list[ServiceEndpoints]:
        """Take one event; return the Services whose endpoints differ from before."""
        touched = self._take(item.metadata.name)
        if not deleted:
            touched |= self._put(item)
        return self._refresh(touched)

    def _put(self, item: EndpointSlice) -> set[str]:
        service, read = _read(item)
        self._owners[item.metadata.name] = service
        self._slices.setdefault(service, {})[item.metadata.name] = read
        return {service}

    def _take(self, name: str) -> set[str]:
        service = self._owners.pop(name, None)
        if service is None:
            return set()
        slices = self._slices[service]
        del slices[name]
        if not slices:
            del self._slices[service]
        return {service}

    def snapshot(self) -> list[ServiceEndpoints]:
        """Return all Services that have endpoints."""
        return list(self._services.values())

    def clear(self) -> list[ServiceEndpoints]:
        """Forget everything; return the Services that had endpoints, now without."""
        return self.replace([])

    def _refresh(self, services: set[str]) -> list[ServiceEndpoints]:
        changed = []
        for service in sorted(services):
            found = self._build(service)
            if found == self._services.get(service, ServiceEndpoints(self._namespace, service, [])):
                continue
            if found.ready or found.starting:
                self._services[service] = found
            else:
                del self._services[service]
            changed.append(found)
        return changed

    def _build(self, service: str) -> ServiceEndpoints:
        """Add up the slices of a Service, of each pod the addresses of one family."""
        slices = self._slices.get(service, {}).values()
        known: frozenset[str] = frozenset()
        if any(each.is_ipv6 for each in slices):
            known = frozenset().union(*(each.known for each in slices))
        ready, starting = (
            {
                address
                for each in slices
                for address, pod in (each.ready if is_ready else each.starting)
                if not (each.is_ipv6 and pod in known)
            }
            for is_ready in (True, False)
        )
        return ServiceEndpoints(self._namespace, service, sorted(ready), sorted(starting - ready))


def _read(item: EndpointSlice) -> tuple[str, _Slice]:
    """Return the Service of a slice and what the slice says of its pods."""
    service = (item.metadata.labels or {}).get(SERVICE_LABEL, "")
    is_ipv6 = item.addressType == _IPV6
    port = next((p.port for p in item.ports or () if p.name == HTTP_PORT_NAME), None)
    if port is None or not service or item.addressType == "FQDN":
        return service, _Slice(frozenset(), frozenset(), frozenset(), is_ipv6)
    pods = [(_uid(endpoint), endpoint) for endpoint in item.endpoints or () if endpoint.addresses]
    ready, starting = (
        frozenset(
            ((endpoint.addresses[0], port), uid)
            for uid, endpoint in pods
            if not endpoint.conditions.terminating
            and (endpoint.conditions.ready is not False) is is_ready
        )
        for is_ready in (True, False)
    )
    known = frozenset() if is_ipv6 else frozenset(uid for uid, _ in pods if uid)
    return service, _Slice(ready, starting, known, is_ipv6)


def _uid(endpoint: SliceEndpoint) -> str:
    return endpoint.targetRef.uid if endpoint.targetRef is not None else ""
