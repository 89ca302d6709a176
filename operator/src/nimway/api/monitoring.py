"""What both kinds say about metrics: whether the Prometheus operator shall be told of them."""

from typing import Annotated

from pydantic import Field

from nimway.api.base import ApiModel, Labels


class ServiceMonitor(ApiModel):
    """A ServiceMonitor (monitoring.coreos.com/v1); made where the cluster has that kind."""

    labels: Labels | None = Field(
        None, description="Labels by which your Prometheus finds it; Nimway's own win."
    )
    interval_seconds: Annotated[int, Field(ge=1, le=3600)] | None = Field(
        None, description="Time between two scrapes; Prometheus' own if absent."
    )


class Metrics(ApiModel):
    """How metrics are collected."""

    service_monitor: ServiceMonitor | None = Field(
        None,
        description="Have a ServiceMonitor, `{}` with no labels of its own. Nothing happens where "
        "the Prometheus operator is not installed; once it is, within a minute.",
    )
