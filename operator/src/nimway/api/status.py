"""Status of both kinds: condition types, reasons, and the fields that tools read.

`Ready` and `Routed` are positive, `Reconciling` and `Stalled` follow kstatus (abnormal-true: only
`Stalled=True` makes Flux and Helm give up). `observedGeneration` defaults to -1 in the schema, so
that an object without a status is not taken as current.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Final, Literal

from pydantic import Field

from nimway.api.base import ApiModel, keyed_by


class ConditionType(StrEnum):
    """Types of conditions; NIMProxy has all but ROUTED."""

    READY = "Ready"
    AVAILABLE = "Available"
    ROUTED = "Routed"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Reason(StrEnum):
    """Reasons of conditions, CamelCase as the Kubernetes API conventions want."""

    SERVING = "Serving"
    SCALED_TO_ZERO = "ScaledToZero"
    WAKING = "Waking"
    SWITCHED_OFF = "SwitchedOff"
    PROGRESSING = "Progressing"
    SETTLED = "Settled"
    NO_PROXY = "NoProxy"
    NOT_ROUTED = "NotRouted"
    PROXY_NOT_READY = "ProxyNotReady"
    WAITING_FOR_GPU = "WaitingForGPU"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CRASH_LOOP = "CrashLoop"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason, no password
    CONTAINER_CONFIG_ERROR = "ContainerConfigError"
    PVC_PENDING = "PVCPending"
    NODE_NOT_READY = "NodeNotReady"
    QUOTA_EXCEEDED = "QuotaExceeded"
    PODS_REFUSED = "PodsRefused"
    LOADING_WEIGHTS = "LoadingWeights"
    WAITING_FOR_TABLE = "WaitingForTable"
    STARTUP_TIMEOUT = "StartupTimeout"
    NAME_CONFLICT = "NameConflict"
    OBJECT_CONFLICT = "ObjectConflict"
    CONTESTED = "Contested"
    INVALID_SPEC = "InvalidSpec"
    NAMESPACE_NOT_ALLOWED = "NamespaceNotAllowed"
    TABLE_TOO_LARGE = "TableTooLarge"
    TERMINATING = "Terminating"
    API_ERROR = "ApiError"


CONDITION_HELP: Final[Mapping[ConditionType, str]] = MappingProxyType(
    {
        ConditionType.READY: "True: it can be used. A model is routed and at least one replica "
        "serves, or it sleeps or is switched off on purpose. It stays True in a rolling update "
        "that keeps serving.",
        ConditionType.AVAILABLE: "True: at least one pod is available, as its Deployment counts.",
        ConditionType.ROUTED: "True: at least one NIMProxy that selects the model has a ready pod, "
        "and every ready pod of every such NIMProxy serves its current route. Unknown: no NIMProxy "
        "selects it, and Ready does not wait for one.",
        ConditionType.RECONCILING: "True: work is under way (kstatus). The reason says what it "
        "waits for.",
        ConditionType.STALLED: "True: waiting will not help, a person has to change something "
        "(kstatus). This alone makes Flux and Helm give up.",
    }
)
"""What each condition type says."""

REASON_HELP: Final[Mapping[Reason, tuple[str, str]]] = MappingProxyType(
    {
        Reason.SERVING: ("It works.", ""),
        Reason.SCALED_TO_ZERO: (
            "It sleeps: the autoscaler took the last pod away when nobody asked.",
            "Nothing. The first request wakes it and is held until it is ready.",
        ),
        Reason.WAKING: (
            "A request woke it, and no pod is ready yet. Requests are held.",
            "Wait. The message says since when, and how long it usually takes.",
        ),
        Reason.SWITCHED_OFF: (
            "spec.replicas is 0, and there is no autoscaling. Requests get 503.",
            "Raise replicas to switch it on.",
        ),
        Reason.PROGRESSING: (
            "Pods are being created, pulled or replaced, or wait for the holder of a scheduling "
            "gate, such as Kueue.",
            "Wait. The message says which pod, and which gate.",
        ),
        Reason.SETTLED: ("Everything is as declared.", ""),
        Reason.NO_PROXY: (
            "No NIMProxy selects this model; it can be used by its own Service only.",
            "Check spec.namespaces and spec.modelSelector of the NIMProxies.",
        ),
        Reason.NOT_ROUTED: (
            "Some proxy pods do not serve the current route yet, are not heard, or may not see the "
            "model's pods. Of a NIMProxy: some of its pods do not serve its table, or are not "
            "heard.",
            "Takes moments. If it lasts, the message says why: check NetworkPolicies and the mesh "
            "on the pods' port 8001, the proxy's rights in the namespace, the proxy pods' logs.",
        ),
        Reason.PROXY_NOT_READY: (
            "NIMProxies select the model, and none of them has a ready pod.",
            "kubectl describe nimproxy.",
        ),
        Reason.WAITING_FOR_GPU: (
            "The scheduler finds no node with enough free GPUs of the kind in gpuResource.",
            "Free GPUs, add a node, or ask for fewer. It goes on by itself.",
        ),
        Reason.UNSCHEDULABLE: (
            "The scheduler finds no node for another reason, in its own words in the message.",
            "Check nodeSelector, affinity, tolerations, CPU and memory.",
        ),
        Reason.IMAGE_PULL_FAILED: (
            "The image cannot be pulled.",
            "Check image and imagePullSecrets; nvcr.io wants a pull secret.",
        ),
        Reason.CRASH_LOOP: (
            "The container ends again and again; the message has its last exit.",
            "kubectl logs --previous on the pod.",
        ),
        Reason.SECRET_NOT_FOUND: (
            "A Secret that the pod names is missing.",
            "Create it in the model's namespace. The pod goes on by itself.",
        ),
        Reason.CONTAINER_CONFIG_ERROR: (
            "The container cannot be created, a missing ConfigMap key for example.",
            "Read the message; check env, command and the volumes.",
        ),
        Reason.PVC_PENDING: (
            "A volume claim is not bound, or not mountable on this node.",
            "kubectl describe pvc; pods on several nodes need accessMode ReadWriteMany.",
        ),
        Reason.NODE_NOT_READY: (
            "The pod's node does not answer. Kubernetes replaces the pod after its toleration, "
            "five minutes if you say nothing.",
            "kubectl get nodes. tolerations with tolerationSeconds shorten the wait.",
        ),
        Reason.QUOTA_EXCEEDED: (
            "A ResourceQuota of the namespace forbids another pod or object.",
            "Raise the quota or lower the demand. It goes on by itself.",
        ),
        Reason.PODS_REFUSED: (
            "The API server refuses to create the pods, in its own words in the message: a pod "
            "security level, a policy, a LimitRange or a missing PriorityClass.",
            "Change the spec, or what forbids it. It goes on by itself.",
        ),
        Reason.WAITING_FOR_TABLE: (
            "A proxy pod runs and has not read its routing table and all endpoints yet.",
            "Takes moments. If it lasts, read its log: its rights, the way to the API server.",
        ),
        Reason.LOADING_WEIGHTS: (
            "The container runs and is not ready: it fetches or loads weights.",
            "Wait, up to startupTimeoutSeconds.",
        ),
        Reason.STARTUP_TIMEOUT: (
            "The model was not ready within startupTimeoutSeconds and half an hour for pulling. "
            "The wait for a node does not count.",
            "Read the pod's log; raise startupTimeoutSeconds if it only needs longer.",
        ),
        Reason.NAME_CONFLICT: (
            "Every name of the model is held by another NIMModel, or kept for the namespace of "
            "one that was deleted; the message names it. No proxy leads to its pods.",
            "Give it an alias that nobody has, or set replicas to 0: model can be changed then, "
            "too. A name of another namespace has to be claimed anew once it is free: change the "
            "spec or the annotation nimway.dev/claim.",
        ),
        Reason.OBJECT_CONFLICT: (
            "An object of the name that is needed exists and is not Nimway's. It is left alone.",
            "Delete or rename that object, or rename the NIMModel or NIMProxy. A claim that is to "
            "be used on purpose is named in storage.pvc.claimName.",
        ),
        Reason.CONTESTED: (
            "Somebody else changes or deletes one of its objects again and again. Nimway undoes "
            "that at once at first, then ever more rarely; routing tables each time.",
            "The message names the field and, where Kubernetes knows, who writes it: stop that, or "
            "declare what it wants. An autoscaler belongs on the NIMModel. It is told until "
            "nothing had to be undone for 10 minutes.",
        ),
        Reason.INVALID_SPEC: (
            "The spec passed admission and still cannot work; the message names the field.",
            "Correct the field.",
        ),
        Reason.NAMESPACE_NOT_ALLOWED: (
            "A NIMProxy may serve other namespaces only in the release's own namespace or in a "
            "trusted one, named in the message. One that could before serves its own namespace.",
            "Move it there, or have its namespace added to operator.trustedProxyNamespaces.",
        ),
        Reason.TABLE_TOO_LARGE: (
            "The routing table does not fit into a ConfigMap. The last one that did stays in "
            "force; models that are not in it are NotRouted, with this text.",
            "Spread the models over several NIMProxies.",
        ),
        Reason.TERMINATING: (
            "An object of the same name, or the namespace, is still being deleted; or this object "
            "is, and finalizers of others keep it.",
            "Wait. A claim goes once no pod uses it: leave its finalizer alone. Of another object "
            "that stays, look at the finalizers.",
        ),
        Reason.API_ERROR: (
            "The API server refuses the operator a write, in its own words in the message: it "
            "forbids it (Stalled), or fails, as where an admission webhook does not answer.",
            "Check the operator's rights, admission policies and webhooks. Once the write is let "
            "through it goes on by itself, within half a minute.",
        ),
    }
)
"""What each reason means, and what to do about it; docs/api.md is made from it."""


Time = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]


class Condition(ApiModel):
    """meta/v1 Condition."""

    type: Annotated[str, Field(min_length=1, max_length=316)] = Field(
        description="Type of the condition."
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    observed_generation: Annotated[int, Field(ge=0)] | None = Field(
        None, description="metadata.generation that this speaks of."
    )
    last_transition_time: Time = Field(description="When the status last changed.")
    reason: Annotated[str, Field(min_length=1, max_length=1024)] = Field(
        description="One word for programs."
    )
    message: Annotated[str, Field(max_length=32768)] = Field(description="A sentence for people.")


Conditions = Annotated[list[Condition], Field(max_length=16, json_schema_extra=keyed_by("type"))]


class CommonStatus(ApiModel):
    """Fields of both kinds."""

    observed_generation: int = Field(
        -1, description="metadata.generation that this status speaks of; -1 before the first."
    )
    conditions: Conditions | None = Field(None, description="What holds now.")
    replicas: int | None = Field(None, description="Pods that exist.")
    ready_replicas: int | None = Field(None, description="Pods that are ready.")
    ready: Annotated[str, Field(max_length=32)] | None = Field(
        None, description="Ready and wanted pods, such as 1/2."
    )
    selector: Annotated[str, Field(max_length=4096)] | None = Field(
        None, description="Label selector of the pods, for the scale subresource."
    )
    endpoint: Annotated[str, Field(max_length=1024)] | None = Field(
        None, description="URL of the Service."
    )
    image: Annotated[str, Field(max_length=512)] | None = Field(
        None, description="Image of the pods."
    )


class AutoscalingStatus(ApiModel):
    """What the autoscaler did and knows."""

    desired_replicas: int = Field(description="Pods there are to be, within the declared bounds.")
    idle_since: Time | None = Field(
        None,
        description="Since when the model has not been in use; absent while it is. Written late "
        "and seldom, for an operator that starts anew.",
    )
    last_scale_time: Time | None = Field(None, description="When replicas were last changed.")
    last_scale_reason: Annotated[str, Field(max_length=512)] | None = Field(
        None, description="Why, in words, such as from and to how many."
    )
    cold_start_seconds: int | None = Field(
        None, description="How long it lately took from waking to the first ready pod."
    )
    held_by: Annotated[str, Field(max_length=512)] | None = Field(
        None,
        description="Why no pod is taken away though fewer are enough: a NIMProxy that may hold "
        "requests has not been heard for a minute, or none selects the model.",
    )


class RefusedName(ApiModel):
    """A name that a NIMProxy does not lead here by.

    One that another namespace held is not passed on when its holder is deleted, for it may be
    applied again. It stays refused until the claim is another one: until the spec (`replicas`
    apart) or the annotation nimway.dev/claim changes.
    """

    proxy: Annotated[str, Field(max_length=317)] = Field(
        description="The NIMProxy, as namespace/name."
    )
    name: Annotated[str, Field(max_length=253)] = Field(description="The name as it was claimed.")
    holder: Annotated[str, Field(max_length=317)] = Field(
        description="The NIMModel that has the name, or had it last, as namespace/name."
    )
    claim: Annotated[str, Field(max_length=64)] = Field(
        description="Hash of the claim that was refused."
    )
    until: Time | None = Field(
        None,
        description="Until when the name is kept for the namespace of its last holder; then it is "
        "decided again. Absent while somebody has it, and where waiting does not help.",
    )


class NIMModelStatus(CommonStatus):
    """What the operator saw of a model. `endpoint` is the model's own Service."""

    autoscaling: AutoscalingStatus | None = Field(
        None, description="Only where the spec has autoscaling."
    )

    served_models: (
        Annotated[list[Annotated[str, Field(max_length=253)]], Field(max_length=64)] | None
    ) = Field(None, description="Names that clients can use now.")
    refused_names: Annotated[list[RefusedName], Field(max_length=512)] | None = Field(
        None, description="Names that it claims and does not get, and from whom."
    )


class NIMProxyStatus(CommonStatus):
    """What the operator saw of a proxy. `endpoint` is the base URL for clients."""

    revision: Annotated[str, Field(max_length=64)] | None = Field(
        None,
        description="Routing table revision that every ready pod serves; absent while one is late "
        "or not heard, or none is ready.",
    )
    models: int | None = Field(None, description="Models in the routing table.")
