from typing import Any

import pytest

from nimway.control.fields import extract, last_writer, lost_fields, node_at, owned_fields
from nimway.control.kinds import CLAIM, DEPLOYMENT, MODEL, Ref
from nimway.control.plan import APPLIED_ANNOTATION, Action, plan, seal
from nimway.control.resolve import Owner

OWNER = Owner(MODEL, "models", "llama", "uid-1")
DESIRED: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "llama", "namespace": "models", "labels": {"a": "1"}},
    "spec": {
        "replicas": 1,
        "selector": {"matchLabels": {"a": "1"}},
        "containers": [
            {
                "name": "nim",
                "image": "x",
                "ports": [{"containerPort": 8000, "protocol": "TCP"}],
                "command": ["a", "b"],
            }
        ],
        "emptyDir": {},
    },
}
FIELDS: dict[str, Any] = {
    "f:metadata": {
        "f:labels": {"f:a": {}},
        "f:annotations": {f"f:{APPLIED_ANNOTATION}": {}},
    },
    "f:spec": {
        "f:replicas": {},
        "f:selector": {},
        "f:containers": {
            'k:{"name":"nim"}': {
                ".": {},
                "f:name": {},
                "f:image": {},
                "f:command": {},
                "f:ports": {
                    'k:{"containerPort":8000,"protocol":"TCP"}': {
                        ".": {},
                        "f:containerPort": {},
                        "f:protocol": {},
                    }
                },
            }
        },
        "f:emptyDir": {},
    },
}


def _live(**metadata: Any) -> dict[str, Any]:
    sealed = seal(DESIRED)
    return {
        **sealed,
        "metadata": {
            **sealed["metadata"],
            "uid": "child",
            "resourceVersion": "5",
            "ownerReferences": [{"uid": "uid-1", "controller": True}],
            "managedFields": [{"manager": "nimway", "operation": "Apply", "fieldsV1": FIELDS}],
            **metadata,
        },
    }


def test_nothing_is_lost_while_our_entry_covers_all_we_set() -> None:
    assert lost_fields(seal(DESIRED), FIELDS) == []


def _without(path: str, node: dict[str, Any]) -> dict[str, Any]:
    """Take one field away, and as the API server does what is left empty by it."""
    head, _, rest = path.partition("/")
    left = _without(rest, node[head]) if rest else {}
    return {key: value for key, value in node.items() if key != head} | (
        {head: left} if left else {}
    )


@pytest.mark.parametrize(
    ("taken", "lost"),
    [
        ("f:spec/f:replicas", "spec.replicas"),
        ("f:spec/f:selector", "spec.selector"),
        ("f:metadata/f:labels/f:a", "metadata.labels"),
        ('f:spec/f:containers/k:{"name":"nim"}/f:image', "spec.containers[0].image"),
        ('f:spec/f:containers/k:{"name":"nim"}', "spec.containers"),
        ("f:spec", "spec"),
    ],
)
def test_a_field_that_someone_took_is_named(taken: str, lost: str) -> None:
    assert lost_fields(seal(DESIRED), _without(taken, FIELDS)) == [lost]


def test_what_others_added_is_not_ours_to_extract() -> None:
    live = {
        "replicas": 1,
        "paused": True,
        "containers": [
            {"name": "sidecar", "image": "s"},
            {"name": "nim", "image": "x", "tty": True, "command": ["a", "b"]},
        ],
    }
    assert extract(live, FIELDS["f:spec"]) == {
        "replicas": 1,
        "containers": [{"name": "nim", "image": "x", "command": ["a", "b"]}],
    }


def test_entries_of_others_and_of_our_status_are_not_our_apply() -> None:
    entries = [
        {"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:spec": {}}},
        {"manager": "nimway", "operation": "Update", "fieldsV1": {"f:spec": {}}},
        {"manager": "nimway", "operation": "Apply", "subresource": "status", "fieldsV1": {}},
    ]
    assert owned_fields({"metadata": {"managedFields": entries}}) is None


def test_a_node_is_found_by_its_path() -> None:
    assert node_at(FIELDS, "spec", "replicas") == {}
    assert node_at(FIELDS, "spec", "template") is None


