"""What a worker serves from: models by name, endpoints by Service, and their counters.

A new table is built beside the old one and takes its place by one assignment; models and endpoints
that stay keep their objects, hence their counters and connections. It does no IO.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from nimway.proxy.addresses import is_allowed
from nimway.proxy.health import Health
from nimway.proxy.messages import RouteEntry, ServiceEndpoints
from nimway.proxy.settings import Settings

if TYPE_CHECKING:
    from nimway.proxy.upstream import Upstream

OWNER = "nimway"

_ServiceKey = tuple[str, str]


class Endpoint:
    """One address that serves a model: its counters, and its idle connections, newest last."""

    __slots__ = ("address", "authority", "health", "idle", "listed", "outstanding", "port")

    def __init__(self, address: str, port: int) -> None:
        self.address = address
        self.port = port
        host = f"[{address}]" if ":" in address else address
        self.authority = f"{host}:{port}".encode()
        self.outstanding = 0
        self.health = Health()
        self.idle: list[Upstream] = []
        self.listed = True


class Model:
    """One route in this worker: who serves it, and its load.

    `in_flight` and `queued` are requests now; `demand_total` counts all that asked for the model.
    """

    __slots__ = (
        "demand_total",
        "dirty",
        "endpoints",
        "in_flight",
        "key",
        "label",
        "name",
        "queued",
        "route",
    )

    def __init__(self, route: RouteEntry, endpoints: list[Endpoint]) -> None:
        self.route = route
        self.key = route.key
        self.name = route.model
        self.label = msgspec.json.encode(route.model)  # ready for the access log
        self.endpoints = endpoints
        self.in_flight = 0
        self.queued = 0
        self.demand_total = 0
        self.dirty = False


class Catalog:
    """The table in force and the endpoints known, of one worker."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.names: dict[str, Model] = {}
        self.models: dict[str, Model] = {}
        self.revision = ""
        self.listing = _encode_listing({})
        self._services: dict[_ServiceKey, dict[tuple[str, int], Endpoint]] = {}
        self._models_of: dict[_ServiceKey, list[Model]] = {}

    def replace_routes(self, revision: str, routes: Iterable[RouteEntry]) -> None:
        """Serve `routes` from now on."""
        models: dict[str, Model] = {}
        names: dict[str, Model] = {}
        models_of: dict[_ServiceKey, list[Model]] = {}
        for route in routes:
            model = self._take_model(route)
            models[route.key] = model
            models_of.setdefault((route.namespace, route.service), []).append(model)
            for name in route.names:
                names[name] = model
        listing = _encode_listing(names)
        self.models, self.names, self.listing, self.revision = models, names, listing, revision
        self._models_of = models_of

    def replace_endpoints(self, service: ServiceEndpoints) -> list[Endpoint]:
        """Let new requests go to these endpoints of a Service; return those that left."""
        key = (service.namespace, service.service)
        old = self._services.get(key, {})
        new = {
            address: old.get(address) or Endpoint(*address)
            for address in service.ready
            if is_allowed(address[0], allow_loopback=self._settings.allow_loopback)
        }
        if new:
            self._services[key] = new
        else:
            self._services.pop(key, None)
        endpoints = list(new.values())
        for model in self._models_of.get(key, ()):
            model.endpoints = endpoints
        gone = [endpoint for address, endpoint in old.items() if address not in new]
        for endpoint in gone:
            endpoint.listed = False
        return gone

    def endpoints(self) -> list[Endpoint]:
        """Return every endpoint that is listed."""
        return [endpoint for service in self._services.values() for endpoint in service.values()]

    def encode_card(self, name: str) -> bytes | None:
        """Return the body of `/v1/models/{name}`, or None where nothing has this name."""
        model = self.names.get(name)
        return None if model is None else msgspec.json.encode(_card(name, model))

    def _take_model(self, route: RouteEntry) -> Model:
        key = (route.namespace, route.service)
        endpoints = list(self._services.get(key, {}).values())
        model = self.models.get(route.key)
        if model is None:
            return Model(route, endpoints)
        if model.route != route:
            model.route = route
            model.name = route.model
            model.label = msgspec.json.encode(route.model)
        model.endpoints = endpoints
        return model


def _card(name: str, model: Model) -> dict[str, str | int | None]:
    return {
        "id": name,
        "object": "model",
        "created": model.route.created_s,
        "owned_by": OWNER,
        "root": model.name,
        "parent": None,
    }


def _encode_listing(names: dict[str, Model]) -> bytes:
    cards = [_card(name, names[name]) for name in sorted(names)]
    return msgspec.json.encode({"object": "list", "data": cards})
