from dataclasses import replace
from typing import Any

import pytest

from nimway.api.status import Reason
from nimway.control.claims import CLAIM_ANNOTATION, Refusal
from nimway.control.conditions import (
    ModelFacts,
    Problem,
    ProxyFacts,
    RouteView,
    TableView,
    Verdict,
    leaving_verdicts,
    model_verdicts,
    proxy_verdicts,
    render,
    verdict_of,
)
from nimway.control.diagnosis import NOTHING_WAITS, Diagnosis, Workload
from nimway.control.facts import NO_DEPLOYMENT, DeploymentFacts

ROUTED = RouteView(proxies=1, pods_ready=2, pods_serving=2, names=("m",))
HELD = Refusal("n/p", "m", "a/b")
LOADING = Diagnosis(Reason.LOADING_WEIGHTS, "loading")


def _deployment(**changes: Any) -> DeploymentFacts:
    values = {
        "observed": True,
        "wanted": 1,
        "replicas": 1,
        "updated": 1,
        "ready": 1,
        "available": 1,
        "failure": "",
        "deadline_exceeded": False,
    }
    return DeploymentFacts(**{**values, **changes})


def _model(**changes: Any) -> ModelFacts:
    values: dict[str, Any] = {
        "generation": 1,
        "replicas": 1,
        "deployment": _deployment(),
        "diagnosis": LOADING,
        "routes": ROUTED,
    }
    return ModelFacts(**{**values, **changes})


def _seen(facts: ModelFacts, kept: Verdict | None = None) -> dict[str, str]:
    return {
        str(kind): f"{verdict.status}/{verdict.reason}"
        for kind, verdict in model_verdicts(facts, kept).items()
    }


CRASHED = Diagnosis(Reason.CRASH_LOOP, "exit 1", stalled=True)


@pytest.mark.parametrize(
    ("facts", "reconciling"),
    [
        (_model(), "True/Contested"),
        (_model(replicas=0, deployment=NO_DEPLOYMENT), "True/Contested"),
        (_model(deployment=_deployment(available=0, ready=0)), "True/Contested"),
        (_model(deployment=NO_DEPLOYMENT, diagnosis=CRASHED), "False/CrashLoop"),
        (
            _model(problem=Problem(Reason.QUOTA_EXCEEDED, "no", stalled=False)),
            "True/QuotaExceeded",
        ),
    ],
    ids=["serving", "switched off", "loading", "stalled", "another problem"],
)
def test_a_rival_is_told_of_by_reconciling_alone(facts: ModelFacts, reconciling: str) -> None:
    before = _seen(facts)
    seen = _seen(replace(facts, fight="spec.replicas is changed again and again"))
    assert seen.pop("Reconciling") == reconciling
    if reconciling == "True/Contested":
        assert seen.pop("Stalled") == "False/Progressing"
        del before["Stalled"]
    del before["Reconciling"]
    assert seen == before


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (
            _model(),
            {
                "Ready": "True/Serving",
                "Routed": "True/Serving",
                "Available": "True/Serving",
                "Reconciling": "False/Settled",
                "Stalled": "False/Settled",
            },
        ),
        (
            _model(deployment=_deployment(available=0, ready=0)),
            {
                "Ready": "False/LoadingWeights",
                "Available": "False/LoadingWeights",
                "Reconciling": "True/LoadingWeights",
                "Stalled": "False/Progressing",
            },
        ),
        (
            _model(
                replicas=0, deployment=_deployment(wanted=0, replicas=0, updated=0, available=0)
            ),
            {
                "Ready": "True/SwitchedOff",
                "Available": "False/SwitchedOff",
                "Reconciling": "False/Settled",
                "Stalled": "False/Settled",
            },
        ),
        (
            _model(deployment=_deployment(wanted=2, replicas=3, updated=1, available=2)),
            {"Ready": "True/Serving", "Reconciling": "True/Progressing"},
        ),
        (
            _model(routes=RouteView()),
            {"Ready": "True/Serving", "Routed": "Unknown/NoProxy"},
        ),
        (
            _model(routes=RouteView(proxies=1, names=("m",))),
            {"Ready": "False/ProxyNotReady", "Routed": "False/ProxyNotReady"},
        ),
        (
            _model(routes=RouteView(proxies=2, pods_ready=1, pods_serving=1, names=("m",))),
            {"Ready": "True/Serving", "Routed": "True/Serving"},
        ),
        (
            _model(routes=RouteView(proxies=1, pods_ready=2, pods_serving=1, names=("m",))),
            {"Ready": "False/NotRouted", "Routed": "False/NotRouted"},
        ),
        (
            _model(routes=RouteView(proxies=1, refused=(HELD,))),
            {
                "Ready": "False/NameConflict",
                "Routed": "False/NameConflict",
                "Reconciling": "False/NameConflict",
                "Stalled": "True/NameConflict",
            },
        ),
        (
            _model(problem=Problem(Reason.INVALID_SPEC, "spec.x", stalled=True)),
            {
                "Ready": "False/InvalidSpec",
                "Available": "True/Serving",
                "Stalled": "True/InvalidSpec",
                "Reconciling": "False/InvalidSpec",
            },
        ),
        (
            _model(problem=Problem(Reason.QUOTA_EXCEEDED, "quota", stalled=False)),
            {
                "Ready": "True/Serving",
                "Reconciling": "True/QuotaExceeded",
                "Stalled": "False/Progressing",
            },
        ),
        (
            _model(
                problem=Problem(Reason.QUOTA_EXCEEDED, "quota", stalled=False),
                deployment=_deployment(available=0),
            ),
            {
                "Ready": "False/QuotaExceeded",
                "Reconciling": "True/QuotaExceeded",
                "Stalled": "False/Progressing",
            },
        ),
        (
            _model(
                problem=Problem(Reason.API_ERROR, "no", stalled=False),
                routes=RouteView(proxies=1, pods_ready=2, pods_serving=1, names=("m",)),
            ),
            {"Ready": "False/NotRouted", "Reconciling": "True/ApiError"},
        ),
        (
            _model(
                problem=Problem(Reason.API_ERROR, "no", stalled=False),
                deployment=_deployment(wanted=2, replicas=3, updated=1, available=2),
            ),
            {"Ready": "True/Serving", "Reconciling": "True/ApiError"},
        ),
        (
            _model(routes=RouteView(behind=("NIMProxy n/p lacks it",))),
            {"Ready": "False/NotRouted", "Routed": "False/NotRouted"},
        ),
        (
            _model(routes=RouteView(proxies=1, behind=("NIMProxy n/p lacks it",), refused=(HELD,))),
            {
                "Ready": "False/NotRouted",
                "Reconciling": "True/NotRouted",
                "Stalled": "False/Progressing",
            },
        ),
        (
            _model(
                deployment=_deployment(available=0),
                diagnosis=Diagnosis(Reason.STARTUP_TIMEOUT, "too slow", stalled=True),
            ),
            {"Ready": "False/StartupTimeout", "Stalled": "True/StartupTimeout"},
        ),
    ],
)
def test_conditions_follow_the_facts(facts: ModelFacts, expected: dict[str, str]) -> None:
    seen = _seen(facts)
    assert {key: seen[key] for key in expected} == expected
    assert all(verdict.message for verdict in model_verdicts(facts, None).values())


