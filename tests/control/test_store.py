from typing import Any

from nimway.control.kinds import DEPLOYMENT, MODEL, POD, Ref
from nimway.control.store import Change, Store, owner_uid
from tests.control import samples

OWNED = {"nimway.dev/owner-uid": samples.MODEL_UID}


def _child(version: str, generation: int = 1, **extra: Any) -> dict[str, Any]:
    metadata = {
        "name": "llama",
        "namespace": "models",
        "uid": "child",
        "resourceVersion": version,
        "generation": generation,
        "labels": OWNED,
        **extra,
    }
    return {"metadata": metadata, "spec": {"replicas": 1}, "status": {"replicas": version}}


def test_a_status_change_is_told_from_a_content_change() -> None:
    store = Store()
    assert store.put(DEPLOYMENT, _child("1")) is Change.CONTENT
    assert store.put(DEPLOYMENT, _child("2")) is Change.STATUS
    assert store.put(DEPLOYMENT, _child("3", generation=2)) is Change.CONTENT
    assert store.put(DEPLOYMENT, _child("4", 2, annotations={"a": "b"})) is Change.CONTENT
    assert store.put(DEPLOYMENT, _child("4", 2, annotations={"a": "b"})) is Change.NONE


def test_an_owner_lives_until_it_goes_or_another_takes_its_name() -> None:
    store, ref = Store(), Ref("NIMModel", "models", "llama")
    store.put(MODEL, samples.model())
    assert store.living(samples.MODEL_UID) == ref
    assert store.living("nobody") is None
    successor = samples.model()
    successor["metadata"] |= {"uid": "new", "resourceVersion": "20"}
    store.put(MODEL, successor)
    assert store.living(samples.MODEL_UID) is None
    assert store.living("new") == ref
    successor["metadata"] |= {"deletionTimestamp": "2026-11-01T00:00:00Z", "resourceVersion": "21"}
    store.put(MODEL, successor)
    assert store.living("new") is None


def test_a_pods_node_gates_and_claims_are_kept_and_nothing_else_of_its_spec() -> None:
    store = Store()
    gates = [{"name": "kueue.x-k8s.io/admission"}]
    claim = {"persistentVolumeClaim": {"claimName": "weights"}}
    volumes = [{"name": "weights", **claim}, {"name": "x", "emptyDir": {}}]
    spec = {"nodeName": "a", "schedulingGates": gates, "volumes": volumes}
    store.put(POD, {**_child("1"), "spec": {**spec, "containers": [{}]}})
    live = store.get(POD, "models", "llama")
    assert live is not None
    assert live["spec"] == {**spec, "volumes": [claim]}


def test_the_controllers_revision_annotation_is_no_content() -> None:
    store = Store()
    store.put(DEPLOYMENT, _child("1"))
    revision = {"deployment.kubernetes.io/revision": "1"}
    assert store.put(DEPLOYMENT, _child("2", annotations=revision)) is Change.STATUS


def test_an_older_state_does_not_replace_a_newer_one() -> None:
    store = Store()
    store.put(DEPLOYMENT, _child("10"))
    assert store.put(DEPLOYMENT, _child("9", generation=7)) is Change.NONE
    live = store.get(DEPLOYMENT, "models", "llama")
    assert live is not None
    assert live["metadata"]["generation"] == 1


def test_the_answer_to_a_write_does_not_bring_a_deleted_object_back() -> None:
    store = Store()
    store.put(MODEL, samples.model())
    gone = samples.model()
    gone["metadata"]["resourceVersion"] = "30"
    assert store.remove(MODEL, gone)
    late = samples.model()
    late["metadata"]["resourceVersion"] = "20"
    assert store.put(MODEL, late) is Change.NONE
    assert store.get(MODEL, "models", "llama") is None


def test_an_object_that_left_the_selector_may_come_back_later() -> None:
    store = Store()
    store.put(DEPLOYMENT, _child("1"))
    store.remove(DEPLOYMENT, _child("5"))
    assert store.put(DEPLOYMENT, _child("6")) is Change.CONTENT


def test_the_news_of_an_older_objects_deletion_does_not_remove_its_successor() -> None:
    store = Store()
    store.put(DEPLOYMENT, _child("9", uid="new"))
    assert not store.remove(DEPLOYMENT, _child("10"))
    assert store.get(DEPLOYMENT, "models", "llama") is not None


