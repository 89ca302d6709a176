"""NIMProxy: one proxy Deployment, the address at which clients find the models it selects."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from nimway.api.base import (
    SET,
    Annotations,
    ApiModel,
    ImagePullPolicy,
    ImageReference,
    Labels,
    Port,
    rules,
)
from nimway.api.kubernetes import LabelSelector, Placement, ResourceRequirements

ALL_NAMESPACES = "*"


class ProxyService(ApiModel):
    """The Service through which clients reach the proxy."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field(
        "ClusterIP", description="Type of the Service."
    )
    port: Port = Field(8000, description="Port of the Service.")
    annotations: Annotations | None = Field(
        None, description="Annotations of the Service, for a cloud load balancer say."
    )
    labels: Labels | None = Field(None, description="Labels of the Service; Nimway's own win.")


class NIMProxySpec(Placement):
    """What the user wants: how many proxies, and whose models they serve."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.namespaces) || !self.namespaces.exists(name, name == '*') || "
                "self.namespaces.size() == 1",
                "namespaces: '*' stands for all namespaces and must stand alone",
            )
        )
    )

    replicas: Annotated[int, Field(ge=0, le=100)] = Field(2, description="Proxy pods.")
    workers: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="Serving processes in each pod, one per CPU core it may use."
    )
    image: ImageReference | None = Field(None, description="Image; the operator's own if absent.")
    image_pull_policy: ImagePullPolicy | None = Field(
        None, description="When to pull; Kubernetes' rule if absent."
    )
    resources: ResourceRequirements | None = Field(
        None, description="CPU and memory of the proxy container."
    )
    service: ProxyService | None = Field(
        None, description="The Service through which clients reach the proxy."
    )
    model_selector: LabelSelector | None = Field(
        None, description="Labels of the NIMModels to serve; all if absent."
    )
    namespaces: (
        Annotated[
            list[
                Annotated[
                    str, Field(max_length=63, pattern=r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$")
                ]
            ],
            Field(min_length=1, max_length=256, json_schema_extra=SET),
        ]
        | None
    ) = Field(
        None,
        description="Namespaces whose models are served, the first wins a name; '*' for all. "
        "Only its own if absent.",
    )
    drain_seconds: Annotated[int, Field(ge=0, le=7200)] = Field(
        600, description="Longest time a stopping proxy may take to finish its requests."
    )
    labels: Labels | None = Field(None, description="Labels for all children; Nimway's own win.")
    annotations: Annotations | None = Field(None, description="Annotations for the pods.")
