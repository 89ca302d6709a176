"""One reconcile of a proxy, everything around it pretended: what is published, told, retried."""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from nimway.control.book import CURRENT_S, FIRST_REPORT_S, RouteBook
from nimway.control.client import (
    ConflictError,
    ForbiddenError,
    NamespaceTerminatingError,
    NotFoundError,
    ServerError,
)
from nimway.control.conditions import Verdict, render
from nimway.control.contests import Fight
from nimway.control.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    MODEL,
    POD,
    PROXY,
    ROLE_BINDING,
    Kind,
    Manifest,
    Ref,
)
from nimway.control.load import LoadBook
from nimway.control.proxies import REFUSED_FIRST_S, REFUSED_MAX_S, ProxyReconciler
from nimway.control.store import Store
from nimway.state import ProxyState
from tests.control import samples

if TYPE_CHECKING:
    from nimway.control.context import Context

REF = Ref("NIMProxy", "nimway-system", "default")
KEY = "nimway-system/default"
NOW = datetime(2025, 11, 24, 16, 0, tzinfo=UTC)
FORBIDDEN = ForbiddenError(403, "Forbidden", "a policy says no")


class Pretended:
    """The reconciler's surroundings; `refusals` are what binding ends with, by namespace."""

    def __init__(self) -> None:
        self.store, self.book, self.loads = Store(), RouteBook(), LoadBook()
        self.refusals: dict[str, Exception] = {}
        self.no_table: Exception | None = None
        self.applied: list[str] = []
        self.told: dict[str, Verdict] = {}
        self.status: Manifest = {}
        self.reports = 0
        self.marked: list[str] = []
        self.again_s: list[float] = []
        self.followed: Mapping[str, str] = {}
        self.now_s = 0.0
        self.fight: Fight | None = None
        applier = SimpleNamespace(
            confirm=self._do_nothing,
            prune=self._do_nothing,
            fight=lambda _: self.fight,
            apply_all=self._do_nothing,
            apply=self._apply,
        )
        context = SimpleNamespace(
            settings=SimpleNamespace(
                trusted=frozenset({"nimway-system"}), proxy=samples.SETTINGS, table_period_s=0.25
            ),
            store=self.store,
            book=self.book,
            loads=self.loads,
            channel=SimpleNamespace(follow=self._follow),
            applier=applier,
            reporter=SimpleNamespace(report=self._report),
            workers=SimpleNamespace(mark=self._mark, hold=lambda *_: None),
            metrics=SimpleNamespace(
                routes=SimpleNamespace(labels=lambda *_: SimpleNamespace(set=lambda _: None))
            ),
            monitors=SimpleNamespace(served=False),
            clock=lambda: self.now_s,
            wall=lambda: NOW,
            mark_models=self._mark_models,
        )
        self.reconciler = ProxyReconciler(cast("Context", context))
        self._version = 100

    def put(self, kind: Kind, manifest: Manifest, **metadata: Any) -> None:
        """Put an object into the store, as a newer one."""
        self._version += 1
        known = {**manifest["metadata"], "resourceVersion": str(self._version), **metadata}
        self.store.put(kind, {**manifest, "metadata": known})

    def add_model(self, namespace: str, name: str) -> None:
        """Put a model into the store."""
        spec = {"model": f"{namespace}/{name}"}
        self.put(MODEL, samples.model(name, namespace, **spec), uid=f"{namespace}-{name}")

    def add_pod(self, name: str, address: str) -> None:
        """Put a ready pod of the proxy into the store."""
        labels = {"nimway.dev/owner-uid": samples.PROXY_UID}
        metadata = {"name": name, "namespace": "nimway-system", "uid": name, "labels": labels}
        conditions = [{"type": "Ready", "status": "True"}]
        status = {"podIP": address, "conditions": conditions}
        self.put(POD, {"metadata": metadata, "status": status})

    def settle(self) -> None:
        """Have the proxy's Deployment be as declared."""
        labels = {"nimway.dev/owner-uid": samples.PROXY_UID}
        metadata = {"name": "nimway-default", "namespace": "nimway-system", "labels": labels}
        counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
        status = dict.fromkeys(counts, 1)
        self.put(
            DEPLOYMENT,
            {"metadata": {**metadata, "uid": "d"}, "spec": {"replicas": 1}, "status": status},
        )

    def heard(self, pod: str, revision: str | None = None) -> None:
        """Have a pod report a revision, the latest one if none is given."""
        decision = self.book.decision(KEY)
        assert decision is not None
        state = ProxyState(revision or decision.table.revision, ready=True, draining=False)
        self.book.report(KEY, pod, state, self.now_s)

    async def run(self) -> None:
        """Reconcile."""
        self.applied.clear()
        self.again_s.clear()
        self.marked.clear()
        await self.reconciler.reconcile(REF)

    async def _do_nothing(self, *_: object) -> None:
        return None

    async def _apply(self, kind: Kind, manifest: Manifest, owner: object) -> Manifest:
        del owner
        metadata = manifest["metadata"]
        self.applied.append(f"{kind.kind}/{metadata['namespace']}")
        if kind == ROLE_BINDING and metadata["namespace"] in self.refusals:
            raise self.refusals[metadata["namespace"]]
        if kind == CONFIG_MAP and self.no_table is not None:
            raise self.no_table
        self.put(kind, manifest, uid=f"{kind.kind}-{metadata['namespace']}-{metadata['name']}")
        answer = self.store.get(kind, metadata["namespace"], metadata["name"])
        assert answer is not None
        return answer

    async def _report(
        self, kind: Kind, live: Manifest, verdicts: Mapping[str, Verdict], fields: Manifest
    ) -> None:
        before = live.get("status", {})
        told = render(verdicts, before.get("conditions", ()), live["metadata"]["generation"], "T")
        status = {**fields, "conditions": told}
        self.told, self.status = dict(verdicts), fields
        if status != before:
            self.reports += 1
            self.put(kind, {**live, "status": status})

    def _follow(self, key: str, addresses: Mapping[str, str]) -> None:
        assert key == KEY
        self.followed = addresses

    def _mark(self, ref: Ref, *, delay_s: float = 0.0) -> None:
        assert ref == REF
        self.again_s.append(delay_s)

    def _mark_models(self, keys: set[str]) -> None:
        self.marked += sorted(keys)


