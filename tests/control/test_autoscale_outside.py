"""An HPA on a NIMModel's scale subresource, by the real controller manager."""

import asyncio
from typing import Any

import pytest

from nimway.control.client import KubeClient
from nimway.control.kinds import DEPLOYMENT, MODEL, Kind
from tests.control import samples
from tests.control.process import create, find, patch, until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(240),
    pytest.mark.usefixtures("operator"),
]

HPA = Kind("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler")
UNDISTURBED_S = 6.0
"""Three looks of the HPA's controller."""

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


async def test_an_hpa_keeps_a_model_within_its_bounds_and_the_operator_follows(
    api: KubeClient, namespace: str
) -> None:
    """There is no metrics server here: what an HPA does without one is its bounds."""
    manifest = samples.model("bounded", namespace, replicas=9, gpus=64)
    manifest["metadata"] = {"name": "bounded", "namespace": namespace}
    await create(api, MODEL, manifest)
    await create(api, HPA, _hpa(namespace))

    async def has(replicas: int) -> bool:
        model = await api.get(MODEL, namespace, "bounded")
        deployment = await find(api, DEPLOYMENT, namespace, "bounded")
        wanted = [model["spec"]["replicas"]]
        wanted += [deployment["spec"]["replicas"]] if deployment else []
        return wanted == [replicas, replicas]

    await until(lambda: has(3), "no more than maxReplicas", timeout_s=DISCOVERED_S)
    generation = (await api.get(MODEL, namespace, "bounded"))["metadata"]["generation"]
    await asyncio.sleep(UNDISTURBED_S)
    live = await api.get(MODEL, namespace, "bounded")
    assert live["metadata"]["generation"] == generation, "two controllers set the replicas"
    await patch(api, MODEL, namespace, "bounded", {"spec": {"replicas": 1}})
    await until(lambda: has(2), "no fewer than minReplicas", timeout_s=DISCOVERED_S)