def test_the_last_writer_is_who_changed_more_than_the_status() -> None:
    def entry(manager: str, minute: int, **more: str) -> dict[str, Any]:
        return {"manager": manager, "time": f"2026-11-01T00:{minute:02}:00Z", **more}

    entries = [
        entry("kubectl-edit", 1),
        entry("nimway", 2),
        entry("vpa", 3),
        entry("kube-controller-manager", 4, subresource="status"),
    ]
    assert last_writer({"metadata": {"managedFields": entries}}) == "vpa"
    del entries[2]
    assert last_writer({"metadata": {"managedFields": entries}}) == "", "it was before us"
    assert last_writer({"metadata": {}}) == ""


@pytest.mark.parametrize(
    ("metadata", "fields"),
    [
        ({"managedFields": []}, ("metadata.managedFields",)),
        ({"annotations": {}}, ()),
        ({"annotations": {APPLIED_ANNOTATION: "older"}}, ()),
    ],
    ids=["nothing is ours any more", "a kept claim of before", "an older manifest"],
)
def test_what_somebody_else_did_is_told_from_what_is_declared_anew(
    metadata: dict[str, Any], fields: tuple[str, ...]
) -> None:
    found = plan(DEPLOYMENT, seal(DESIRED), _live(**metadata), OWNER)
    assert (found.action, found.fields) == (Action.APPLY, fields)


def test_who_takes_our_note_of_what_was_applied_does_not_look_like_a_declaration() -> None:
    taken = _without("f:metadata/f:annotations", FIELDS)
    entry = {"manager": "nimway", "operation": "Apply", "fieldsV1": taken}
    found = plan(DEPLOYMENT, seal(DESIRED), _live(annotations={}, managedFields=[entry]), OWNER)
    assert (found.action, found.fields) == (Action.APPLY, ("metadata.annotations",))


def test_a_child_as_declared_is_not_written() -> None:
    assert plan(DEPLOYMENT, seal(DESIRED), _live(), OWNER).action is Action.NONE


def test_a_missing_child_is_created() -> None:
    assert plan(DEPLOYMENT, seal(DESIRED), None, OWNER).action is Action.CREATE


def test_a_field_left_out_since_the_last_apply_is_noticed() -> None:
    spec = {key: value for key, value in DESIRED["spec"].items() if key != "emptyDir"}
    less = {**DESIRED, "spec": spec}
    assert plan(DEPLOYMENT, seal(less), _live(), OWNER).action is Action.APPLY


def test_a_child_whose_managed_fields_were_cleared_is_applied_again() -> None:
    assert plan(DEPLOYMENT, seal(DESIRED), _live(managedFields=[]), OWNER).action is Action.APPLY


@pytest.mark.parametrize(
    ("metadata", "action"),
    [
        ({"ownerReferences": [], "labels": {}}, Action.FOREIGN),
        ({"ownerReferences": [], "labels": {"nimway.dev/owner-uid": "uid-1"}}, Action.APPLY),
        ({"ownerReferences": [{"uid": "x", "controller": True}], "labels": {}}, Action.FOREIGN),
        (
            {
                "ownerReferences": [{"uid": "older", "controller": True}],
                "labels": {"nimway.dev/owner-uid": "older"},
            },
            Action.WAIT,
        ),
        ({"ownerReferences": [], "labels": {"nimway.dev/owner-uid": "older"}}, Action.FOREIGN),
        ({"deletionTimestamp": "2026-11-01T00:00:00Z"}, Action.WAIT),
    ],
)
def test_only_what_was_made_for_this_object_is_touched(
    metadata: dict[str, Any], action: Action
) -> None:
    desired = seal({**DESIRED, "spec": {**DESIRED["spec"], "replicas": 2}})
    assert plan(DEPLOYMENT, desired, _live(**metadata), OWNER).action is action


def test_a_child_of_another_object_that_lives_is_not_waited_for() -> None:
    theirs = {
        "ownerReferences": [{"uid": "other", "controller": True}],
        "labels": {"nimway.dev/owner-uid": "other"},
    }
    rival = Ref("NIMProxy", "models", "edge")
    found = plan(DEPLOYMENT, seal(DESIRED), _live(**theirs), OWNER, rival=rival)
    assert found.action is Action.FOREIGN
    assert found.reason == "it belongs to NIMProxy models/edge"


def test_a_kept_claim_of_the_models_name_is_adopted() -> None:
    labels = {
        "app.kubernetes.io/managed-by": "nimway",
        "app.kubernetes.io/component": "model-store",
        "app.kubernetes.io/instance": "llama",
        "nimway.dev/owner-uid": "older",
    }
    live = _live(ownerReferences=[], labels=labels)
    assert plan(CLAIM, seal({**DESIRED, "spec": {}}), live, OWNER).action is Action.APPLY
