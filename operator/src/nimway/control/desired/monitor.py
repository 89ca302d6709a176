"""ServiceMonitors (monitoring.coreos.com/v1): what the Prometheus operator is told to scrape."""

from typing import Any

from nimway.api.monitoring import Metrics
from nimway.control.desired import names
from nimway.control.desired.metadata import child, component_of, metadata
from nimway.control.kinds import SERVICE_MONITOR, Manifest
from nimway.control.resolve import Owner


def build_monitor(
    owner: Owner, metrics: Metrics | None, *, name: str, endpoint: dict[str, Any]
) -> Manifest | None:
    """Return the ServiceMonitor that selects the owner's Service; None if none is wanted.

    `endpoint` names the port and the path.
    """
    wanted = metrics.service_monitor if metrics else None
    if wanted is None:
        return None
    if wanted.interval_seconds is not None:
        endpoint = {**endpoint, "interval": f"{wanted.interval_seconds}s"}
    return child(
        SERVICE_MONITOR,
        metadata(owner, name, user_labels=wanted.labels),
        spec={
            "selector": {"matchLabels": names.selector_labels(component_of(owner), owner.name)},
            "endpoints": [endpoint],
        },
    )
