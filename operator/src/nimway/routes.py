"""The routing table: the one value that the operator decides and the proxy serves from.

Owns its types and its form in ConfigMaps. It says which models exist, under which names, and
which Service stands behind each. It is made from declared specs alone, so a model scaled to zero
stays in it; which pods are ready comes from EndpointSlices, which the proxy watches itself.
It does no IO and imports the standard library only, so that a proxy worker stays small.

A table lies in its *head*, the ConfigMap that has its version and revision. While it is small, its
routes stand there too, for people to read. A larger one is cut into *shards*, each compressed in a
ConfigMap of its own that is named by its content: it never changes, a change of one route makes
one new shard, and a head that names all its shards is a whole table or none.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeGuard

FORMAT_VERSION = "1"
"""Version of the ConfigMap's layout; a proxy refuses a table of another version."""

KEY_VERSION = "version"
KEY_REVISION = "revision"
KEY_ROUTES = "routes.json"
KEY_SHARDS = "shards"
"""In the head of a large table: a line for each shard, its digest and its number of routes."""

KEY_PACKED = "routes.json.gz"
"""In a shard's `binaryData`."""

TABLE_LABEL = "nimway.dev/routes"
"""Label of a table's ConfigMaps, by which a proxy finds them: the name of the head."""

READABLE_BYTES_MAX = 400_000
"""Above this many bytes of JSON, without its indentation, a table is cut into shards."""

SHARD_BYTES_MIN = 256 * 1024
SHARD_BYTES_MAX = 900_000
"""JSON in one shard: below the 1 MiB of a ConfigMap even where it cannot be compressed."""

TABLE_BYTES_MAX = 16 * 1024 * 1024
"""JSON of a whole table: 60,000 models with ordinary names, 15,000 with the longest."""

_CUTS = 256
"""One key in so many may end a shard. The keys themselves decide, so that a new route changes its
own shard and not all that follow."""

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

READY_PATH = "/v1/health/ready"
"""Where a NIM says that its model is loaded."""


class RoutesError(ValueError):
    """A ConfigMap does not hold a valid routing table; the text names the key or field."""


class MissingShardError(RoutesError):
    """The head names a shard that is not there, or not there yet."""


class TableTooLargeError(ValueError):
    """A table does not fit; the text says by how much."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How requests to one model are treated; a time of None is the proxy's own default.

    `max_concurrency` (requests at one pod) and `queue_requests_max` count over all pods of a proxy:
    each worker takes its share. `retries` counts further pods to connect to. `apis` are names as in
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
    `ready_path` is what a pod's kubelet asks it for; empty where startup and readiness differ.
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
    ready_path: str = READY_PATH

    @property
    def key(self) -> str:
        """`namespace/name` of the NIMModel."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a large table: a hash of its content, and how many routes it has."""

    digest: str
    routes: int


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """All routes of one NIMProxy, ordered by key, and the revision: a hash of their content.

    `shards` are the parts of a table that is too large to be read by people, in order.
    """

    routes: tuple[Route, ...]
    revision: str
    shards: tuple[Shard, ...] = ()
    json_bytes: int = field(default=0, compare=False)

    @property
    def namespaces(self) -> frozenset[str]:
        """Namespaces whose EndpointSlices the proxy has to watch."""
        return frozenset(route.namespace for route in self.routes)


def build_table(routes: "Mapping[str, Route] | list[Route] | tuple[Route, ...]") -> RoutingTable:
    """Order `routes` and hash them: equal content gives equal bytes and an equal revision."""
    values = routes.values() if isinstance(routes, Mapping) else routes
    ordered = tuple(sorted(values, key=lambda route: (route.namespace, route.name)))
    lines = [_line(route) for route in ordered]
    size = sum(map(len, lines))
    if size <= READABLE_BYTES_MAX:
        return RoutingTable(ordered, _digest(_readable(ordered)), json_bytes=size)
    shards = tuple(Shard(_digest(_join(part)), len(part)) for part in _cut(ordered, lines))
    return RoutingTable(ordered, _digest(_list_shards(shards)), shards, size)


def encode(table: RoutingTable) -> dict[str, str]:
    """Return the `data` of the table's head: deterministic, and readable by a person.

    Raises:
        TableTooLargeError: it has more than `TABLE_BYTES_MAX` of JSON.
    """
    if table.json_bytes > TABLE_BYTES_MAX:
        raise TableTooLargeError(
            f"the routing table of {len(table.routes)} models has {table.json_bytes} bytes, "
            f"more than {TABLE_BYTES_MAX}"
        )
    content = (
        {KEY_SHARDS: _list_shards(table.shards)}
        if table.shards
        else {KEY_ROUTES: _readable(table.routes)}
    )
    return {KEY_VERSION: FORMAT_VERSION, KEY_REVISION: table.revision, **content}


def encode_shards(table: RoutingTable, known: Mapping[str, str]) -> dict[str, str]:
    """Return the shards' `binaryData[KEY_PACKED]` by digest: base64 of gzip of JSON.

    What is `known` from before (the same form) is taken over, for compressing takes time.
    """
    packed, at = {}, 0
    for shard in table.shards:
        part = table.routes[at : at + shard.routes]
        at += shard.routes
        packed[shard.digest] = known.get(shard.digest) or _pack(_join(map(_line, part)))
    return packed


