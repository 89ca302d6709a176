"""NIMModel: one model, served by a NIM container on GPUs.

The smallest object has `model` and `image`; the rest has defaults that suit a production cluster.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from nimway.api.base import (
    ATOMIC,
    SET,
    Annotations,
    ApiModel,
    CountOrPercent,
    ImagePullPolicy,
    ImageReference,
    Labels,
    LabelValue,
    ObjectName,
    Port,
    QuantityString,
    UnixId,
    keyed_by,
    rules,
)
from nimway.api.kubernetes import EnvVar, Placement, ResourceClaim, ResourceRequirements
from nimway.api.monitoring import Metrics

SERVED_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,252}$"
"""No comma (NIM_SERVED_MODEL_NAME is a list) and no `$(` (the kubelet would expand it)."""

RESOURCE = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9][-A-Za-z0-9._]*$"

ServedName = Annotated[str, Field(min_length=1, max_length=253, pattern=SERVED_NAME)]
Argument = Annotated[str, Field(max_length=4096)]
Arguments = Annotated[list[Argument], Field(max_length=64, json_schema_extra=ATOMIC)]


class PvcStorage(ApiModel):
    """A persistent volume claim: an existing one by `claimName`, or one to create by `size`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.claimName) != has(self.size)",
                "storage.pvc: exactly one of claimName and size must be set",
            ),
            (
                "!has(self.claimName) || !(has(self.storageClassName) || has(self.accessMode) "
                "|| has(self.reclaim))",
                "storage.pvc: storageClassName, accessMode and reclaim belong to a claim that is "
                "created (size), not to claimName",
            ),
            (
                "!has(self.size) || !has(oldSelf.size) || "
                "(has(self.storageClassName) ? self.storageClassName : '') == "
                "(has(oldSelf.storageClassName) ? oldSelf.storageClassName : '')",
                "storage.pvc.storageClassName: a claim's class cannot change; "
                "create a new claim and name it in claimName",
            ),
            (
                "!has(self.size) || !has(oldSelf.size) || "
                "(has(self.accessMode) ? self.accessMode : '') == "
                "(has(oldSelf.accessMode) ? oldSelf.accessMode : '')",
                "storage.pvc.accessMode: a claim's access mode cannot change; "
                "create a new claim and name it in claimName",
            ),
        )
    )

    claim_name: ObjectName | None = Field(
        None,
        description="An existing claim of this namespace. It is kept, also where this NIMModel "
        "made it.",
    )
    size: QuantityString | None = Field(
        None,
        description="Size of the claim to create. It can grow where its storage class allows that; "
        "a refused change leaves the claim as it is and can be taken back.",
    )
    storage_class_name: ObjectName | None = Field(
        None, description="Storage class of the claim to create; the cluster's default if absent."
    )
    access_mode: (
        Literal["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany", "ReadOnlyMany"] | None
    ) = Field(
        None,
        description="Access mode of the claim to create, ReadWriteOnce if absent. Several replicas "
        "on several nodes need ReadWriteMany.",
    )
    reclaim: Literal["Retain", "Delete"] | None = Field(
        None,
        description="What becomes of the created claim when the NIMModel is deleted: kept, and "
        "adopted again by a NIMModel of the same name (Retain, the default), or deleted. Until "
        "then it stays, also where the storage is changed to something else.",
    )


class EmptyDirStorage(ApiModel):
    """Node-local storage that lives as long as the pod: the weights are fetched at each start."""

    size_limit: QuantityString | None = Field(None, description="Upper bound of its size.")


