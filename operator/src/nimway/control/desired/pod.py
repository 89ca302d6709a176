"""The pod template of a model: what the NIM container gets, and where it may run."""

import math
from typing import Any

from nimway.api.nimmodel import Drain, NIMModelSpec, StartupProbe
from nimway.control.desired import drain, names
from nimway.control.desired.metadata import dump, dump_list, given, quantities
from nimway.control.desired.quantity import canonical
from nimway.control.kinds import Manifest
from nimway.control.resolve import ResolvedModel
from nimway.routes import HTTP_PORT_NAME, READY_PATH

STORE_PATH = "/model-store"
AUTH_KEY = "NGC_API_KEY"
USER_ID = 1000
GROUP_ID = 2000
PROBE_TIMEOUT_S = 10
STARTUP_PERIOD_S = 3
LIVENESS_GRACE_S = 30
GPU_TAINT = "nvidia.com/gpu"
DRAIN = Drain.model_validate({})
"""The drain where the user says nothing."""

_LIVE = "/v1/health/live"


def build_template(model: ResolvedModel) -> Manifest:
    """Return the pod template."""
    owner, spec = model.owner, model.spec
    labels = names.labels(
        names.MODEL_COMPONENT, namespace=owner.namespace, name=owner.name, uid=owner.uid
    )
    metadata: Manifest = {"labels": {**(spec.labels or {}), **labels}}
    if spec.annotations:
        metadata["annotations"] = dict(spec.annotations)
    return {"metadata": metadata, "spec": _pod_spec(model)}


def build_env(spec: NIMModelSpec) -> list[Manifest]:
    """Return the container's environment; the user's variables win by name."""
    ours: dict[str, Manifest] = {
        "NIM_SERVED_MODEL_NAME": {"value": escape(spec.model)},
        "NIM_CACHE_PATH": {"value": STORE_PATH},
        "NIM_SERVER_PORT": {"value": str(spec.port)},
        "NIM_HTTP_API_PORT": {"value": str(spec.port)},
        "NIM_JSONL_LOGGING": {"value": "1"},
        "NIM_LOG_LEVEL": {"value": "INFO"},
        "OUTLINES_CACHE_DIR": {"value": "/tmp/outlines"},  # noqa: S108 - a path in the NIM
    }
    if spec.profile:
        ours["NIM_MODEL_PROFILE"] = {"value": escape(spec.profile)}
    if spec.auth_secret:
        ours[AUTH_KEY] = {
            "valueFrom": {"secretKeyRef": {"name": spec.auth_secret, "key": AUTH_KEY}}
        }
    for variable in spec.env or ():
        given_value = dump(variable)
        given_value.pop("name")
        if given_value.get("value") == "":
            del given_value["value"]  # the API server leaves an empty value out
        ours[variable.name] = given_value
    return [{"name": name, **value} for name, value in ours.items()]


def escape(text: str) -> str:
    """Keep the kubelet from expanding `$(NAME)` in what we render."""
    return text.replace("$(", "$$(")


def _pod_spec(model: ResolvedModel) -> Manifest:
    spec = model.spec
    drained = spec.drain or DRAIN
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": drain.grace_period_s(drained.seconds),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": spec.run_as_user or USER_ID,
            "runAsGroup": spec.run_as_group or GROUP_ID,
            "fsGroup": spec.fs_group or GROUP_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec)],
        "volumes": _volumes(model),
        **given(
            imagePullSecrets=dump_list(spec.image_pull_secrets),
            resourceClaims=[
                {key: value for key, value in dump(claim).items() if key != "request"}
                for claim in spec.resource_claims or ()
            ],
            nodeSelector=dict(spec.node_selector or {}),
            tolerations=_tolerations(spec),
            affinity=dump(spec.affinity) if spec.affinity else None,
            topologySpreadConstraints=_spread(model),
            priorityClassName=spec.priority_class_name,
            runtimeClassName=spec.runtime_class_name,
            schedulerName=spec.scheduler_name,
        ),
    }


def _container(spec: NIMModelSpec) -> Manifest:
    drained = spec.drain or DRAIN
    return {
        "name": names.MODEL_CONTAINER,
        "image": spec.image,
        "env": build_env(spec),
        "ports": [{"name": HTTP_PORT_NAME, "containerPort": spec.port, "protocol": "TCP"}],
        "volumeMounts": _mounts(spec),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        **_probes(spec),
        **given(
            imagePullPolicy=spec.image_pull_policy,
            command=spec.command,
            args=spec.args,
            resources=_resources(spec),
            lifecycle=drain.lifecycle(drained.method, drained.seconds, spec.port),
        ),
    }


