"""The kinds of objects that the operator reads and writes, and their paths in the API.

Owns no behaviour but the spelling of paths and selectors. It does no IO.
"""

from dataclasses import dataclass
from typing import Any

from nimway.api import GROUP, VERSION

Manifest = dict[str, Any]
"""An object of the Kubernetes API as plain JSON."""

FIELD_MANAGER = "nimway"
"""Name under which the operator applies fields; a second one would fight with the first."""

MANAGED_BY = "nimway"
MANAGED_SELECTOR = f"app.kubernetes.io/managed-by={MANAGED_BY}"
"""Label selector of all children, applied by the API server."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One served resource; `group` is empty for the core group."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """`apiVersion` as objects carry it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None) -> str:
        """Return the path of a collection (of all namespaces if None) or of one object."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name is not None:
            parts.append(name)
        return "/".join(parts)


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """An object by kind, namespace and name: the key of the store and of the work queue."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


MODEL = Kind(GROUP, VERSION, "nimmodels", "NIMModel")
PROXY = Kind(GROUP, VERSION, "nimproxies", "NIMProxy")
DEPLOYMENT = Kind("apps", "v1", "deployments", "Deployment")
SERVICE = Kind("", "v1", "services", "Service")
CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
SERVICE_ACCOUNT = Kind("", "v1", "serviceaccounts", "ServiceAccount")
CLAIM = Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
DISRUPTION_BUDGET = Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
ROLE_BINDING = Kind("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
POD = Kind("", "v1", "pods", "Pod")
NAMESPACE = Kind("", "v1", "namespaces", "Namespace")
SERVICE_MONITOR = Kind("monitoring.coreos.com", "v1", "servicemonitors", "ServiceMonitor")
EVENT = Kind("", "v1", "events", "Event")
LEASE = Kind("coordination.k8s.io", "v1", "leases", "Lease")

OWNERS = (MODEL, PROXY)
"""What users write."""

CHILDREN = (
    DEPLOYMENT,
    SERVICE,
    CONFIG_MAP,
    SERVICE_ACCOUNT,
    CLAIM,
    DISRUPTION_BUDGET,
    ROLE_BINDING,
)
"""What the operator writes."""

OPTIONAL = (SERVICE_MONITOR,)
"""What the operator writes where its kind is served."""

FOLLOWED = (*CHILDREN, POD, NAMESPACE)
"""What the operator watches itself; the owners are Kopf's."""

WATCHED = (*OWNERS, *FOLLOWED)

SELECTED_BY = {
    kind: "" if kind in (*OWNERS, NAMESPACE) else MANAGED_SELECTOR for kind in (*WATCHED, *OPTIONAL)
}
"""Label selector with which each kind is listed and watched; "" for all objects of it."""

BY_KIND = {kind.kind: kind for kind in SELECTED_BY}
