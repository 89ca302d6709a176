"""EndpointSlices to endpoints: which addresses of a Service may get new requests (pure).

Owns the reading of slices as the API server sends them and the state of one namespace. A
terminating or unready pod gets no new request; a Service may have several slices. With two address
families each pod is in two of them, and counts once: by its IPv4 address.
"""

from collections.abc import Collection
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

    `known` are the pods that it lists in IPv4, ready or not.
    """

    ready: frozenset[tuple[Address, str]]
    known: frozenset[str]
    is_ipv6: bool


class NamespaceEndpoints:
    """The slices of one namespace, and what they come to per Service."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._slices: dict[str, dict[str, _Slice]] = {}  # of each Service, by name
        self._owners: dict[str, str] = {}
        self._services: dict[str, frozenset[Address]] = {}

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
        return [self._build(service) for service in self._services]

    def clear(self) -> list[ServiceEndpoints]:
        """Forget everything; return the Services that had endpoints, now without."""
        return self.replace([])

    def _refresh(self, services: set[str]) -> list[ServiceEndpoints]:
        changed = []
        for service in sorted(services):
            addresses = _join(self._slices.get(service, {}).values())
            if addresses == self._services.get(service, frozenset()):
                continue
            if addresses:
                self._services[service] = addresses
            else:
                del self._services[service]
            changed.append(self._build(service))
        return changed

    def _build(self, service: str) -> ServiceEndpoints:
        ready = sorted(self._services.get(service, ()))
        return ServiceEndpoints(namespace=self._namespace, service=service, ready=ready)


def _join(slices: Collection[_Slice]) -> frozenset[Address]:
    """Return the addresses of all slices, of each pod those of one family."""
    known: frozenset[str] = frozenset()
    if any(each.is_ipv6 for each in slices):
        known = frozenset().union(*(each.known for each in slices))
    return frozenset(
        address
        for each in slices
        for address, pod in each.ready
        if not (each.is_ipv6 and pod in known)
    )


def _read(item: EndpointSlice) -> tuple[str, _Slice]:
    """Return the Service of a slice and what the slice says of its pods."""
    service = (item.metadata.labels or {}).get(SERVICE_LABEL, "")
    is_ipv6 = item.addressType == _IPV6
    port = next((p.port for p in item.ports or () if p.name == HTTP_PORT_NAME), None)
    if port is None or not service or item.addressType == "FQDN":
        return service, _Slice(frozenset(), frozenset(), is_ipv6)
    pods = [(_uid(endpoint), endpoint) for endpoint in item.endpoints or () if endpoint.addresses]
    ready = frozenset(
        ((endpoint.addresses[0], port), uid)
        for uid, endpoint in pods
        if endpoint.conditions.ready is not False and not endpoint.conditions.terminating
    )
    known = frozenset() if is_ipv6 else frozenset(uid for uid, _ in pods if uid)
    return service, _Slice(ready, known, is_ipv6)


def _uid(endpoint: SliceEndpoint) -> str:
    return endpoint.targetRef.uid if endpoint.targetRef is not None else ""
