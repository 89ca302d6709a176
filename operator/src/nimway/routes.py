"""The routing table: the one value that the operator decides and the proxy serves from.

Owns its types and its form in a ConfigMap. It says which models exist, under which names, and
which Service stands behind each. It is made from declared specs alone, so a model scaled to zero
stays in it; which pods are ready comes from EndpointSlices, which the proxy watches itself.
It does no IO and imports the standard library only, so that a proxy worker stays small.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeGuard

FORMAT_VERSION = "1"
"""Version of the ConfigMap's layout; a proxy refuses a table of another version."""

KEY_VERSION = "version"
KEY_REVISION = "revision"
KEY_ROUTES = "routes.json"

MODEL_ENDPOINTS_SELECTOR = "app.kubernetes.io/managed-by=nimway,app.kubernetes.io/component=model"
"""Label selector of the EndpointSlices behind routes: they carry the labels of their Service."""

SERVICE_LABEL = "kubernetes.io/service-name"
"""Label in which Kubernetes names the Service that an EndpointSlice belongs to."""

LEAST_REQUESTS = "LeastRequests"
PREFIX_HASH = "PrefixHash"
SESSION_HASH = "SessionHash"
STRATEGIES = (LEAST_REQUESTS, PREFIX_HASH, SESSION_HASH)

HTTP_PORT_NAME = "http"
"""Name of the model port in the Service, hence in its EndpointSlices."""


class RoutesError(ValueError):
    """A ConfigMap does not hold a valid routing table; the text names the key or field."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How requests to one model are treated; a time of None is the proxy's own default.

    `max_concurrency` (requests at one pod) and `queue_requests_max` count over all proxies: each
    worker takes its share. `retries` counts further pods to connect to. `apis` are names as in
    `NIMModel.spec.routing.apis`; empty means all.
    """

    strategy: str = LEAST_REQUESTS
    timeout_connect_s: int | None = None
    timeout_first_byte_s: int | None = None
    timeout_idle_s: int | None = None
    timeout_total_s: int | None = None
    max_concurrency: int | None = None
    queue_requests_max: int | None = None
    queue_wait_max_s: int | None = None
    retries: int = 2
    apis: tuple[str, ...] = ()


DEFAULT_POLICY = Policy()