def test_while_proxies_are_not_heard_routed_stays_as_it_was() -> None:
    kept = Verdict("True", Reason.SERVING, "before")
    pending = RouteView(proxies=1, pods_ready=2, pods_serving=0, pending=True, names=("m",))
    assert model_verdicts(_model(routes=pending), kept)["Routed"] == kept
    partly = RouteView(proxies=1, pending=True, names=("m",), undecided=frozenset({"n/new"}))
    assert model_verdicts(_model(routes=partly), kept)["Routed"] == kept
    starting = RouteView(pending=True)
    assert model_verdicts(_model(routes=starting), kept)["Routed"] == kept


def test_what_an_undecided_proxy_lacks_takes_nothing_back_that_was_told() -> None:
    kept = Verdict("True", Reason.SERVING, "before")
    behind = RouteView(pending=True, undecided=frozenset({"n/p"}), behind=("n/p lacks it",))
    assert model_verdicts(_model(routes=behind), kept)["Routed"] == kept
    told = model_verdicts(_model(routes=behind), None)["Routed"]
    assert (told.status, told.reason, told.message) == ("False", Reason.NOT_ROUTED, "n/p lacks it")


@pytest.mark.parametrize(
    ("unheard", "text"),
    [
        ((), "1 of 6 proxy pods serve the current route"),
        (
            ("a at 10.0.0.1:8001",),
            "1 of 6 proxy pods serve the current route; not heard: a at 10.0.0.1:8001 (is there a "
            "NetworkPolicy or a mesh between the operator and the proxy?); 4 serve an older one",
        ),
        (
            tuple("abcde"),
            "1 of 6 proxy pods serve the current route; not heard: a, b, c and 2 more (is there a "
            "NetworkPolicy or a mesh between the operator and the proxy?)",
        ),
    ],
    ids=["heard", "one", "many"],
)
def test_pods_that_are_not_heard_are_told_from_those_that_are_behind(
    unheard: tuple[str, ...], text: str
) -> None:
    view = RouteView(proxies=1, pods_ready=6, pods_serving=1, names=("m",), unheard=unheard)
    assert model_verdicts(_model(routes=view), None)["Ready"].message == text


