"""All children of a NIMProxy: the address for clients, and the rights its pods need.

The rights are fixed roles of the chart; the operator only binds them. A binding in a namespace
other than the NIMProxy's has no owner reference and is found again by its labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from nimway.api.nimmodel import RoutingQueue
from nimway.api.nimproxy import NIMProxySpec, ProxyLimits, ProxyService, ProxyTimeouts
from nimway.control.desired import names
from nimway.control.desired.metadata import child, dump, dump_list, given, metadata, quantities
from nimway.control.desired.monitor import build_monitor
from nimway.control.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    ROLE_BINDING,
    SERVICE,
    SERVICE_ACCOUNT,
    Kind,
    Manifest,
)
from nimway.control.resolve import Owner, ResolvedProxy
from nimway.routes import (
    KEY_PACKED,
    TABLE_LABEL,
    RoutingTable,
    encode,
    encode_shards,
    shard_name,
)
from nimway.state import STATE_PORT

PORT = 8000
SERVICE_DEFAULTS = ProxyService.model_validate({})
"""The Service where the user says nothing."""

LIMITS = ProxyLimits.model_validate({})
TIMEOUTS = ProxyTimeouts.model_validate({})
QUEUE = RoutingQueue.model_validate({})
"""All left to the proxy."""

USER_ID = 65532
PROPAGATION_S = 5
EXIT_S = 10
_RBAC = "rbac.authorization.k8s.io"


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """What the chart tells the operator about proxies."""

    image: str
    routes_role: str
    endpoints_role: str


def build_rights(
    proxy: ResolvedProxy, served: frozenset[str], settings: ProxySettings
) -> list[tuple[Kind, Manifest]]:
    """Return the ServiceAccount and its bindings; `served` are the namespaces with routes.

    In its own namespace a proxy counts the ready pods of its Service, to divide limits by them.
    """
    owner = proxy.owner
    account = metadata(owner, names.proxy_name(owner.name), user_labels=proxy.spec.labels)
    children: list[tuple[Kind, Manifest]] = [
        (
            SERVICE_ACCOUNT,
            child(SERVICE_ACCOUNT, account, automountServiceAccountToken=False),
        ),
        (
            ROLE_BINDING,
            _binding(owner, owner.namespace, names.routes_name(owner.name), settings.routes_role),
        ),
    ]
    name = names.endpoints_binding_name(owner.namespace, owner.name)
    children += [
        (ROLE_BINDING, _binding(owner, namespace, name, settings.endpoints_role))
        for namespace in sorted(served | {owner.namespace})
    ]
    return children


def build_routes(proxy: ResolvedProxy, table: RoutingTable) -> Manifest:
    """Return the head of the routing table, the ConfigMap that completes it.

    Raises:
        TableTooLargeError: the table does not fit.
    """
    head = names.routes_name(proxy.owner.name)
    return child(CONFIG_MAP, _table_metadata(proxy, head), data=encode(table))


def build_shards(
    proxy: ResolvedProxy, table: RoutingTable, known: Mapping[str, str]
) -> dict[str, Manifest]:
    """Return the ConfigMaps of a large table's shards by digest; `known` is content by digest."""
    head = names.routes_name(proxy.owner.name)
    return {
        digest: child(
            CONFIG_MAP,
            _table_metadata(proxy, shard_name(head, digest)),
            binaryData={KEY_PACKED: packed},
        )
        for digest, packed in encode_shards(table, known).items()
    }


def _table_metadata(proxy: ResolvedProxy, name: str) -> Manifest:
    owner = proxy.owner
    meta = metadata(owner, name, user_labels=proxy.spec.labels)
    meta["labels"][TABLE_LABEL] = names.routes_name(owner.name)
    return meta


def build_workload(proxy: ResolvedProxy, settings: ProxySettings) -> list[tuple[Kind, Manifest]]:
    """Return the Deployment, Service and disruption budget."""
    return [
        (DEPLOYMENT, build_deployment(proxy, settings)),
        (SERVICE, build_service(proxy)),
        (DISRUPTION_BUDGET, build_budget(proxy)),
    ]


def build_deployment(proxy: ResolvedProxy, settings: ProxySettings) -> Manifest:
    """Return the Deployment; a rolling update adds a pod before it takes one away."""
    owner, spec = proxy.owner, proxy.spec
    return child(
        DEPLOYMENT,
        metadata(owner, names.proxy_name(owner.name), user_labels=spec.labels),
        spec={
            "replicas": spec.replicas,
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": _selector(owner)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "template": _template(proxy, settings),
        },
    )


def build_service(proxy: ResolvedProxy) -> Manifest:
    """Return the Service that clients use."""
    owner = proxy.owner
    wanted = proxy.spec.service or SERVICE_DEFAULTS
    meta = metadata(
        owner,
        names.proxy_name(owner.name),
        user_labels={**(proxy.spec.labels or {}), **(wanted.labels or {})},
        annotations=wanted.annotations,
    )
    port = {"name": "http", "port": wanted.port, "protocol": "TCP", "targetPort": "http"}
    return child(
        SERVICE,
        meta,
        spec={"type": wanted.type, "selector": _selector(owner), "ports": [port]},
    )