@dataclass(frozen=True, slots=True)
class Route:
    """One NIMModel as the proxy needs it.

    `model` is the name the NIM answers to. `names` are the served names that lead here: `model`
    and its aliases, less those that another object holds; `adapters` are LoRA adapters, which the
    NIM knows by the same names. `service` is the Service in `namespace` whose EndpointSlices list
    the pods. `created_s` is the object's creationTimestamp, Unix seconds. `cold_start_s` is how
    long it lately took from waking to the first ready pod, rounded; 0 while nobody knows.
    """

    namespace: str
    name: str
    model: str
    names: tuple[str, ...]
    service: str
    created_s: int
    adapters: tuple[str, ...] = ()
    policy: Policy = DEFAULT_POLICY
    cold_start_s: int = 0

    @property
    def key(self) -> str:
        """`namespace/name` of the NIMModel."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """All routes of one NIMProxy, ordered by key, and the revision: a hash of their content."""

    routes: tuple[Route, ...]
    revision: str

    @property
    def namespaces(self) -> frozenset[str]:
        """Namespaces whose EndpointSlices the proxy has to watch."""
        return frozenset(route.namespace for route in self.routes)


def build_table(routes: "Mapping[str, Route] | list[Route] | tuple[Route, ...]") -> RoutingTable:
    """Order `routes` and hash them: equal content gives equal bytes and an equal revision."""
    values = routes.values() if isinstance(routes, Mapping) else routes
    ordered = tuple(sorted(values, key=lambda route: (route.namespace, route.name)))
    return RoutingTable(routes=ordered, revision=_revision(_routes_json(ordered)))


def encode(table: RoutingTable) -> dict[str, str]:
    """Return the `data` of the routing ConfigMap: deterministic, and readable by a person."""
    return {
        KEY_VERSION: FORMAT_VERSION,
        KEY_REVISION: table.revision,
        KEY_ROUTES: _routes_json(table.routes),
    }


def decode(data: Mapping[str, str]) -> RoutingTable:
    """Read the `data` of a routing ConfigMap.

    Raises:
        RoutesError: a key is missing, the version is unknown, the content does not match its
            revision, or an entry is malformed or claims a name twice. Nothing partial is returned.
    """
    version = data.get(KEY_VERSION)
    if version != FORMAT_VERSION:
        raise RoutesError(f"{KEY_VERSION}: expected {FORMAT_VERSION!r}, found {version!r}")
    text = data.get(KEY_ROUTES)
    if text is None:
        raise RoutesError(f"{KEY_ROUTES}: missing")
    if data.get(KEY_REVISION) != _revision(text):
        raise RoutesError(f"{KEY_REVISION}: does not match the content of {KEY_ROUTES}")
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RoutesError(f"{KEY_ROUTES}: not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise RoutesError(f"{KEY_ROUTES}: expected an object")
    table = build_table([_decode_route(key, entry) for key, entry in entries.items()])
    _refuse_duplicates(table)
    return table


def _routes_json(routes: tuple[Route, ...]) -> str:
    entries = {route.key: _encode_route(route) for route in routes}
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"


def _encode_route(route: Route) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "model": route.model,
        "names": list(route.names),
        "service": route.service,
        "created": route.created_s,
    }
    if route.adapters:
        entry["adapters"] = list(route.adapters)
    if route.cold_start_s:
        entry["coldStart"] = route.cold_start_s
    # What is as by default is left out: a person reads the exceptions, and the table stays small.
    policy = {
        field.name: value
        for field in fields(Policy)
        if (value := getattr(route.policy, field.name)) != field.default
    }
    return {**entry, "policy": policy} if policy else entry


def _revision(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _decode_route(key: str, entry: Any) -> Route:
    namespace, slash, name = key.partition("/")
    if not (namespace and slash and name) or not isinstance(entry, dict):
        raise RoutesError(f"{KEY_ROUTES}: {key!r}: expected 'namespace/name' and an object")
    created_s = entry.get("created")
    if not _is_count(created_s):
        raise RoutesError(f"{KEY_ROUTES}: {key}.created: expected Unix seconds")
    cold_start_s = entry.get("coldStart", 0)
    if not _is_count(cold_start_s):
        raise RoutesError(f"{KEY_ROUTES}: {key}.coldStart: expected whole seconds")
    return Route(
        namespace=namespace,
        name=name,
        model=_text(key, entry, "model"),
        names=_texts(key, entry, "names"),
        service=_text(key, entry, "service"),
        created_s=created_s,
        adapters=_texts(key, entry, "adapters"),
        policy=_decode_policy(f"{key}.policy", entry.get("policy", {})),
        cold_start_s=cold_start_s,
    )


def _decode_policy(where: str, entry: Any) -> Policy:
    if not isinstance(entry, dict):
        raise RoutesError(f"{KEY_ROUTES}: {where}: expected an object")
    known = {field.name for field in fields(Policy)}
    if unknown := entry.keys() - known:
        raise RoutesError(f"{KEY_ROUTES}: {where}.{min(unknown)}: unknown")
    values: dict[str, Any] = dict(entry)
    if values.setdefault("strategy", LEAST_REQUESTS) not in STRATEGIES:
        raise RoutesError(f"{KEY_ROUTES}: {where}.strategy: expected one of {STRATEGIES}")
    values["apis"] = _texts(where, entry, "apis")
    for name in known - {"strategy", "apis"}:
        if name in values and not _is_count(values[name]):
            raise RoutesError(f"{KEY_ROUTES}: {where}.{name}: expected a whole number")
    return Policy(**values)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _texts(key: str, entry: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = entry.get(field, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RoutesError(f"{KEY_ROUTES}: {key}.{field}: expected a list of strings")
    return tuple(value)


def _text(key: str, entry: Mapping[str, Any], field: str) -> str:
    value = entry.get(field)
    if not isinstance(value, str) or not value:
        raise RoutesError(f"{KEY_ROUTES}: {key}.{field}: expected a non-empty string")
    return value


def _refuse_duplicates(table: RoutingTable) -> None:
    owner: dict[str, str] = {}
    for route in table.routes:
        for name in (*route.names, *route.adapters):
            if name in owner:
                raise RoutesError(
                    f"{KEY_ROUTES}: {name!r} is claimed by {owner[name]} and {route.key}"
                )
            owner[name] = route.key
