"""The routing table: the one value that the operator decides and the proxy serves from.

Owns its types and its form in a ConfigMap. It says which models exist, under which names, and
which Service stands behind each. It is made from declared specs alone, so a model scaled to zero
stays in it; which pods are ready comes from EndpointSlices, which the proxy watches itself.
It does no IO and imports the standard library only, so that a proxy worker stays small.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORMAT_VERSION = "1"
"""Version of the ConfigMap's layout; a proxy refuses a table of another version."""

KEY_VERSION = "version"
KEY_REVISION = "revision"
KEY_ROUTES = "routes.json"

MODEL_ENDPOINTS_SELECTOR = "app.kubernetes.io/managed-by=nimway,app.kubernetes.io/component=model"
"""Label selector of the EndpointSlices behind routes: they carry the labels of their Service."""

SERVICE_LABEL = "kubernetes.io/service-name"
"""Label in which Kubernetes names the Service that an EndpointSlice belongs to."""

HTTP_PORT_NAME = "http"
"""Name of the model port in the Service, hence in its EndpointSlices."""


class RoutesError(ValueError):
    """A ConfigMap does not hold a valid routing table; the text names the key or field."""


@dataclass(frozen=True, slots=True)
class Route:
    """One NIMModel as the proxy needs it.

    `model` is the name the NIM answers to. `names` are the served names that lead here: `model`
    and its aliases, less those that another object holds. `service` is the Service in `namespace`
    whose EndpointSlices list the pods. `created_s` is the object's creationTimestamp, Unix seconds.
    """

    namespace: str
    name: str
    model: str
    names: tuple[str, ...]
    service: str
    created_s: int

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
    entries = {
        route.key: {
            "model": route.model,
            "names": list(route.names),
            "service": route.service,
            "created": route.created_s,
        }
        for route in routes
    }
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"


def _revision(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _decode_route(key: str, entry: Any) -> Route:
    namespace, slash, name = key.partition("/")
    if not (namespace and slash and name) or not isinstance(entry, dict):
        raise RoutesError(f"{KEY_ROUTES}: {key!r}: expected 'namespace/name' and an object")
    names = entry.get("names")
    if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
        raise RoutesError(f"{KEY_ROUTES}: {key}.names: expected a list of strings")
    created_s = entry.get("created")
    if not isinstance(created_s, int):
        raise RoutesError(f"{KEY_ROUTES}: {key}.created: expected Unix seconds")
    return Route(
        namespace=namespace,
        name=name,
        model=_text(key, entry, "model"),
        names=tuple(names),
        service=_text(key, entry, "service"),
        created_s=created_s,
    )


def _text(key: str, entry: Mapping[str, Any], field: str) -> str:
    value = entry.get(field)
    if not isinstance(value, str) or not value:
        raise RoutesError(f"{KEY_ROUTES}: {key}.{field}: expected a non-empty string")
    return value


def _refuse_duplicates(table: RoutingTable) -> None:
    owner: dict[str, str] = {}
    for route in table.routes:
        for name in route.names:
            if name in owner:
                raise RoutesError(
                    f"{KEY_ROUTES}: {name!r} is claimed by {owner[name]} and {route.key}"
                )
            owner[name] = route.key
