"""What an autoscaler that has just started makes of a model's status, and what it says itself."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from nimway.control.clock import timestamp
from nimway.control.facts import NO_DEPLOYMENT
from nimway.control.kinds import DEPLOYMENT, MODEL, Ref
from nimway.control.load import LoadBook
from nimway.control.metrics import Metrics
from nimway.control.scaling import HELD_TOLD_S, SCALE, Autoscaler
from nimway.control.sleep import Autoscaled, Waking
from nimway.control.store import Store
from tests.control import samples

if TYPE_CHECKING:
    from nimway.control.context import Context

NOW = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)
LOADING = replace(NO_DEPLOYMENT, observed=True, wanted=1, replicas=1, updated=1)
SERVING = replace(LOADING, ready=1, available=1)


class Desk:
    """An autoscaler without a cluster, at a time that a test sets."""

    def __init__(self) -> None:
        self.passed_s = 0.0
        self.metrics = Metrics()
        self.marked: list[float] = []
        self.reported: list[Ref] = []
        self.is_selected = True
        parts = SimpleNamespace(
            store=Store(),
            loads=LoadBook(),
            metrics=self.metrics,
            workers=SimpleNamespace(mark=self._mark),
            proxy_keys=lambda: ["models/edge"],
            book=SimpleNamespace(
                decision=lambda _: SimpleNamespace(selects=lambda _: self.is_selected)
            ),
            clock=lambda: 1000.0 + self.passed_s,
            wall=lambda: NOW + timedelta(seconds=self.passed_s),
        )
        self.store, self.loads = parts.store, parts.loads
        self.autoscaler = Autoscaler(cast("Context", parts), may_write=lambda: True)

    def _mark(self, ref: Ref, *, delay_s: float = 0.0) -> None:
        self.marked.append(delay_s)
        if ref.kind == MODEL.kind:
            self.reported.append(ref)

    def status(self, live: dict[str, Any], deployment: Any = SERVING, replicas: int = 1) -> Any:
        """Return `status.autoscaling` as the reconciler would write it."""
        scaled = self.autoscaler.view(live, replicas, deployment)
        assert scaled is not None
        return self.autoscaler.status(live, replicas, scaled)


async def _look(desk: Desk, live: dict[str, Any], at_s: float) -> str | None:
    """Let the autoscaler decide at a time, and return what the status tells of who holds it."""
    desk.passed_s = at_s
    await desk.autoscaler.reconcile(Ref(SCALE, "models", "llama"))
    held_by: str | None = desk.status(live).get("heldBy")
    return held_by


async def test_who_keeps_an_idle_models_pod_is_told_after_a_minute_and_when_it_is_over() -> None:
    desk, live = Desk(), _model(idleSince=_ago(3000))
    live["status"]["autoscaling"]["heldBy"] = "known from before"
    live["spec"]["autoscaling"]["scaleDownDelaySeconds"] = 0
    desk.store.put(MODEL, live)
    serving = {"observedGeneration": 9, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1}
    deployment = {"metadata": {**live["metadata"], "uid": "d"}, "spec": {"replicas": 1}}
    desk.store.put(DEPLOYMENT, {**deployment, "status": {**serving, "availableReplicas": 1}})
    assert await _look(desk, live, 0) == "known from before"
    began_s = 70.0  # a new operator waits a minute before anything may sleep
    assert await _look(desk, live, began_s) == "known from before"
    assert await _look(desk, live, began_s + HELD_TOLD_S - 1) == "known from before"
    assert desk.reported == []
    text = await _look(desk, live, began_s + HELD_TOLD_S + 1)
    assert text is not None
    assert text.startswith("NIMProxy models/edge is not heard")
    assert len(desk.reported) == 1
    assert await _look(desk, live, began_s + HELD_TOLD_S + 20) == text
    desk.is_selected = False
    assert await _look(desk, live, began_s + HELD_TOLD_S + 30) == "no NIMProxy selects it"
    desk.is_selected = True
    desk.reported.clear()
    desk.loads.follow("models/edge", (), wanted=0)
    live["metadata"]["resourceVersion"] = "99"
    live["spec"]["autoscaling"] = {**live["spec"]["autoscaling"], "minReplicas": 1}
    desk.store.put(MODEL, live)
    assert await _look(desk, live, began_s + HELD_TOLD_S + 40) is None
    assert len(desk.reported) == 1


def _ago(seconds: float) -> str:
    return timestamp(NOW - timedelta(seconds=seconds))


def _model(reason: str = "Serving", replicas: int = 1, **autoscaling: Any) -> dict[str, Any]:
    rules = {"minReplicas": 0, "maxReplicas": 2, "idleSeconds": 800}
    live = samples.model(replicas=replicas, autoscaling=rules)
    ready = {"type": "Ready", "status": "False", "reason": reason, "message": ""}
    live["status"] = {"conditions": [ready], "autoscaling": {"desiredReplicas": 1, **autoscaling}}
    return live


def test_a_model_without_autoscaling_is_none_of_its_business() -> None:
    assert Desk().autoscaler.view(samples.model(), 1, SERVING) is None


@pytest.mark.parametrize("idle_s", [300, 3000])
def test_the_rest_of_an_idle_model_is_remembered(idle_s: float) -> None:
    live = _model(idleSince=_ago(idle_s), coldStartSeconds=7)
    desk = Desk()
    assert desk.status(live) == live["status"]["autoscaling"]
    desk.passed_s = 30
    assert desk.status(live) == live["status"]["autoscaling"], "nothing to write"


def test_a_model_of_which_no_rest_is_noted_is_taken_for_in_use() -> None:
    desk, live = Desk(), _model()
    assert desk.status(live) == {"desiredReplicas": 1}
    desk.passed_s = 199
    assert desk.status(live) == {"desiredReplicas": 1}
    desk.passed_s = 201
    assert desk.status(live) == {"desiredReplicas": 1, "idleSince": timestamp(NOW)}


def test_a_sleeping_models_status_is_left_as_it_is() -> None:
    live = _model("ScaledToZero", 0, idleSince=_ago(90000), lastScaleTime=_ago(80000))
    live["status"]["autoscaling"]["desiredReplicas"] = 0
    desk = Desk()
    assert desk.status(live, NO_DEPLOYMENT, 0) == live["status"]["autoscaling"]
    desk.passed_s = 10_000
    assert desk.status(live, NO_DEPLOYMENT, 0) == live["status"]["autoscaling"]


def test_a_cold_start_that_began_before_us_is_measured_to_its_end() -> None:
    desk = Desk()
    live = _model("Waking", lastScaleTime=_ago(20), coldStartSeconds=10)
    assert desk.autoscaler.view(live, 1, LOADING) == Autoscaled(10, Waking(_ago(20), late=True))
    desk.passed_s = 10
    assert desk.autoscaler.view(live, 1, SERVING) == Autoscaled(20)
    assert desk.status(live)["coldStartSeconds"] == 20
    labels = {"namespace": "models", "nimmodel": "llama"}
    seconds = desk.metrics.registry.get_sample_value(
        "nimway_operator_cold_start_seconds_sum", labels
    )
    assert seconds == 30.0


def test_who_wakes_for_long_is_looked_at_when_that_becomes_worth_a_word() -> None:
    desk = Desk()
    live = _model("Waking", lastScaleTime=_ago(5), coldStartSeconds=10)
    assert desk.autoscaler.view(live, 1, LOADING) == Autoscaled(10, Waking(_ago(5)))
    assert desk.marked == [15.0]


def test_a_model_that_goes_takes_its_metrics_with_it() -> None:
    desk = Desk()
    desk.status(_model())
    labels = {"namespace": "models", "nimmodel": "llama"}
    ready = "nimway_operator_replicas_ready"
    assert desk.metrics.registry.get_sample_value(ready, labels) == 1
    desk.autoscaler.forget("models/llama")
    assert desk.metrics.registry.get_sample_value(ready, labels) is None