def test_a_fresh_list_drops_ghosts_and_keeps_what_is_newer_than_itself() -> None:
    store = Store()
    store.put(DEPLOYMENT, _child("5"))
    store.put(DEPLOYMENT, _child("50", name="newer", uid="other"))
    assert store.prune(DEPLOYMENT, None, set(), "20") == [
        (Ref("Deployment", "models", "llama"), samples.MODEL_UID)
    ]
    assert store.refs(DEPLOYMENT) == [Ref("Deployment", "models", "newer")]


def test_a_list_of_one_namespace_says_nothing_of_another() -> None:
    store = Store()
    store.put(DEPLOYMENT, _child("5"))
    assert store.prune(DEPLOYMENT, frozenset({"other"}), set(), "20") == []


def test_children_are_found_by_the_uid_of_their_owner() -> None:
    store = Store()
    store.put(MODEL, samples.model())
    store.put(DEPLOYMENT, _child("1"))
    store.put(POD, _child("2", uid="pod"))
    assert [kind.kind for kind, _ in store.children(samples.MODEL_UID)] == ["Deployment", "Pod"]
    assert store.owner_of(samples.MODEL_UID) == Ref("NIMModel", "models", "llama")
    store.put(DEPLOYMENT, _child("3", labels={}))
    assert [kind.kind for kind, _ in store.children(samples.MODEL_UID)] == ["Pod"]


def test_without_our_label_the_controller_reference_names_the_owner() -> None:
    child = _child("1", labels={}, ownerReferences=[{"uid": "x"}, {"uid": "y", "controller": True}])
    assert owner_uid(DEPLOYMENT, child) == "y"


def test_only_our_own_field_ownership_is_kept() -> None:
    store = Store()
    ours = {"manager": "nimway", "operation": "Apply", "fieldsV1": {}}
    theirs = {"manager": "kubectl", "operation": "Update", "fieldsV1": {}}
    store.put(DEPLOYMENT, _child("1", managedFields=[theirs, ours]))
    live = store.get(DEPLOYMENT, "models", "llama")
    assert live is not None
    assert live["metadata"]["managedFields"] == [ours]


def test_news_of_ready_pods_is_told_from_other_progress() -> None:
    store = Store()
    store.put(DEPLOYMENT, _child("1"))
    assert store.put(DEPLOYMENT, _child("2")) is Change.STATUS
    ready = {**_child("3"), "status": {"readyReplicas": 1}}
    assert store.put(DEPLOYMENT, ready) is Change.READY
    assert store.put(DEPLOYMENT, _child("4")) is Change.READY


def test_a_verdict_outlives_the_status_and_nothing_else() -> None:
    ref = Ref("Deployment", "models", "llama")
    ours = {"manager": "nimway", "operation": "Apply", "fieldsV1": {"f:spec": {}}}
    store = Store()
    store.put(DEPLOYMENT, _child("1", managedFields=[ours]))
    assert not store.is_settled(ref, "hash")
    store.settle(ref, "0", "hash")
    assert not store.is_settled(ref, "hash"), "it was found of another version"
    store.settle(ref, "1", "hash")
    assert store.is_settled(ref, "hash")
    assert not store.is_settled(ref, "other")
    store.put(DEPLOYMENT, _child("2", managedFields=[ours]))
    assert store.is_settled(ref, "hash")
    store.put(DEPLOYMENT, _child("3", managedFields=[{**ours, "fieldsV1": {}}]))
    assert not store.is_settled(ref, "hash"), "a field is not ours any more"
    store.settle(ref, "3", "hash")
    store.put(DEPLOYMENT, _child("4", generation=2))
    assert not store.is_settled(ref, "hash")


def test_a_child_that_went_is_remembered_for_its_owner() -> None:
    ref = Ref("Deployment", "models", "llama")
    store = Store()
    store.put(DEPLOYMENT, _child("1"))
    assert not store.was_lost(ref, samples.MODEL_UID)
    store.remove(DEPLOYMENT, _child("2"))
    assert store.was_lost(ref, samples.MODEL_UID)
    assert not store.was_lost(ref, "a successor")
    store.put(POD, _child("3", uid="pod"))
    store.prune(POD, None, set(), "9")
    assert not store.was_lost(Ref("Pod", "models", "llama"), samples.MODEL_UID)


def test_only_the_very_state_that_is_known_need_not_be_read() -> None:
    ref = Ref("Deployment", "models", "llama")
    store = Store()
    store.put(DEPLOYMENT, _child("1"))
    assert store.holds(ref, "child", "1")
    assert not store.holds(ref, "child", "2")
    assert not store.holds(ref, "another", "1")
    assert not store.holds(Ref("Service", "models", "llama"), "child", "1")
