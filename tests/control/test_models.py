"""One reconcile of a model with everything around it pretended: what is told, what comes again."""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from nimway.control.book import RouteBook
from nimway.control.client import ServerError
from nimway.control.conditions import Verdict, render
from nimway.control.kinds import DEPLOYMENT, MODEL, POD, SERVICE, Kind, Manifest, Ref
from nimway.control.models import ModelReconciler
from nimway.control.store import Store
from tests.control import samples

if TYPE_CHECKING:
    from nimway.control.context import Context
    from nimway.control.scaling import Autoscaler

REF = Ref("NIMModel", "models", "llama")
NOW = datetime(2025, 11, 24, 16, 0, tzinfo=UTC)
LATE = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}


class Pretended:
    """The reconciler's surroundings: `error` is what applying ends with."""

    def __init__(self) -> None:
        self.store = Store()
        self.error: Exception | None = None
        self.told: dict[str, Verdict] = {}
        self.status: Manifest = {}
        self.marks: list[float] = []
        self.now = NOW
        nothing = SimpleNamespace(
            confirm=self._do_nothing, prune=self._do_nothing, apply_all=self._apply
        )
        context = SimpleNamespace(
            store=self.store,
            book=RouteBook(),
            proxy_keys=list,
            clock=lambda: 0.0,
            wall=lambda: self.now,
            reporter=SimpleNamespace(report=self._report),
            workers=SimpleNamespace(mark=self._mark),
            applier=nothing,
            monitors=SimpleNamespace(served=False),
        )
        autoscaler = SimpleNamespace(changed=lambda _: None, view=lambda *_: None)
        self.reconciler = ModelReconciler(cast("Context", context), cast("Autoscaler", autoscaler))

    def add(self, kind: Kind, uid: str = samples.MODEL_UID, **content: Any) -> None:
        """Put a child of the model, or of the owner with `uid`, into the store."""
        labels = {"nimway.dev/owner-uid": uid}
        metadata = {"name": "llama", "namespace": "models", "uid": kind.kind, "labels": labels}
        self.store.put(kind, {"metadata": {**metadata, "resourceVersion": "1"}, **content})

    async def _do_nothing(self, *_: object) -> None:
        return None

    async def _apply(self, *_: object) -> None:
        if self.error is not None:
            raise self.error

    async def _report(
        self, kind: Kind, live: Manifest, verdicts: Mapping[str, Verdict], fields: Manifest
    ) -> None:
        del kind
        before = live.get("status", {}).get("conditions", ())
        self.told, self.status = dict(verdicts), fields
        conditions = render(verdicts, before, 1, "T")
        version = str(int(live["metadata"]["resourceVersion"]) + 1)
        metadata = {**live["metadata"], "resourceVersion": version}
        self.store.put(
            MODEL, {**live, "metadata": metadata, "status": {**fields, "conditions": conditions}}
        )

    def _mark(self, ref: Ref, *, delay_s: float = 0.0) -> None:
        assert ref == REF
        self.marks.append(delay_s)


@pytest.fixture
def around() -> Pretended:
    """A model of which every child exists."""
    found = Pretended()
    found.store.put(MODEL, samples.model())
    found.add(SERVICE)
    return found


async def test_a_pod_that_got_its_node_late_is_looked_at_when_its_time_is_over(
    around: Pretended,
) -> None:
    spec = {"progressDeadlineSeconds": 5400, "replicas": 1}
    around.add(DEPLOYMENT, spec=spec, status={"conditions": [LATE]})
    scheduled = {"type": "PodScheduled", "status": "True"}
    around.add(
        POD,
        status={
            "conditions": [{**scheduled, "lastTransitionTime": "2025-11-24T15:59:00Z"}],
            "containerStatuses": [{"state": {"running": {}}}],
        },
    )
    await around.reconciler.reconcile(REF)
    assert around.told["Stalled"].status == "False"
    assert around.told["Reconciling"].reason == "LoadingWeights"
    assert around.marks == [5340.0]
    around.now = datetime(2025, 11, 24, 17, 29, tzinfo=UTC)
    await around.reconciler.reconcile(REF)
    assert (around.told["Stalled"].status, around.told["Stalled"].reason) == (
        "True",
        "StartupTimeout",
    )
    assert around.marks == [5340.0], "nothing more is waited for"


async def test_a_webhook_that_fails_is_told_once_whatever_its_port(around: Pretended) -> None:
    around.add(DEPLOYMENT, spec={"replicas": 1})
    for port in (40000, 41000):
        around.error = ServerError(500, "InternalError", f'failed calling webhook "a": :{port}')
        with pytest.raises(ServerError):
            await around.reconciler.reconcile(REF)
        assert around.told["Ready"].message == 'failed calling webhook "a": :40000'
        assert (around.told["Reconciling"].status, around.told["Reconciling"].reason) == (
            "True",
            "ApiError",
        )
        assert around.told["Stalled"].status == "False"


async def test_another_objects_deployment_says_nothing_of_a_model(around: Pretended) -> None:
    around.add(DEPLOYMENT, samples.PROXY_UID, spec={"replicas": 1}, status={"availableReplicas": 1})
    around.error = ServerError(500, "InternalError", "no")
    with pytest.raises(ServerError):
        await around.reconciler.reconcile(REF)
    assert around.told["Available"].status == "False"
    assert around.status["ready"] == "0/1"
