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
from nimway.api.monitoring import Metrics
from nimway.api.nimmodel import RoutingQueue, RoutingTimeouts


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


class ProxyQueue(RoutingQueue):
    """Requests that wait, of each model whose `routing.queue` says nothing."""

    max_requests: Annotated[int, Field(ge=0, le=100000)] | None = Field(
        None,
        description="Requests of one model that may wait in one proxy pod, 1000 if absent.",
    )
    max_wait_seconds: Annotated[int, Field(ge=0, le=3600)] | None = Field(
        None, description="Longest wait, 50 if absent; SDKs give up after 60 s and ask again."
    )


class ProxyLimits(ApiModel):
    """What one worker of a proxy takes on; what is beyond is refused, and the client is told."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "(has(self.maxBodyBytes) ? self.maxBodyBytes : 67108864) <= "
                "(has(self.maxBufferedBytes) ? self.maxBufferedBytes : 268435456)",
                "limits: maxBodyBytes (64 MiB if absent) must not be above maxBufferedBytes "
                "(256 MiB if absent)",
            ),
            (
                "(has(self.maxHeaderLineBytes) ? self.maxHeaderLineBytes : 16384) <= "
                "(has(self.maxHeaderBytes) ? self.maxHeaderBytes : 65536)",
                "limits: maxHeaderLineBytes (16 KiB if absent) must not be above maxHeaderBytes "
                "(64 KiB if absent)",
            ),
        )
    )

    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="Clients' connections, 10000 if absent; 503 beyond."
    )
    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] | None = Field(
        None, description="Largest body of a request, 64 MiB if absent; 413 beyond."
    )
    max_buffered_bytes: Annotated[int, Field(ge=1024, le=1 << 36)] | None = Field(
        None,
        description="Bodies of requests in memory, all together, 256 MiB if absent; 503 beyond. "
        "Give the pod memory for it.",
    )
    max_header_bytes: Annotated[int, Field(ge=1024, le=1 << 20)] | None = Field(
        None, description="Head of a request, 64 KiB if absent; 431 beyond."
    )
    max_header_line_bytes: Annotated[int, Field(ge=1024, le=1 << 20)] | None = Field(
        None, description="A line of a head, 16 KiB if absent; 431 beyond."
    )
    max_headers: Annotated[int, Field(ge=10, le=1000)] | None = Field(
        None, description="Fields of a head, 100 if absent; 431 beyond."
    )
    queue: ProxyQueue | None = Field(
        None,
        description="For models whose `routing.queue` says nothing: 1000 requests in each proxy "
        "pod and 50 s if absent.",
    )


class ProxyTimeouts(RoutingTimeouts):
    """Waits. Those that a model's `routing.timeouts` has too hold where it says nothing."""

    head_seconds: Annotated[int, Field(ge=1, le=600)] | None = Field(
        None, description="For a client to send a whole head, 10 if absent."
    )
    client_idle_seconds: Annotated[int, Field(ge=1, le=3600)] | None = Field(
        None, description="Until a client's connection without a request is closed, 75 if absent."
    )


class AccessLog(ApiModel):
    """The proxy's log of requests: a line of JSON each, without prompts and keys."""

    sample_percent: Annotated[int, Field(ge=0, le=100)] = Field(
        100, description="Share of requests that get a line: one in 100/n, rounded. 0 for none."
    )


class NIMProxySpec(Placement):
    """What the user wants: how many proxies, and whose models they serve."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.namespaces) || !self.namespaces.exists(name, name == '*') || "
                "self.namespaces.size() == 1",
                "namespaces: '*' stands for all namespaces and must stand alone",
            ),
            (
                "!has(self.namespaces) || !has(self.namespaceSelector)",
                "namespaceSelector: must not be set together with namespaces",
            ),
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
    namespace_selector: LabelSelector | None = Field(
        None,
        description="Labels of the namespaces whose models are served, an empty selector for all; "
        "the oldest model has a name.",
    )
    limits: ProxyLimits | None = Field(
        None, description="What each worker takes on. A change replaces the pods, one by one."
    )
    timeouts: ProxyTimeouts | None = Field(
        None, description="Waits of a request and of connections."
    )
    pass_authorization: bool = Field(
        default=False,
        description="Pass clients' credentials on to the models: `Authorization`, `X-Api-Key`, "
        "`Api-Key` and `Cookie`; they are removed otherwise.",
    )
    access_log: AccessLog | None = Field(
        None, description="The log of requests; every one if absent."
    )
    metrics: Metrics | None = Field(None, description="How the proxies' metrics are collected.")
    drain_seconds: Annotated[int, Field(ge=0, le=7200)] = Field(
        600, description="Longest time a stopping proxy may take to finish its requests."
    )
    labels: Labels | None = Field(None, description="Labels for all children; Nimway's own win.")
    annotations: Annotations | None = Field(None, description="Annotations for the pods.")