def build_budget(proxy: ResolvedProxy) -> Manifest:
    """Return the PodDisruptionBudget."""
    owner = proxy.owner
    return child(
        DISRUPTION_BUDGET,
        metadata(owner, names.proxy_name(owner.name), user_labels=proxy.spec.labels),
        spec={
            "maxUnavailable": 1,
            "selector": {"matchLabels": _selector(owner)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    )


def build_proxy_monitor(proxy: ResolvedProxy) -> Manifest | None:
    """Return the ServiceMonitor, None if none is wanted.

    The Service has no port for metrics, so that clients do not reach them: the pods' port it is.
    """
    return build_monitor(
        proxy.owner,
        proxy.spec.metrics,
        name=names.proxy_name(proxy.owner.name),
        endpoint={"targetPort": "metrics", "path": "/metrics"},
    )


def _template(proxy: ResolvedProxy, settings: ProxySettings) -> Manifest:
    owner, spec = proxy.owner, proxy.spec
    labels = names.labels(
        names.PROXY_COMPONENT, namespace=owner.namespace, name=owner.name, uid=owner.uid
    )
    return {
        "metadata": {
            "labels": {**(spec.labels or {}), **labels},
            **given(annotations=dict(spec.annotations or {})),
        },
        "spec": {
            "serviceAccountName": names.proxy_name(owner.name),
            "automountServiceAccountToken": True,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": spec.drain_seconds + PROPAGATION_S + EXIT_S,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "runAsGroup": USER_ID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_container(proxy, settings)],
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}],
            "topologySpreadConstraints": _spread(proxy),
            **given(
                imagePullSecrets=dump_list(spec.image_pull_secrets),
                nodeSelector=dict(spec.node_selector or {}),
                tolerations=dump_list(spec.tolerations),
                affinity=dump(spec.affinity) if spec.affinity else None,
                priorityClassName=spec.priority_class_name,
            ),
        },
    }


def _container(proxy: ResolvedProxy, settings: ProxySettings) -> Manifest:
    spec = proxy.spec
    resources = spec.resources
    return {
        "name": names.PROXY_CONTAINER,
        "image": spec.image or settings.image,
        "args": ["proxy"],
        "env": _env(proxy.owner, spec),
        "ports": [
            {"name": "http", "containerPort": PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": STATE_PORT, "protocol": "TCP"},
        ],
        "readinessProbe": _probe("/v1/health/ready", period_s=2, failures=2),
        "livenessProbe": _probe("/v1/health/live", period_s=10, failures=6),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - its own volume
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **given(
            imagePullPolicy=spec.image_pull_policy,
            resources=given(
                limits=quantities(resources.limits if resources else None),
                requests=quantities(resources.requests if resources else None),
            ),
        ),
    }


def build_limits(spec: NIMProxySpec) -> dict[str, str]:
    """Return the variables of what the user limits; the proxy has a default for the others."""
    limits, timeouts = spec.limits or LIMITS, spec.timeouts or TIMEOUTS
    queue = limits.queue or QUEUE
    chosen = {
        "CONNECTIONS_MAX": limits.max_connections,
        "BODY_BYTES_MAX": limits.max_body_bytes,
        "BODIES_BYTES_MAX": limits.max_buffered_bytes,
        "HEAD_BYTES_MAX": limits.max_header_bytes,
        "HEAD_LINE_BYTES_MAX": limits.max_header_line_bytes,
        "HEAD_FIELDS_MAX": limits.max_headers,
        "QUEUE_REQUESTS_MAX": queue.max_requests,
        "QUEUE_WAIT_MAX_S": queue.max_wait_seconds,
        "TIMEOUT_CONNECT_S": timeouts.connect_seconds,
        "TIMEOUT_FIRST_BYTE_S": timeouts.first_byte_seconds,
        "TIMEOUT_IDLE_S": timeouts.idle_seconds,
        "TIMEOUT_TOTAL_S": timeouts.total_seconds,
        "TIMEOUT_HEAD_S": timeouts.head_seconds,
        "TIMEOUT_CLIENT_IDLE_S": timeouts.client_idle_seconds,
        "PASS_AUTHORIZATION": "true" if spec.pass_authorization else None,
        "ACCESS_LOG_SAMPLE": spec.access_log and f"{spec.access_log.sample_percent / 100:g}",
    }
    return {f"NIMWAY_{name}": str(value) for name, value in chosen.items() if value is not None}


def _env(owner: Owner, spec: NIMProxySpec) -> list[Manifest]:
    fixed = {
        "NIMWAY_ROUTES_CONFIGMAP": names.routes_name(owner.name),
        "NIMWAY_WORKERS": str(spec.workers),
        "NIMWAY_DRAIN_S": str(spec.drain_seconds),
        "NIMWAY_PROPAGATION_DELAY_S": str(PROPAGATION_S),
    }
    return [
        {
            "name": "POD_NAMESPACE",
            "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
        },
        {
            "name": "POD_NAME",
            "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}},
        },
        *({"name": name, "value": value} for name, value in (fixed | build_limits(spec)).items()),
    ]


def _probe(path: str, *, period_s: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": "metrics"},
        "periodSeconds": period_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _spread(proxy: ResolvedProxy) -> list[Manifest]:
    selector = {"matchLabels": _selector(proxy.owner)}
    wanted = dump_list(proxy.spec.topology_spread_constraints) or [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
        }
    ]
    return [{"labelSelector": selector, **constraint} for constraint in wanted]


def _binding(owner: Owner, namespace: str, name: str, role: str) -> Manifest:
    subject = {
        "kind": "ServiceAccount",
        "name": names.proxy_name(owner.name),
        "namespace": owner.namespace,
    }
    return child(
        ROLE_BINDING,
        metadata(owner, name, namespace=namespace),
        roleRef={"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
        subjects=[subject],
    )


def _selector(owner: Owner) -> dict[str, str]:
    return names.selector_labels(names.PROXY_COMPONENT, owner.name)
