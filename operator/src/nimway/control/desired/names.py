"""All names and labels of children, from one place, each within its length limit.

A custom resource may be called `llama-3.1-8b`, a Service may not. Where a name is not a DNS-1035
label that leaves room for suffixes, a slug of it with a hash of the whole takes its place.
"""

import hashlib
import re

from nimway.control.kinds import MANAGED_BY

LABEL_CHARS_MAX = 63
SLUG_CHARS_MAX = 43
"""Leaves room for the prefix and the longest suffix in 63 characters."""

OWNER_LABEL = "nimway.dev/owner-uid"
"""Label of every child: the uid of the NIMModel or NIMProxy it was made for."""

OWNER_NAMESPACE_LABEL = "nimway.dev/owner-namespace"
COMPONENT_LABEL = "app.kubernetes.io/component"
INSTANCE_LABEL = "app.kubernetes.io/instance"
MODEL_CONTAINER = "nim"
PROXY_CONTAINER = "proxy"
MODEL_COMPONENT = "model"
STORE_COMPONENT = "model-store"
PROXY_COMPONENT = "proxy"
NIM_TYPE_LABEL = "app.nvidia.com/nim-type"

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?\Z")
_HASH_CHARS = 8


def slug(name: str) -> str:
    """Return `name` if it is a DNS-1035 label of at most `SLUG_CHARS_MAX`, else a hashed slug."""
    if len(name) <= SLUG_CHARS_MAX and _DNS_1035.match(name):
        return name
    text = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not text or not text[0].isalpha():
        text = f"m-{text}".rstrip("-")
    return f"{text[: SLUG_CHARS_MAX - _HASH_CHARS - 1].rstrip('-')}-{_hash(name)}"


def claim_name(name: str) -> str:
    """Return the name of the claim that holds a model's weights."""
    return f"{slug(name)}-store"


def proxy_name(name: str) -> str:
    """Return the name of a proxy's Deployment, Service, ServiceAccount and budget."""
    return f"nimway-{slug(name)}"


def routes_name(name: str) -> str:
    """Return the name of a proxy's routing ConfigMap, and of the binding that lets it be read."""
    return f"{proxy_name(name)}-routes"


def endpoints_binding_name(namespace: str, name: str) -> str:
    """Return the name of the binding in a served namespace of the proxy `namespace/name`."""
    return f"{proxy_name(name)}-{_hash(namespace)}"


def selector_labels(component: str, name: str) -> dict[str, str]:
    """Return the labels that select an object's pods; they never change in its life."""
    return {
        "app.kubernetes.io/managed-by": MANAGED_BY,
        COMPONENT_LABEL: component,
        INSTANCE_LABEL: slug(name),
    }


def labels(component: str, *, namespace: str, name: str, uid: str) -> dict[str, str]:
    """Return the labels of every child of one object."""
    return {
        "app.kubernetes.io/name": "nimway",
        "app.kubernetes.io/part-of": "nimway",
        OWNER_LABEL: uid,
        OWNER_NAMESPACE_LABEL: namespace,
        **selector_labels(component, name),
    }


def selector_text(selector: dict[str, str]) -> str:
    """Return equality terms as the API's `labelSelector` text."""
    return ",".join(f"{key}={value}" for key, value in sorted(selector.items()))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_CHARS]
