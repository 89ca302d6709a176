"""One reconcile of a model with everything around it pretended: what is told, what comes again."""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from nimway.control.book import RouteBook
from nimway.control.client import ForbiddenError, ServerError
from nimway.control.conditions import Verdict, render
from nimway.control.contests import Fight
from nimway.control.kinds import CLAIM, DEPLOYMENT, MODEL, POD, SERVICE, Kind, Manifest, Ref
from nimway.control.models import BEHIND_S, ModelReconciler
from nimway.control.routing import Candidate, candidate, decide
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
        self.applied: list[Kind] = []
        self.refused: Kind | None = None
        self.now = NOW
        self.now_s = 0.0
        self.fight: Fight | None = None
        self.book = RouteBook()
        self.proxies: list[str] = []
        nothing = SimpleNamespace(
            confirm=self._do_nothing,
            prune=self._do_nothing,
            fight=lambda _: self.fight,
            apply_all=self._apply,
            apply=self._apply_one,
        )
        context = SimpleNamespace(
            store=self.store,
            book=self.book,
            proxy_keys=lambda: self.proxies,
            clock=lambda: self.now_s,
            wall=lambda: self.now,
            reporter=SimpleNamespace(report=self._report),
            workers=SimpleNamespace(mark=self._mark, defer=lambda _: None),
            applier=nothing,
            monitors=SimpleNamespace(served=False),
        )
        autoscaler = SimpleNamespace(
            changed=lambda _: None, view=lambda *_: None, forget=lambda _: None
        )
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

    async def _apply_one(self, kind: Kind, manifest: Manifest, owner: object) -> Manifest:
        del owner
        self.applied.append(kind)
        if kind == self.refused:
            raise ForbiddenError(403, "Forbidden", "no")
        return manifest

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


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ({}, [DEPLOYMENT]),
        ({"storage": {"pvc": {"claimName": "weights"}}}, [DEPLOYMENT]),
        ({"storage": {"pvc": {"size": "1Gi"}}}, [CLAIM, DEPLOYMENT]),
    ],
)
async def test_a_new_model_gets_its_deployment_first_and_only_a_claim_to_mount_before_it(
    around: Pretended, storage: Manifest, expected: list[Kind]
) -> None:
    changed = samples.model(**storage)
    changed["metadata"]["resourceVersion"] = "20"
    around.store.put(MODEL, changed)
    await around.reconciler.reconcile(REF)
    assert around.applied == expected
    assert around.marks == [0.0], "the rest comes after other new models' Deployments"


async def test_a_new_model_whose_claim_is_refused_gets_no_deployment(around: Pretended) -> None:
    changed = samples.model(storage={"pvc": {"size": "1Gi"}})
    changed["metadata"]["resourceVersion"] = "20"
    around.store.put(MODEL, changed)
    around.refused = CLAIM
    with pytest.raises(ForbiddenError):
        await around.reconciler.reconcile(REF)
    assert around.applied == [CLAIM]
    assert around.told["Ready"].reason == "ApiError"


async def test_a_webhook_that_fails_while_the_model_serves_is_told_once_and_leaves_it_ready(
    around: Pretended,
) -> None:
    around.add(DEPLOYMENT, spec={"replicas": 1}, status={"availableReplicas": 1})
    for port in (40000, 41000):
        around.error = ServerError(500, "InternalError", f'failed calling webhook "a": :{port}')
        with pytest.raises(ServerError):
            await around.reconciler.reconcile(REF)
        assert around.told["Ready"].status == "True"
        assert around.told["Reconciling"].message == 'failed calling webhook "a": :40000'


async def test_who_changes_a_child_again_and_again_is_told_of_and_nothing_else_changes(
    around: Pretended,
) -> None:
    around.add(DEPLOYMENT, spec={"replicas": 1}, status={"availableReplicas": 1})
    around.fight = Fight("spec.replicas is changed again and again", 8.0)
    await around.reconciler.reconcile(REF)
    assert around.told["Ready"].status == "True"
    told = around.told["Reconciling"]
    assert (told.status, told.reason, told.message) == ("True", "Contested", around.fight.text)
    assert around.marks == [8.0], "it is put back then"


def _publish(around: Pretended, *models: Candidate) -> None:
    decision = decide(models, None, None)
    around.book.intend("n/p", decision, models)
    around.book.decide("n/p", decision)


async def test_a_new_alias_is_not_told_as_served_before_the_proxys_table_has_it(
    around: Pretended,
) -> None:
    around.add(DEPLOYMENT, spec={"replicas": 1}, status={"availableReplicas": 1})
    around.proxies = ["n/p"]
    before = candidate(samples.model())
    assert before is not None
    _publish(around, before)
    changed = samples.model(aliases=["alias"])
    changed["metadata"] |= {"resourceVersion": "20", "generation": 2}
    around.store.put(MODEL, changed)
    await around.reconciler.reconcile(REF)
    assert around.told == {}, "the table is a moment away: one status instead of two"
    assert around.marks == [BEHIND_S]
    around.error = ForbiddenError(403, "Forbidden", "no")
    with pytest.raises(ForbiddenError):
        await around.reconciler.reconcile(REF)
    assert around.told["Stalled"].reason == "ApiError", "a problem is told at once"
    assert around.told["Routed"].reason == "ProxyNotReady", "and nothing of what is a moment away"
    around.error = None

    around.now_s = BEHIND_S
    await around.reconciler.reconcile(REF)
    for kind in ("Ready", "Routed"):
        assert (around.told[kind].status, around.told[kind].reason) == ("False", "NotRouted")
    assert around.told["Routed"].message.startswith("NIMProxy n/p has not taken over the current")
    assert around.told["Reconciling"].status == "True"

    after = candidate(changed)
    assert after is not None
    decision = decide([after], None, None)
    around.book.intend("n/p", decision, [after])
    around.book.fail("n/p", "the table is too large", tableless=False)
    await around.reconciler.reconcile(REF)
    assert around.told["Routed"].message.endswith("not be written: the table is too large")

    around.book.decide("n/p", decision)
    await around.reconciler.reconcile(REF)
    assert around.told["Routed"].reason == "ProxyNotReady", "its pods are another matter"


async def test_a_model_that_is_deleted_says_who_keeps_it_and_else_nothing(
    around: Pretended,
) -> None:
    around.add(DEPLOYMENT, spec={"replicas": 1}, status={"availableReplicas": 1})
    await around.reconciler.reconcile(REF)
    live = around.store.get(MODEL, REF.namespace, REF.name)
    assert live is not None
    live["status"]["servedModels"] = ["m"]
    told, around.told = around.told, {}
    metadata = {**live["metadata"], "deletionTimestamp": "2025-11-24T16:00:00Z"}
    for version, finalizers in (("30", ["foregroundDeletion"]), ("31", ["orphan"])):
        going = {**metadata, "resourceVersion": version, "finalizers": finalizers}
        around.store.put(MODEL, {**live, "metadata": going})
        await around.reconciler.reconcile(REF)
        assert around.told == {}
    going = {**metadata, "resourceVersion": "32", "finalizers": ["orphan", "example.com/keep"]}
    around.store.put(MODEL, {**live, "metadata": going})
    await around.reconciler.reconcile(REF)
    assert (around.told["Ready"].status, around.told["Ready"].reason) == ("False", "Terminating")
    assert around.told["Routed"].message.endswith("finalizers of others: example.com/keep")
    assert around.told["Available"] == told["Available"]
    assert "servedModels" not in around.status
    assert around.status["ready"] == "0/1"
