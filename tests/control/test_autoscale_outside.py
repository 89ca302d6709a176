"""An HPA on a NIMModel's scale subresource, by the real controller manager."""

from typing import Any

import pytest

from nimway.control.client import KubeClient
from nimway.control.kinds import MODEL, Kind
from tests.control import samples
from tests.control.process import create, patch, until
from tests.support.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

HPA = Kind("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler")
DISCOVERED_S = 100.0
"""The controller looks every 2 s (15 s on another cluster), and hears of new kinds every 30 s."""


def _hpa(namespace: str) -> dict[str, Any]:
    target = {"apiVersion": MODEL.api_version, "kind": MODEL.kind, "name": "bounded"}
    cpu = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}
    return {
        "apiVersion": HPA.api_version,
        "kind": HPA.kind,
        "metadata": {"name": "bounded", "namespace": namespace},
        "spec": {
            "scaleTargetRef": target,
            "minReplicas": 2,
            "maxReplicas": 3,
            "metrics": [{"type": "Resource", "resource": cpu}],
        },
    }


async def test_an_hpa_keeps_a_model_within_its_bounds(
    api: KubeClient, crds: Cluster, namespace: str
) -> None:
    """There is no metrics server here: what an HPA does without one is its bounds."""
    assert crds.kubeconfig
    manifest = samples.model("bounded", namespace, replicas=9, gpus=64)
    manifest["metadata"] = {"name": "bounded", "namespace": namespace}
    await create(api, MODEL, manifest)
    status = {"observedGeneration": 1, "replicas": 9, "selector": "app=bounded"}
    await api.request(
        "PATCH",
        f"{MODEL.path(namespace, 'bounded')}/status",
        body={"status": status},
        content_type="application/merge-patch+json",
    )
    await create(api, HPA, _hpa(namespace))

    async def has(replicas: int) -> bool:
        live = await api.get(MODEL, namespace, "bounded")
        return bool(live["spec"]["replicas"] == replicas)

    await until(lambda: has(3), "no more than maxReplicas", timeout_s=DISCOVERED_S)
    await patch(api, MODEL, namespace, "bounded", {"spec": {"replicas": 1}})
    await until(lambda: has(2), "no fewer than minReplicas", timeout_s=DISCOVERED_S)