class Storage(ApiModel):
    """Where the NIM keeps the model's weights; exactly one of `pvc` and `emptyDir`."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.pvc) != has(self.emptyDir)",
                "storage: exactly one of pvc and emptyDir must be set",
            ),
            (
                "!(has(self.readOnly) && self.readOnly) || has(self.pvc)",
                "storage.readOnly: an emptyDir has nothing to read, use pvc",
            ),
            (
                "!has(self.subPath) || !(self.subPath.startsWith('/') || "
                "self.subPath.split('/').exists(part, part == '..'))",
                "storage.subPath: must be relative and must not contain '..'",
            ),
        )
    )

    pvc: PvcStorage | None = Field(
        None, description="Keep the weights in a claim: they outlive the pod."
    )
    empty_dir: EmptyDirStorage | None = Field(
        None, description="Keep them on the node for the life of the pod."
    )
    sub_path: Annotated[str, Field(min_length=1, max_length=1024)] | None = Field(
        None, description="Folder in the volume to mount, relative to its root."
    )
    read_only: bool = Field(default=False, description="Mount a prepared cache read-only.")


class StartupProbe(ApiModel):
    """Overrides of the startup probe; its failure threshold follows `startupTimeoutSeconds`."""

    path: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^/[!-~]*$")] | None = Field(
        None, description="HTTP path to ask, NIM's own if absent."
    )
    period_seconds: Annotated[int, Field(ge=1, le=3600)] | None = Field(
        None, description="Time between two probes."
    )
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] | None = Field(
        None, description="Time a probe may take, 10 if absent."
    )


class Probe(StartupProbe):
    """Overrides of the readiness or the liveness probe."""

    failure_threshold: Annotated[int, Field(ge=1, le=100000)] | None = Field(
        None, description="Failures in a row that count."
    )


class Probes(ApiModel):
    """Overrides of the NIM's probes."""

    startup: StartupProbe | None = Field(
        None, description="GET /v1/health/ready every 3 s until the model is loaded."
    )
    readiness: Probe | None = Field(
        None, description="GET /v1/health/ready every 5 s; 3 failures take the pod out of routing."
    )
    liveness: Probe | None = Field(
        None, description="GET /v1/health/live every 10 s; 6 failures restart the container."
    )


class Rollout(ApiModel):
    """How pods are replaced. 0/1 suits a cluster without a spare GPU, at the price of a pause."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!((self.maxSurge == 0 || self.maxSurge == '0%') && "
                "(self.maxUnavailable == 0 || self.maxUnavailable == '0%'))",
                "rollout: maxSurge and maxUnavailable must not both be 0",
            )
        )
    )

    max_surge: CountOrPercent = Field(1, description="Pods above `replicas` during a rollout.")
    max_unavailable: CountOrPercent = Field(0, description="Pods below `replicas`.")


class Drain(ApiModel):
    """How a pod that has to go finishes its requests."""

    seconds: Annotated[int, Field(ge=0, le=7200)] = Field(
        600, description="Longest time a pod may take to finish its requests."
    )
    method: Literal["Metrics", "Sleep"] = Field(
        "Metrics",
        description="Metrics waits until the NIM's own metrics show no running or waiting "
        "request; Sleep waits the whole time.",
    )


class ServiceMeta(ApiModel):
    """What to add to the model's Service."""

    annotations: Annotations | None = Field(None, description="Annotations of the Service.")
    labels: Labels | None = Field(None, description="Labels of the Service; Nimway's own win.")


class Adapter(ApiModel):
    """A LoRA adapter that the NIM loads beside its base model (from NIM_PEFT_SOURCE)."""

    name: ServedName = Field(description="The id under which clients use the adapter.")


Seconds = Annotated[int, Field(ge=1, le=86400)]


class RoutingTimeouts(ApiModel):
    """Timeouts of requests to this model; the proxy's own where absent. Clients may lower them."""

    connect_seconds: Annotated[int, Field(ge=1, le=60)] | None = Field(
        None, description="Until a connection to a pod is open."
    )
    first_byte_seconds: Seconds | None = Field(
        None, description="Until the answer begins; an answer that is not streamed is one wait."
    )
    idle_seconds: Seconds | None = Field(None, description="Between two pieces of an answer.")
    total_seconds: Seconds | None = Field(None, description="From the request to the last byte.")


