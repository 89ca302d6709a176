"""EndpointSlices to endpoints: which addresses of a Service may get new requests (pure).

Owns the reading of slices as the API server sends them and the state of one namespace. A
terminating or unready pod gets no new request; a Service may have several slices.
"""

import msgspec

from nimway.proxy.messages import ServiceEndpoints
from nimway.routes import HTTP_PORT_NAME, SERVICE_LABEL

Address = tuple[str, int]


class Conditions(msgspec.Struct):
    """discovery.k8s.io/v1 EndpointConditions; an absent `ready` means true."""

    ready: bool | None = None
    terminating: bool | None = None


class SliceEndpoint(msgspec.Struct):
    """discovery.k8s.io/v1 Endpoint: its addresses are the same pod."""

    addresses: list[str] = []
    conditions: Conditions = msgspec.field(default_factory=Conditions)


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


class NamespaceEndpoints:
    """The slices of one namespace, and what they come to per Service."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._slices: dict[str, dict[str, frozenset[Address]]] = {}  # of each Service, by name
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
        service, addresses = _read(item)
        self._owners[item.metadata.name] = service
        self._slices.setdefault(service, {})[item.metadata.name] = addresses
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
            addresses: frozenset[Address] = frozenset().union(
                *self._slices.get(service, {}).values()
            )
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


def _read(item: EndpointSlice) -> tuple[str, frozenset[Address]]:
    """Return the Service of a slice and the addresses in it that may get new requests."""
    service = (item.metadata.labels or {}).get(SERVICE_LABEL, "")
    port = next((p.port for p in item.ports or () if p.name == HTTP_PORT_NAME), None)
    if port is None or not service or item.addressType == "FQDN":
        return service, frozenset()
    return service, frozenset(
        (endpoint.addresses[0], port)
        for endpoint in item.endpoints or ()
        if endpoint.addresses
        and endpoint.conditions.ready is not False
        and not endpoint.conditions.terminating
    )