def test_a_proxy_says_which_pods_do_not_serve_its_table_and_stays_ready() -> None:
    table = TableView(pods_ready=3, pods_current=1, unheard=("a at 10.0.0.1:8001",), late=True)
    verdicts = proxy_verdicts(ProxyFacts(1, 1, 3, table, _deployment(), NOTHING_WAITS))
    assert verdicts["Ready"].status == "True"
    told = verdicts["Reconciling"]
    assert (told.status, told.reason) == ("True", Reason.NOT_ROUTED)
    assert told.message.startswith("1 of 3 pods serve the table; not heard: a at 10.0.0.1:8001 (")
    assert told.message.endswith("; the others serve an older one: read their logs")
    moments = replace(table, late=False)
    verdicts = proxy_verdicts(ProxyFacts(1, 1, 3, moments, _deployment(), NOTHING_WAITS))
    assert verdicts["Reconciling"].status == "False"


def test_a_proxy_that_cannot_do_one_thing_serves_on_and_says_what() -> None:
    problem = Problem(Reason.API_ERROR, "cannot serve namespace x: no", stalled=False)
    facts = ProxyFacts(1, 1, 3, TableView(), _deployment(), NOTHING_WAITS, problem)
    verdicts = proxy_verdicts(facts)
    assert (verdicts["Ready"].status, verdicts["Ready"].reason) == ("True", Reason.SERVING)
    told = verdicts["Reconciling"]
    assert (told.status, told.message) == ("True", problem.message)
    assert verdicts["Stalled"].status == "False"
    stalled = replace(facts, problem=replace(problem, stalled=True))
    assert proxy_verdicts(stalled)["Ready"].reason == Reason.API_ERROR


def test_a_model_that_is_kept_by_others_says_by_whom_and_that_it_is_not_served() -> None:
    kept = Verdict("True", Reason.SERVING, "1 of 1 replicas are available")
    verdicts = leaving_verdicts({"b.example/x", "a.example/y"}, kept)
    for kind in ("Ready", "Routed"):
        assert (verdicts[kind].status, verdicts[kind].reason) == ("False", Reason.TERMINATING)
        assert verdicts[kind].message.endswith("a.example/y, b.example/x")
    assert verdicts["Available"] == kept, "its pods run until it is gone"
    assert (verdicts["Reconciling"].status, verdicts["Stalled"].status) == ("True", "False")


def test_a_lost_alias_is_told_while_the_model_is_routed() -> None:
    view = RouteView(
        proxies=1,
        pods_ready=1,
        pods_serving=1,
        names=("m",),
        refused=(Refusal("n/p", "alias", "a/b"),),
    )
    verdict = model_verdicts(_model(routes=view), None)["Routed"]
    assert verdict.status == "True"
    assert "the name alias is held by NIMModel a/b" in verdict.message


@pytest.mark.parametrize(
    "view",
    [
        RouteView(proxies=1, names=("m",)),
        RouteView(proxies=1, pods_ready=1, pending=True, names=("m",)),
        RouteView(proxies=1, pods_ready=2, pods_serving=1, names=("m",)),
    ],
    ids=["no proxy is ready", "not heard yet", "on its way"],
)
def test_a_lost_alias_is_told_while_the_model_is_not_routed_too(view: RouteView) -> None:
    lost = replace(view, refused=(Refusal("n/p", "alias", "a/b"),))
    verdict = model_verdicts(_model(routes=lost), None)["Routed"]
    assert verdict.status == "False"
    assert "the name alias is held by NIMModel a/b" in verdict.message


def test_a_model_without_a_name_says_what_its_pods_hold() -> None:
    facts = _model(
        routes=RouteView(proxies=1, refused=(HELD,)),
        deployment=_deployment(replicas=2, wanted=2),
        workload=Workload(gpus=4, gpu_resource="nvidia.com/gpu"),
    )
    verdicts = model_verdicts(facts, None)
    for kind in ("Ready", "Stalled"):
        assert "its pods run on (2, holding 8 nvidia.com/gpu)" in verdicts[kind].message
        assert "set spec.replicas to 0" in verdicts[kind].message
    assert "pods run" not in verdicts["Routed"].message