def _resources(spec: NIMModelSpec) -> Manifest:
    asked = spec.resources
    limits = quantities(asked.limits if asked else None)
    if spec.gpus:
        limits[spec.gpu_resource] = str(spec.gpus)
    claims = [given(name=claim.name, request=claim.request) for claim in spec.resource_claims or ()]
    return given(
        limits=limits, requests=quantities(asked.requests if asked else None), claims=claims
    )


def _probes(spec: NIMModelSpec) -> Manifest:
    wanted = spec.probes
    startup = _probe(READY_PATH, wanted.startup if wanted else None, STARTUP_PERIOD_S)
    startup["failureThreshold"] = math.ceil(spec.startup_timeout_seconds / startup["periodSeconds"])
    readiness = _probe(READY_PATH, wanted.readiness if wanted else None, 5)
    liveness = _probe(_LIVE, wanted.liveness if wanted else None, 10)
    readiness.setdefault("failureThreshold", 3)
    liveness.setdefault("failureThreshold", 6)
    liveness["terminationGracePeriodSeconds"] = LIVENESS_GRACE_S
    return {"startupProbe": startup, "readinessProbe": readiness, "livenessProbe": liveness}


def _probe(path: str, wanted: StartupProbe | None, period_s: int) -> Manifest:
    """Return a probe that trusts the status code alone and gives a busy server time."""
    changed = dump(wanted) if wanted else {}
    return {
        "httpGet": {"path": changed.pop("path", path), "port": HTTP_PORT_NAME},
        "periodSeconds": period_s,
        "timeoutSeconds": PROBE_TIMEOUT_S,
        **changed,
    }


def _volumes(model: ResolvedModel) -> list[Manifest]:
    spec = model.spec
    shared: Manifest = {"medium": "Memory"}
    if spec.shared_memory:
        shared["sizeLimit"] = canonical(spec.shared_memory)
    store: dict[str, Any] = {"emptyDir": {}}
    if spec.storage and spec.storage.pvc:
        claim = spec.storage.pvc.claim_name or names.claim_name(model.owner.name)
        store = {"persistentVolumeClaim": {"claimName": claim}}
        if spec.storage.read_only:
            store["persistentVolumeClaim"]["readOnly"] = True
    elif spec.storage and spec.storage.empty_dir and spec.storage.empty_dir.size_limit:
        store = {"emptyDir": {"sizeLimit": canonical(spec.storage.empty_dir.size_limit)}}
    return [{"name": "dshm", "emptyDir": shared}, {"name": "model-store", **store}]


def _mounts(spec: NIMModelSpec) -> list[Manifest]:
    store: Manifest = {"name": "model-store", "mountPath": STORE_PATH}
    if spec.storage and spec.storage.sub_path:
        store["subPath"] = spec.storage.sub_path
    if spec.storage and spec.storage.read_only:
        store["readOnly"] = True
    return [{"name": "dshm", "mountPath": "/dev/shm"}, store]  # noqa: S108 - NCCL's path


def _tolerations(spec: NIMModelSpec) -> list[Manifest]:
    """Return the user's tolerations, and for a model that uses GPUs those of their taints."""
    tolerations: list[Manifest] = dump_list(spec.tolerations)
    if spec.gpus or spec.resource_claims:
        keys = [spec.gpu_resource]
        if spec.gpu_resource.startswith("nvidia.com/") and spec.gpu_resource != GPU_TAINT:
            keys.append(GPU_TAINT)  # a node of MIG slices is tainted as a GPU node
        for key in keys:
            toleration = {"key": key, "operator": "Exists", "effect": "NoSchedule"}
            if toleration not in tolerations:
                tolerations.append(toleration)
    return tolerations


def _spread(model: ResolvedModel) -> list[Manifest]:
    selector = names.selector_labels(names.MODEL_COMPONENT, model.owner.name)
    return [
        {"labelSelector": {"matchLabels": selector}, **constraint}
        for constraint in dump_list(model.spec.topology_spread_constraints)
    ]
