"""Status of both kinds: condition types, reasons, and the fields that tools read.

`Ready` and `Routed` are positive, `Reconciling` and `Stalled` follow kstatus (abnormal-true: only
`Stalled=True` makes Flux and Helm give up). `observedGeneration` defaults to -1 in the schema, so
that an object without a status is not taken as current.
"""

from enum import StrEnum
from typing import Annotated, Literal

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
    QUOTA_EXCEEDED = "QuotaExceeded"
    LOADING_WEIGHTS = "LoadingWeights"
    STARTUP_TIMEOUT = "StartupTimeout"
    NAME_CONFLICT = "NameConflict"
    OBJECT_CONFLICT = "ObjectConflict"
    INVALID_SPEC = "InvalidSpec"
    NAMESPACE_NOT_ALLOWED = "NamespaceNotAllowed"
    TABLE_TOO_LARGE = "TableTooLarge"
    TERMINATING = "Terminating"
    API_ERROR = "ApiError"


class Condition(ApiModel):
    """meta/v1 Condition."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    status: Literal["True", "False", "Unknown"]
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    last_transition_time: Annotated[
        str, Field(max_length=64, json_schema_extra={"format": "date-time"})
    ]
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    message: Annotated[str, Field(max_length=32768)]


Conditions = Annotated[list[Condition], Field(max_length=16, json_schema_extra=keyed_by("type"))]


class CommonStatus(ApiModel):
    """Fields of both kinds."""

    observed_generation: int = -1
    conditions: Conditions | None = None
    replicas: int | None = Field(None, description="Pods that exist.")
    ready_replicas: int | None = Field(None, description="Pods that are ready.")
    ready: Annotated[str, Field(max_length=32)] | None = Field(
        None, description="Ready and wanted pods, such as 1/2."
    )
    selector: Annotated[str, Field(max_length=4096)] | None = Field(
        None, description="Label selector of the pods, for the scale subresource."
    )
    endpoint: Annotated[str, Field(max_length=1024)] | None = None
    image: Annotated[str, Field(max_length=512)] | None = None


class NIMModelStatus(CommonStatus):
    """What the operator saw of a model. `endpoint` is the model's own Service."""

    served_models: (
        Annotated[list[Annotated[str, Field(max_length=253)]], Field(max_length=64)] | None
    ) = Field(None, description="Names that clients can use now.")


class NIMProxyStatus(CommonStatus):
    """What the operator saw of a proxy. `endpoint` is the base URL for clients."""

    revision: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Routing table revision that every ready pod serves."
    )
    models: int | None = Field(None, description="Models in the routing table.")