def test_a_name_that_is_kept_for_a_while_is_waited_for() -> None:
    kept = Refusal("n/p", "m", "a/b", until_s=1764000000, gone=True)
    verdicts = model_verdicts(_model(routes=RouteView(proxies=1, refused=(kept,))), None)
    assert (verdicts["Ready"].status, verdicts["Ready"].reason) == ("False", Reason.NAME_CONFLICT)
    assert "kept for namespace a until 2025-11-24T16:00:00Z" in verdicts["Ready"].message
    assert verdicts["Stalled"].status == "False"
    assert verdicts["Reconciling"].status == "True"


def test_a_name_that_is_not_passed_on_says_how_to_claim_it() -> None:
    gone = Refusal("n/p", "m", "a/b", gone=True)
    verdicts = model_verdicts(_model(routes=RouteView(proxies=1, refused=(gone,))), None)
    assert CLAIM_ANNOTATION in verdicts["Stalled"].message


def test_of_many_lost_names_some_are_told() -> None:
    many = tuple(Refusal("n/p", f"m{number:02d}", "a/b") for number in range(81))
    verdict = model_verdicts(_model(routes=RouteView(proxies=1, refused=many)), None)["Ready"]
    assert "the name m09 is" in verdict.message
    assert "the name m10 is" not in verdict.message
    assert "and 71 more" in verdict.message


def test_a_proxy_is_ready_when_a_pod_serves() -> None:
    facts = ProxyFacts(1, 2, 3, TableView(), _deployment(wanted=2), LOADING)
    assert proxy_verdicts(facts)["Ready"].status == "True"
    down = ProxyFacts(1, 2, 3, TableView(), NO_DEPLOYMENT, LOADING)
    assert proxy_verdicts(down)["Ready"].status == "False"


@pytest.mark.parametrize(
    ("diagnosis", "reason", "text"),
    [
        (NOTHING_WAITS, Reason.PROGRESSING, "1 of 2 replicas are current, 2 are available"),
        (LOADING, Reason.PROGRESSING, f"2 are available; {LOADING.message}"),
        (
            Diagnosis(Reason.IMAGE_PULL_FAILED, "no such image"),
            Reason.IMAGE_PULL_FAILED,
            "2 are available; no such image",
        ),
    ],
)
def test_an_update_that_hangs_while_old_pods_serve_says_why(
    diagnosis: Diagnosis, reason: Reason, text: str
) -> None:
    rolling = _deployment(wanted=2, replicas=3, updated=1, available=2)
    facts = _model(
        deployment=rolling,
        replicas=2,
        diagnosis=diagnosis,
    )
    for verdicts in (
        model_verdicts(facts, None),
        proxy_verdicts(ProxyFacts(1, 2, 3, TableView(), rolling, diagnosis)),
    ):
        assert verdicts["Ready"].status == "True"
        told = verdicts["Reconciling"]
        assert (told.status, told.reason) == ("True", reason)
        assert told.message.endswith(text)
        assert verdicts["Stalled"].status == "False"


def test_conflicting_names_and_switching_off_do_not_contradict_each_other() -> None:
    refused = RouteView(proxies=1, refused=(HELD,))
    none = _deployment(wanted=0, replicas=0, updated=0, available=0)
    verdicts = model_verdicts(_model(routes=refused, replicas=0, deployment=none), None)
    assert (verdicts["Ready"].status, verdicts["Ready"].reason) == ("False", Reason.NAME_CONFLICT)
    assert verdicts["Stalled"].status == "True"


def test_a_proxy_that_is_switched_off_is_settled() -> None:
    none = _deployment(wanted=0, replicas=0, updated=0, available=0)
    verdicts = proxy_verdicts(ProxyFacts(1, 0, 3, TableView(), none, LOADING))
    assert (verdicts["Ready"].status, verdicts["Ready"].reason) == ("True", Reason.SWITCHED_OFF)
    assert verdicts["Reconciling"].status == "False"


def test_a_transition_time_changes_with_the_status_only() -> None:
    first = render({"Ready": Verdict("False", Reason.PROGRESSING, "a")}, [], 1, "T1")
    second = render({"Ready": Verdict("False", Reason.LOADING_WEIGHTS, "b")}, first, 2, "T2")
    third = render({"Ready": Verdict("True", Reason.SERVING, "c")}, second, 2, "T3")
    assert [each[0]["lastTransitionTime"] for each in (first, second, third)] == ["T1", "T1", "T3"]
    assert third[0]["observedGeneration"] == 2


def test_a_verdict_is_read_back() -> None:
    verdict = Verdict("True", Reason.SERVING, "m")
    assert verdict_of(render({"Ready": verdict}, [], 1, "T"), "Ready") == verdict  # type: ignore[arg-type]