class RoutingQueue(ApiModel):
    """Requests that wait for a pod or a place at one; beyond: 503 with Retry-After."""

    max_requests: Annotated[int, Field(ge=0, le=100000)] | None = Field(
        None,
        description="Requests that may wait, over all pods of a proxy; if absent the proxy's own "
        "number, at each of its pods.",
    )
    max_wait_seconds: Annotated[int, Field(ge=0, le=3600)] | None = Field(
        None,
        description="Longest wait, the proxy's own if absent; SDKs give up after 60 s and ask "
        "again.",
    )


class Routing(ApiModel):
    """How the proxies treat requests to this model."""

    strategy: Literal["LeastRequests", "PrefixHash", "SessionHash"] = Field(
        "LeastRequests",
        description="Which pod gets a request: the least busy; the one that knows its prefix; "
        "the one that serves its session.",
    )
    timeouts: RoutingTimeouts | None = Field(
        None, description="Waits of a request; the proxy's own where absent."
    )
    max_concurrency: Annotated[int, Field(ge=1, le=100000)] | None = Field(
        None, description="Requests that one pod gets at a time, from all pods of a proxy."
    )
    queue: RoutingQueue | None = Field(
        None, description="Where requests wait for a pod, or for a place at one."
    )
    retries: Annotated[int, Field(ge=0, le=10)] = Field(
        2, description="Further pods to try when one cannot be connected; never after that."
    )
    apis: (
        Annotated[
            list[
                Literal[
                    "completions",
                    "chat",
                    "embeddings",
                    "classify",
                    "ranking",
                    "rerank",
                    "responses",
                    "messages",
                    "tokenize",
                    "audio",
                ]
            ],
            Field(min_length=1, max_length=16, json_schema_extra=SET),
        ]
        | None
    ) = Field(None, description="APIs that may be used with this model; all if absent.")


