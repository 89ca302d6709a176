"""The API server, asked over one connection that stays open.

Tests ask many times until something is so, and each kubectl takes a tenth of a second of CPU, from
what is tested as well.
"""

import atexit
import ssl
from pathlib import Path
from typing import Any

import httpx
from kubernetes.client import Configuration
from kubernetes.config import load_kube_config

GROUPS = (
    "api/v1",
    "apis/apps/v1",
    "apis/batch/v1",
    "apis/policy/v1",
    "apis/autoscaling/v2",
    "apis/coordination.k8s.io/v1",
    "apis/discovery.k8s.io/v1",
    "apis/rbac.authorization.k8s.io/v1",
    "apis/nimway.dev/v1alpha1",
)
_NOT_FOUND = 404


class Api:
    """Asks with the credentials of a kubeconfig; kinds are named as kubectl takes them."""

    def __init__(self, kubeconfig: Path) -> None:
        configuration = Configuration()
        load_kube_config(str(kubeconfig), client_configuration=configuration)
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file)
        token = configuration.get_api_key_with_prefix("authorization")
        self._client = httpx.Client(
            base_url=configuration.host,
            verify=context,
            headers={"Authorization": token} if token else {},
            timeout=30,
            trust_env=False,
        )
        atexit.register(self._client.close)  # who has it lives as long as the test run
        self._resources: dict[str, tuple[str, str, bool]] = {}

    def get(self, namespace: str, kind: str, name: str) -> dict[str, Any] | None:
        """Return an object, None when there is none."""
        return self._read(f"{self._path(namespace, kind)}/{name}")

    def items(self, namespace: str, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """Return the objects of a kind that have these labels; no namespace: of all."""
        found = self._read(self._path(namespace, kind), labelSelector=selector) or {}
        # What an item of a list leaves out, and who reads one object wants.
        told = {
            "apiVersion": found.get("apiVersion"),
            "kind": found.get("kind", "")[: -len("List")],
        }
        return [{**told, **item} for item in found.get("items", ())]

    def create_namespace(self, name: str) -> None:
        """Create a namespace."""
        body = {"metadata": {"name": name}}
        answer = self._client.post("/api/v1/namespaces", json=body)
        assert answer.is_success, f"creating namespace {name}: {answer.text}"

    def delete_namespace(self, name: str) -> None:
        """Begin to delete it, if it is there."""
        answer = self._client.delete(f"/api/v1/namespaces/{name}")
        assert answer.is_success or answer.status_code == _NOT_FOUND, answer.text

    def _read(self, path: str, **query: str) -> dict[str, Any] | None:
        answer = self._client.get(
            path, params={key: value for key, value in query.items() if value}
        )
        if answer.status_code == _NOT_FOUND:
            return None
        assert answer.is_success, f"GET {path}: {answer.text}"
        body: dict[str, Any] = answer.json()
        return body

    def _path(self, namespace: str, kind: str) -> str:
        word = kind.partition(".")[0].lower()
        if word not in self._resources:
            self._discover()
        assert word in self._resources, f"no resource is called {kind}: is its group in GROUPS?"
        group, plural, is_namespaced = self._resources[word]
        where = f"/namespaces/{namespace}" if is_namespaced and namespace else ""
        return f"/{group}{where}/{plural}"

    def _discover(self) -> None:
        """Learn how each kind may be called: again where a CRD came later."""
        for group in GROUPS:
            for each in (self._read(f"/{group}") or {}).get("resources", ()):
                if "/" not in each["name"]:
                    where = (group, each["name"], each["namespaced"])
                    words = (each["name"], each["singularName"], *each.get("shortNames", ()))
                    for word in (*words, each["kind"].lower()):
                        self._resources.setdefault(word, where)