def shard_name(head: str, digest: str) -> str:
    """Return the name of the ConfigMap of a shard, given its head's."""
    return f"{head}-{digest}"


def decode(
    data: Mapping[str, str], shards: "Mapping[str, tuple[Route, ...]] | None" = None
) -> RoutingTable:
    """Read the `data` of a table's head; `shards` are the routes of each shard, by its digest.

    Raises:
        MissingShardError: a shard that the head names is not among `shards`.
        RoutesError: a key is missing, the version is unknown, the content does not match its
            revision, or an entry is malformed or claims a name twice. Nothing partial is returned.
    """
    version = data.get(KEY_VERSION)
    if version != FORMAT_VERSION:
        raise RoutesError(f"{KEY_VERSION}: expected {FORMAT_VERSION!r}, found {version!r}")
    key = KEY_SHARDS if KEY_SHARDS in data else KEY_ROUTES
    text = data.get(key)
    if text is None:
        raise RoutesError(f"{KEY_ROUTES}: missing")
    revision = _digest(text)
    if data.get(KEY_REVISION) != revision:
        raise RoutesError(f"{KEY_REVISION}: does not match the content of {key}")
    if key == KEY_SHARDS:
        named = _read_shards(text)
        table = RoutingTable(_gather(named, shards or {}), revision, named)
    else:
        routes = sorted(_decode_routes(text), key=lambda route: (route.namespace, route.name))
        table = RoutingTable(tuple(routes), revision)
    _refuse_duplicates(table)
    return table


def decode_shard(digest: str, packed: str) -> tuple[Route, ...]:
    """Read a shard's `binaryData[KEY_PACKED]`.

    Raises:
        RoutesError: it is damaged, too large, not the content that `digest` names, or malformed.
    """
    try:
        unpacker = zlib.decompressobj(_GZIP)
        limit = SHARD_BYTES_MAX + 1
        content = unpacker.decompress(base64.b64decode(packed, validate=True), limit)
        text = content.decode()
    except (ValueError, zlib.error) as error:
        raise RoutesError(f"{KEY_PACKED}: {error}") from error
    if not unpacker.eof or _digest(text) != digest:
        raise RoutesError(f"{KEY_PACKED}: does not match the digest {digest}")
    return tuple(_decode_routes(text))


_GZIP = 16 + zlib.MAX_WBITS
"""The gzip format (zlib manual, `deflateInit2`), so that `gunzip` reads it; its time stays 0."""


def _readable(routes: tuple[Route, ...]) -> str:
    entries = {route.key: _encode_route(route) for route in routes}
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"


def _line(route: Route) -> str:
    entry = json.dumps(_encode_route(route), separators=(",", ":"))
    return f"{json.dumps(route.key)}:{entry}"


def _join(lines: Iterable[str]) -> str:
    return "{" + ",\n".join(lines) + "}\n"


def _cut(routes: tuple[Route, ...], lines: list[str]) -> Iterator[list[str]]:
    """Yield the lines of each shard."""
    part: list[str] = []
    size = 0
    for route, line in zip(routes, lines, strict=True):
        added = len(line) + 2
        if part and size + added > SHARD_BYTES_MAX - 2:
            yield part
            part, size = [], 0
        part.append(line)
        size += added
        if size >= SHARD_BYTES_MIN and zlib.crc32(route.key.encode()) % _CUTS == 0:
            yield part
            part, size = [], 0
    if part:
        yield part


def _pack(text: str) -> str:
    packer = zlib.compressobj(wbits=_GZIP)
    return base64.b64encode(packer.compress(text.encode()) + packer.flush()).decode()


def _list_shards(shards: tuple[Shard, ...]) -> str:
    return "".join(f"{shard.digest} {shard.routes}\n" for shard in shards)


def _read_shards(text: str) -> tuple[Shard, ...]:
    shards = []
    for line in text.splitlines():
        digest, _, count = line.partition(" ")
        if not (digest.isalnum() and count.isdecimal()):
            raise RoutesError(f"{KEY_SHARDS}: {line!r}: expected a digest and a number")
        shards.append(Shard(digest, int(count)))
    return tuple(shards)


def _gather(named: tuple[Shard, ...], shards: Mapping[str, tuple[Route, ...]]) -> tuple[Route, ...]:
    missing = [shard.digest for shard in named if shard.digest not in shards]
    if missing:
        text = f"{len(missing)} of {len(named)} are not there, {missing[0]} the first"
        raise MissingShardError(f"{KEY_SHARDS}: {text}")
    return tuple(route for shard in named for route in shards[shard.digest])


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
    if route.ready_path != READY_PATH:
        entry["readyPath"] = route.ready_path
    # What is as by default is left out: a person reads the exceptions, and the table stays small.
    policy = {
        field.name: value
        for field in fields(Policy)
        if (value := getattr(route.policy, field.name)) != field.default
    }
    return {**entry, "policy": policy} if policy else entry


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _decode_routes(text: str) -> Iterator[Route]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RoutesError(f"{KEY_ROUTES}: not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise RoutesError(f"{KEY_ROUTES}: expected an object")
    return (_decode_route(key, entry) for key, entry in entries.items())


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
    ready_path = entry.get("readyPath", READY_PATH)
    if not isinstance(ready_path, str) or ready_path[:1] not in {"", "/"}:
        raise RoutesError(f"{KEY_ROUTES}: {key}.readyPath: expected a path from /, or nothing")
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
        ready_path=ready_path,
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