@pytest.fixture
def around() -> Pretended:
    """A proxy with a pod, which serves two namespaces with a model in each."""
    found = Pretended()
    found.put(PROXY, samples.proxy(namespaces=["*"], replicas=1))
    found.add_model("a", "x")
    found.add_model("b", "y")
    found.settle()
    return found


@pytest.mark.parametrize(
    "error",
    [
        FORBIDDEN,
        ServerError(500, "InternalError", "a policy says no"),
        ConflictError(409, "Conflict", "a policy says no"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_rights_refused_in_one_namespace_keep_no_other_ones_models_from_the_table(
    around: Pretended, error: Exception
) -> None:
    around.refusals["a"] = error
    await around.run()
    decision = around.book.decision(KEY)
    assert decision is not None
    assert set(decision.routes) == {"a/x", "b/y"}
    assert around.applied[-1] == "ConfigMap/nimway-system"
    assert "RoleBinding/b" in around.applied
    told = around.told["Reconciling"]
    assert (told.status, told.reason) == ("True", "ApiError")
    assert told.message == "cannot serve namespace a: a policy says no"
    assert around.told["Ready"].status == "True"
    assert around.told["Stalled"].status == "False"
    assert around.book.view("a/x", [KEY], 0.0).behind == (
        f"NIMProxy {KEY} may not see the pods: a policy says no",
    )
    assert around.book.view("b/y", [KEY], 0.0).behind == ()


async def test_refused_rights_are_asked_for_behind_the_table_and_ever_more_seldom(
    around: Pretended,
) -> None:
    around.refusals["a"] = FORBIDDEN
    await around.run()
    waits = []
    for _ in range(8):
        waits.append(min(around.again_s))
        await around.run()
        assert "RoleBinding/a" not in around.applied, "it is not due"
        around.now_s += waits[-1]
        await around.run()
        assert around.applied[-2:] == ["ConfigMap/nimway-system", "RoleBinding/a"]
    assert waits == [REFUSED_FIRST_S, 2.0, 4.0, 8.0, 16.0, *3 * [REFUSED_MAX_S]]
    around.refusals.clear()
    around.now_s += REFUSED_MAX_S
    await around.run()
    assert "a/x" in around.marked
    assert around.told["Reconciling"].status == "False"
    assert around.again_s == []


async def test_who_changes_a_child_again_and_again_is_told_of_and_the_table_stands(
    around: Pretended,
) -> None:
    around.fight = Fight("spec.replicas is changed again and again", 8.0)
    await around.run()
    told = around.told["Reconciling"]
    assert (told.reason, told.message) == ("Contested", around.fight.text)
    assert around.told["Ready"].status == "True"
    assert 8.0 in around.again_s
    assert around.book.view("a/x", [KEY], 0.0).behind == ()


async def test_what_varies_in_a_refusal_is_no_news(around: Pretended) -> None:
    around.refusals["a"] = ServerError(500, "InternalError", "webhook: port 4000")
    await around.run()
    around.now_s, before = REFUSED_FIRST_S, around.reports
    around.refusals["a"] = ServerError(500, "InternalError", "webhook: port 4001")
    await around.run()
    assert "RoleBinding/a" in around.applied
    assert around.reports == before


@pytest.mark.parametrize(
    "error",
    [NamespaceTerminatingError(403, "Forbidden", "going"), NotFoundError(404, "NotFound", "gone")],
    ids=lambda error: type(error).__name__,
)
async def test_a_namespace_that_is_going_is_passed_over_and_the_proxys_own_is_not(
    around: Pretended, error: Exception
) -> None:
    around.refusals["a"] = error
    await around.run()
    assert around.told["Reconciling"].status == "False"
    around.refusals = {"nimway-system": FORBIDDEN}
    with pytest.raises(ForbiddenError):
        await around.run()
    assert around.told["Stalled"].reason == "ApiError"


async def test_a_binding_of_before_is_as_good_as_the_one_that_is_refused(
    around: Pretended,
) -> None:
    await around.run()
    around.refusals["a"] = FORBIDDEN
    await around.run()
    assert around.told["Reconciling"].message.startswith("cannot serve namespace a")
    assert around.book.view("a/x", [KEY], 0.0).behind == ()


async def test_of_many_namespaces_that_refuse_some_are_told(around: Pretended) -> None:
    for number in range(5):
        around.add_model(f"n{number}", "x")
        around.refusals[f"n{number}"] = FORBIDDEN
    await around.run()
    told = around.told["Reconciling"].message
    assert told.endswith("cannot serve namespace n2: a policy says no; and 2 more")


async def test_a_table_that_cannot_be_written_is_told_by_the_models_that_are_not_in_it(
    around: Pretended,
) -> None:
    await around.run()
    around.no_table = FORBIDDEN
    around.add_model("b", "new")
    with pytest.raises(ForbiddenError):
        await around.run()
    assert around.marked == ["b/new"]
    [told] = around.book.view("b/new", [KEY], 0.0).behind
    assert told.endswith("it could not be written: a policy says no")
    assert around.book.view("b/y", [KEY], 0.0).behind == ()


async def test_pods_that_do_not_serve_the_table_are_told_after_a_while_and_in_one_status(
    around: Pretended,
) -> None:
    around.add_pod("one", "10.0.0.1")
    around.add_pod("two", "fd00::2")
    await around.run()
    assert around.again_s == [FIRST_REPORT_S]
    around.heard("one")
    around.heard("two")
    await around.run()
    revision, reports = around.status["revision"], around.reports
    assert around.again_s == []
    around.now_s = 50.0
    around.add_model("b", "new")
    await around.run()
    around.now_s += CURRENT_S / 2
    around.heard("one")
    await around.run()
    assert around.again_s == [CURRENT_S / 2]
    assert (around.status["revision"], around.reports) == (revision, reports + 1), "models"
    around.now_s += CURRENT_S / 2
    await around.run()
    assert around.told["Ready"].status == "True"
    assert around.told["Reconciling"].reason == "NotRouted"
    assert around.told["Reconciling"].message.startswith("1 of 2 pods serve the table")
    assert "revision" not in around.status
    assert around.again_s == []
    around.heard("two")
    await around.run()
    assert around.status["revision"] not in {None, revision}
    assert around.told["Reconciling"].status == "False"


async def test_a_pod_that_is_not_heard_is_named_and_its_models_are_told(
    around: Pretended,
) -> None:
    around.add_pod("one", "fd00::1")
    await around.run()
    around.now_s = FIRST_REPORT_S
    await around.run()
    assert around.marked == ["a/x", "b/y"]
    assert "not heard: one at [fd00::1]:8001 (" in around.told["Reconciling"].message
    await around.run()
    assert around.marked == []


async def test_a_proxy_that_is_being_deleted_is_heard_and_counts_no_more(
    around: Pretended,
) -> None:
    around.add_pod("one", "10.0.0.1")
    await around.run()
    live = around.store.get(PROXY, REF.namespace, REF.name)
    assert live is not None
    going = {"deletionTimestamp": "2025-11-24T16:00:00Z", "finalizers": ["example.com/keep"]}
    around.put(PROXY, live, **going)
    reports = around.reports
    around.add_pod("two", "10.0.0.2")
    await around.run()
    assert around.marked == ["a/x", "b/y"]
    assert set(around.followed) == {"one", "two"}, "what they serve still scales models"
    assert (around.applied, around.reports) == ([], reports)
    assert around.book.view("a/x", [KEY], 0.0).proxies == 0
    await around.run()
    assert around.marked == [], "once"