class Autoscaling(ApiModel):
    """How many replicas the operator keeps, by the requests that the proxies count."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.minReplicas <= self.maxReplicas",
                "autoscaling: minReplicas must not be above maxReplicas",
            )
        )
    )

    min_replicas: Annotated[int, Field(ge=0, le=1000)] = Field(
        1, description="Fewest pods; with 0 the model sleeps when idle, and a request wakes it."
    )
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = Field(description="Most pods.")
    target_concurrency: Annotated[int, Field(ge=1, le=100000)] = Field(
        32, description="Running and waiting requests per pod to aim at."
    )
    scale_down_delay_seconds: Annotated[int, Field(ge=0, le=86400)] = Field(
        300, description="How long less must have been asked for before pods are taken away."
    )
    idle_seconds: Annotated[int, Field(ge=1, le=604800)] = Field(
        900, description="How long without a request before the last pod goes, if minReplicas is 0."
    )


class NIMModelSpec(Placement):
    """What the user wants: one model, its container, its GPUs, and how it lives."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.aliases) || !self.aliases.exists(name, name == self.model)",
                "aliases: must not repeat model",
            ),
            (
                "!has(self.adapters) || !self.adapters.exists(adapter, "
                "adapter.name == self.model || "
                "(has(self.aliases) && adapter.name in self.aliases))",
                "adapters: must not repeat model or an alias",
            ),
            (
                "!has(self.resources) || !has(self.resources.limits) || "
                "!(self.gpuResource in self.resources.limits)",
                "resources.limits: GPUs are counted in gpus, not here",
            ),
            (
                "!has(self.resources) || !has(self.resources.requests) || "
                "!(self.gpuResource in self.resources.requests)",
                "resources.requests: GPUs are counted in gpus, not here",
            ),
            (
                "self.model == oldSelf.model || (self.replicas == 0 && "
                "(!has(self.autoscaling) || self.autoscaling.minReplicas == 0))",
                "model: can change only while replicas (and autoscaling.minReplicas) is 0, for "
                "running pods answer to the old name alone; to serve another name as well, use "
                "aliases",
            ),
        )
    )

    model: ServedName = Field(
        description="The name clients use, an OpenAI-style id. It can change only while `replicas` "
        "is 0: running pods answer to the old one alone."
    )
    aliases: Annotated[list[ServedName], Field(max_length=16, json_schema_extra=SET)] | None = (
        Field(None, description="Further names clients may use; the NIM always sees `model`.")
    )
    adapters: (
        Annotated[list[Adapter], Field(max_length=64, json_schema_extra=keyed_by("name"))] | None
    ) = Field(None, description="LoRA adapters to list and route under their own ids.")
    image: ImageReference = Field(description="The NIM's image; a digest may be given.")
    image_pull_policy: ImagePullPolicy | None = Field(
        None,
        description="When to pull; if absent, Always for the tag latest, else IfNotPresent.",
    )
    command: Arguments | None = Field(None, description="Replaces the image's entrypoint.")
    args: Arguments | None = Field(None, description="Arguments of the container.")
    env: (
        Annotated[list[EnvVar], Field(max_length=64, json_schema_extra=keyed_by("name"))] | None
    ) = Field(None, description="Variables of the container; they win over Nimway's own by name.")
    profile: (
        Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._-]+$")] | None
    ) = Field(None, description="NIM_MODEL_PROFILE: the optimisation profile the NIM shall load.")
    port: Port = Field(8000, description="Port of the NIM's HTTP API.")
    auth_secret: ObjectName | None = Field(
        None, description="Secret whose key NGC_API_KEY fetches the weights; none if air-gapped."
    )
    run_as_user: UnixId | None = Field(
        None, description="User id of the container, 1000 if absent."
    )
    run_as_group: UnixId | None = Field(
        None, description="Group id of the container, 2000 if absent."
    )
    fs_group: UnixId | None = Field(None, description="Group id of the volumes, 2000 if absent.")
    gpus: Annotated[int, Field(ge=0, le=64)] = Field(
        1, description="GPUs of each replica; 0 for a CPU model or for DRA claims."
    )
    gpu_resource: Annotated[
        str,
        Field(max_length=253, pattern=RESOURCE),
    ] = Field("nvidia.com/gpu", description="Resource that `gpus` counts, MIG profiles included.")
    resources: ResourceRequirements | None = Field(
        None, description="CPU and memory; GPUs are counted in `gpus`."
    )
    resource_claims: (
        Annotated[list[ResourceClaim], Field(max_length=16, json_schema_extra=keyed_by("name"))]
        | None
    ) = Field(None, description="Devices by dynamic resource allocation (resource.k8s.io/v1).")
    runtime_class_name: ObjectName | None = Field(None, description="RuntimeClass of the pods.")
    scheduler_name: ObjectName | None = Field(
        None, description="Scheduler of the pods, the cluster's default if absent."
    )
    queue_name: Annotated[LabelValue, Field(min_length=1)] | None = Field(
        None, description="Kueue's LocalQueue, the label kueue.x-k8s.io/queue-name."
    )
    storage: Storage | None = Field(
        None, description="Model store; an emptyDir without a limit if absent."
    )
    shared_memory: QuantityString | None = Field(
        None, description="Size limit of /dev/shm, which tensor parallelism needs."
    )
    startup_timeout_seconds: Annotated[int, Field(ge=30, le=86400)] = Field(
        3600, description="Longest time from the container's start until the model is loaded."
    )
    probes: Probes | None = Field(None, description="Overrides of the NIM's probes.")
    rollout: Rollout | None = Field(None, description="How pods are replaced.")
    drain: Drain | None = Field(None, description="How a pod that has to go finishes its requests.")
    replicas: Annotated[int, Field(ge=0, le=1000)] = Field(
        1,
        description="Pods of this model; 0 switches it off. kubectl scale and an HPA write it, and "
        "the operator where there is `autoscaling`: leave it out of Git then.",
    )
    autoscaling: Autoscaling | None = Field(
        None, description="Have the operator write `replicas` by the requests that come."
    )
    routing: Routing | None = Field(
        None, description="How the proxies treat requests to this model."
    )
    service: ServiceMeta | None = Field(None, description="What to add to the model's Service.")
    metrics: Metrics | None = Field(None, description="How the NIM's metrics are collected.")
    labels: Labels | None = Field(None, description="Labels for all children; Nimway's own win.")
    annotations: Annotations | None = Field(None, description="Annotations for the pods.")
