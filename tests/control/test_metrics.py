"""The operator's page of metrics, with every family on it."""

from prometheus_client import generate_latest

from nimway.control.metrics import Metrics
from tests.support.promtool import check_metrics


def test_promtool_has_nothing_to_say() -> None:
    metrics = Metrics()
    for family in vars(metrics).values():
        if names := getattr(family, "_labelnames", ()):
            family.labels(*("x" for _ in names))
    assert check_metrics(generate_latest(metrics.registry)) == (0, b"")
