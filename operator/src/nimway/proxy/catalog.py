"""What a worker serves from: models by name, endpoints by Service, and their counters.

A new table is built beside the old one, in parts if it is large, and takes its place at once;
models and endpoints that stay keep their objects, hence their counters and connections. It does no
IO.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from nimway.proxy.addresses import format_authority, is_allowed
from nimway.proxy.health import Health
from nimway.proxy.messages import RouteEntry, ServiceEndpoints
from nimway.proxy.policy import Limits, resolve
from nimway.proxy.ring import Ring
from nimway.proxy.room import Room
from nimway.proxy.settings import Settings
from nimway.routes import DEFAULT_POLICY, Policy

if TYPE_CHECKING:
    from nimway.proxy.upstream import Upstream

OWNER: Final = "nimway"
URGE_PERIOD_S: Final = 1.0
_SHED_MODELS: Final = 500
_ADOPT_MODELS: Final = 500

_ServiceKey = tuple[str, str]


class Endpoint:
    """One address that serves a model: its counters, and its idle connections, newest last."""

    __slots__ = (
        "address",
        "authority",
        "ejections",
        "health",
        "idle",
        "listed",
        "outstanding",
        "picks",
        "port",
    )

    def __init__(self, address: str, port: int) -> None:
        self.address = address
        self.port = port
        self.authority = format_authority(address, port).encode()
        self.outstanding = 0
        self.picks = 0
        self.ejections = 0
        self.health = Health()
        self.idle: list[Upstream] = []
        self.listed = True


class Model:
    """One route in this worker: who serves it, how it is treated, and its load.

    `in_flight` and `queued` are requests now; `demand_total` counts all that asked for the model.
    `plain` is that of its limits; `room` is None until a request had to wait. `waking_since` is
    when it was first asked for while it had no endpoint, 0 if it has one; `urged_at` when that was
    last reported at once. Both by the loop's clock.
    """

    __slots__ = (
        "_ring",
        "cards",
        "demand_total",
        "dirty",
        "endpoints",
        "in_flight",
        "key",
        "limits",
        "name",
        "plain",
        "queued",
        "room",
        "route",
        "urged_at",
        "waking_since",
    )

    def __init__(self, route: RouteEntry, limits: Limits, endpoints: list[Endpoint]) -> None:
        self.route = route
        self.key = route.key
        self.name = route.model
        self.cards = [
            (name, msgspec.json.encode(_card(name, route)))
            for name in (*route.names, *route.adapters)
        ]
        self.limits = limits
        self.plain = limits.plain
        self.endpoints = endpoints
        self.in_flight = 0
        self.queued = 0
        self.demand_total = 0
        self.dirty = False
        self.room: Room | None = None
        self.waking_since = 0.0
        self.urged_at = 0.0
        self._ring: Ring[Endpoint] | None = None

    def adopt(self, other: "Model") -> None:
        """Become what `other` is, but for the load and who waits; `other` keeps what was."""
        route, cards = self.route, self.cards
        self.route, self.name = other.route, other.name
        self.cards, self.limits, self.plain = other.cards, other.limits, other.plain
        other.route, other.cards = route, cards

    def set_limits(self, limits: Limits) -> None:
        """Be treated so from now on."""
        self.limits, self.plain = limits, limits.plain

    def set_endpoints(self, endpoints: list[Endpoint]) -> None:
        """Be served by `endpoints` from now on."""
        self.endpoints = endpoints
        if endpoints:
            self.waking_since = 0.0
        self._ring = None

    def ring(self) -> Ring[Endpoint]:
        """Return the endpoints on their ring; it is built when first asked for."""
        ring = self._ring
        if ring is None:
            ring = self._ring = Ring(self.endpoints)
        return ring

    def wake(self, now: float) -> bool:
        """Take note of a request for a model without endpoints; return whether to report it now.

        It is for one that nobody waits for yet, and not more than once in `URGE_PERIOD_S`: a client
        that is refused and asks again all the time must not cost a report each.
        """
        if not self.waking_since:
            self.waking_since = now
        if self.queued or now - self.urged_at < URGE_PERIOD_S:
            return False
        self.urged_at = now
        return True

    def open_room(self) -> Room:
        """Return where requests wait."""
        if self.room is None:
            self.room = Room()
        return self.room


class _Draft:
    """A table that is being built: `changes` are models in force and what becomes of them."""

    def __init__(self, revision: str) -> None:
        self.revision = revision
        self.models: dict[str, Model] = {}
        self.names: dict[str, Model] = {}
        self.models_of: dict[_ServiceKey, list[Model]] = {}
        self.changes: list[tuple[Model, Model]] = []


class Catalog:
    """The table in force and the endpoints known, of one worker."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.names: dict[str, Model] = {}
        self.models: dict[str, Model] = {}
        self.revision = ""
        self._pods = self._workers = 1
        self._listing = b""
        self._draft = _Draft("")
        self._limits: dict[Policy, Limits] = {}
        self._spent: list[Model] = []
        self._services: dict[_ServiceKey, dict[tuple[str, int], Endpoint]] = {}
        self._models_of: dict[_ServiceKey, list[Model]] = {}

    def replace_routes(self, revision: str, routes: Iterable[RouteEntry]) -> list[Model]:
        """Serve `routes` from now on; return the models that are gone."""
        self.draft_routes(revision, routes)
        for _ in self.adopt():
            pass
        return self.commit()

    def draft_routes(self, revision: str, routes: Iterable[RouteEntry]) -> None:
        """Add `routes` to the table of `revision`, which is built beside the one in force."""
        draft = self._draft
        if draft.revision != revision:
            draft = self._draft = _Draft(revision)
        for route in routes:
            model = self._take_model(route, draft)
            draft.models[route.key] = model
            draft.models_of.setdefault((route.namespace, route.service), []).append(model)
            for name in route.names:
                draft.names[name] = model
            for name in route.adapters:
                draft.names[name] = model

    def adopt(self) -> Iterator[None]:
        """Have models that stay become what the table that was built says, some at a time.

        Between two steps the loop may turn: requests are served by the table in force.
        """
        changes = self._draft.changes
        while changes:
            for model, new in changes[-_ADOPT_MODELS:]:
                if model.route.service != new.route.service:
                    model.set_endpoints(self._list_endpoints(new.route))
                model.adopt(new)
                self._spent.append(new)
            del changes[-_ADOPT_MODELS:]
            yield

    def commit(self) -> list[Model]:
        """Serve the table that was built, and adopted, from now on; return the models that left."""
        draft, self._draft = self._draft, _Draft("")
        old, self.models = self.models, draft.models
        self.names, self._models_of = draft.names, draft.models_of
        self.revision, self._listing = draft.revision, b""
        self._limits = {}
        return [model for key, model in old.items() if key not in draft.models]

    def shed(self) -> None:
        """Free a part of what earlier tables held: thousands at once would be a pause."""
        del self._spent[-_SHED_MODELS:]

    def share_among(self, pods: int, workers: int) -> list[Model]:
        """Take a part of each limit that counts over several workers; return models concerned."""
        self._pods, self._workers = pods, workers
        self._limits = {}
        for model in self.models.values():
            model.set_limits(self._resolve(model.route))
        return [model for model in self.models.values() if model.limits.concurrency]

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
        for models_of in (self._models_of, self._draft.models_of):
            for model in models_of.get(key, ()):
                model.set_endpoints(endpoints)
        gone = [endpoint for address, endpoint in old.items() if address not in new]
        for endpoint in gone:
            endpoint.listed = False
        return gone

    def models_behind(self, service: ServiceEndpoints) -> list[Model]:
        """Return the models in force that a Service serves."""
        return self._models_of.get((service.namespace, service.service), [])

    def used_endpoints(self) -> list[tuple[str, Endpoint]]:
        """Return every listed endpoint that got a request, after the name of its first model."""
        return [
            (models[0].name, endpoint)
            for key, models in self._models_of.items()
            for endpoint in self._services.get(key, {}).values()
            if endpoint.picks
        ]

    def endpoints(self) -> list[Endpoint]:
        """Return every endpoint that is listed."""
        return [endpoint for service in self._services.values() for endpoint in service.values()]

    @property
    def listing(self) -> bytes:
        """The body of `/v1/models`, put together when first asked for."""
        if not self._listing:
            cards = sorted(card for model in self.models.values() for card in model.cards)
            self._listing = b'{"object":"list","data":[%b]}' % b",".join([c for _, c in cards])
        return self._listing

    def encode_card(self, name: str) -> bytes | None:
        """Return the body of `/v1/models/{name}`, or None where nothing has this name."""
        model = self.names.get(name)
        return None if model is None else dict(model.cards).get(name)

    def _take_model(self, route: RouteEntry, draft: _Draft) -> Model:
        model = self.models.get(route.key)
        if model is not None and model.route == route:
            return model
        new = Model(route, self._resolve(route), self._list_endpoints(route))
        if model is None:
            return new
        draft.changes.append((model, new))
        return model

    def _resolve(self, route: RouteEntry) -> Limits:
        policy = route.policy or DEFAULT_POLICY
        limits = self._limits.get(policy)
        if limits is None:
            limits = resolve(policy, self._settings, pods=self._pods, workers=self._workers)
            self._limits[policy] = limits
        return limits

    def _list_endpoints(self, route: RouteEntry) -> list[Endpoint]:
        return list(self._services.get((route.namespace, route.service), {}).values())


def _card(name: str, route: RouteEntry) -> dict[str, str | int | None]:
    adapter = name in route.adapters
    return {
        "id": name,
        "object": "model",
        "created": route.created_s,
        "owned_by": OWNER,
        "root": name if adapter else route.model,
        "parent": route.model if adapter else None,
    }
