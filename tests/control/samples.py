"""Objects as the API server gives them, for tests without one."""

from typing import Any

from nimway.control.desired.proxy import ProxySettings
from nimway.control.resolve import (
    ResolvedModel,
    ResolvedProxy,
    resolve_model,
    resolve_proxy,
)

MODEL_UID = "00000000-0000-4000-8000-000000000001"
PROXY_UID = "00000000-0000-4000-8000-000000000002"
SETTINGS = ProxySettings(
    image="ghcr.io/nimway/nimway:0.1.0",
    routes_role="nimway-proxy-routes",
    endpoints_role="nimway-proxy-endpoints",
)


def model(name: str = "llama", namespace: str = "models", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "nimway.dev/v1alpha1",
        "kind": "NIMModel",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": MODEL_UID,
            "generation": 1,
            "resourceVersion": "10",
            "creationTimestamp": "2026-11-01T00:00:00Z",
        },
        "spec": {
            "model": "meta/llama-3.1-8b-instruct",
            "image": "nvcr.io/nim/meta/llama-3.1-8b-instruct:1.8.4",
            **spec,
        },
    }


def proxy(name: str = "default", namespace: str = "nimway-system", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "nimway.dev/v1alpha1",
        "kind": "NIMProxy",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": PROXY_UID,
            "generation": 1,
            "resourceVersion": "11",
            "creationTimestamp": "2026-11-01T00:00:00Z",
        },
        "spec": spec,
    }


def resolved(name: str = "llama", **spec: Any) -> ResolvedModel:
    return resolve_model(model(name, **spec))


def resolved_proxy(**spec: Any) -> ResolvedProxy:
    return resolve_proxy(proxy(**spec), trusted=frozenset({"nimway-system"}))


MAXIMAL: dict[str, Any] = {
    "aliases": ["llama", "meta/llama"],
    "imagePullPolicy": "IfNotPresent",
    "imagePullSecrets": [{"name": "ngc-registry"}],
    "command": ["/opt/nim/start"],
    "args": ["--flag", "$(HOME)"],
    "env": [
        {"name": "NIM_LOG_LEVEL", "value": "DEBUG"},
        {"name": "EMPTY", "value": ""},
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}},
    ],
    "profile": "vllm-bf16-tp2",
    "port": 8080,
    "authSecret": "ngc-api-key",
    "runAsUser": 5000,
    "runAsGroup": 5001,
    "fsGroup": 5002,
    "gpus": 2,
    "gpuResource": "nvidia.com/mig-1g.10gb",
    "resources": {"requests": {"cpu": "1000m", "memory": "0.5Gi"}, "limits": {"memory": "1024Mi"}},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [
        {"key": "team", "operator": "Equal", "value": "a", "effect": "NoExecute"},
    ],
    "affinity": {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 10,
                    "podAffinityTerm": {
                        "topologyKey": "kubernetes.io/hostname",
                        "labelSelector": {"matchLabels": {"app": "other"}},
                    },
                }
            ]
        }
    },
    "topologySpreadConstraints": [
        {
            "maxSkew": 1,
            "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "ScheduleAnyway",
        }
    ],
    "priorityClassName": "system-node-critical",
    "schedulerName": "default-scheduler",
    "queueName": "team-a",
    "storage": {
        "pvc": {
            "size": "0.5Ti",
            "storageClassName": "fast",
            "accessMode": "ReadWriteMany",
            "reclaim": "Delete",
        },
        "subPath": "models/llama",
    },
    "sharedMemory": "16Gi",
    "startupTimeoutSeconds": 1200,
    "probes": {"readiness": {"periodSeconds": 2, "failureThreshold": 5}},
    "rollout": {"maxSurge": 0, "maxUnavailable": 1},
    "drain": {"seconds": 120, "method": "Sleep"},
    "replicas": 3,
    "service": {"annotations": {"team": "a"}, "labels": {"tier": "gold"}},
    "metrics": {"serviceMonitor": {"labels": {"release": "prometheus"}, "intervalSeconds": 30}},
    "labels": {"team": "a", "app.kubernetes.io/component": "stolen"},
    "annotations": {"note": "hello"},
}

PROXY_LIMITS: dict[str, Any] = {
    "limits": {
        "maxConnections": 500,
        "maxBodyBytes": 1048576,
        "maxBufferedBytes": 8388608,
        "maxHeaderBytes": 32768,
        "maxHeaderLineBytes": 8192,
        "maxHeaders": 50,
        "queue": {"maxRequests": 100, "maxWaitSeconds": 20},
    },
    "timeouts": {
        "connectSeconds": 1,
        "firstByteSeconds": 60,
        "idleSeconds": 30,
        "totalSeconds": 600,
        "headSeconds": 5,
        "clientIdleSeconds": 60,
    },
    "passAuthorization": True,
    "accessLog": {"samplePercent": 10},
}
