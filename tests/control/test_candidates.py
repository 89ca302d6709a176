from typing import Any

from nimway.control.candidates import Candidates
from nimway.control.kinds import MODEL
from nimway.control.store import Store
from tests.control import samples


def _model(name: str, version: str, **spec: Any) -> dict[str, Any]:
    live = samples.model(name, **{"model": f"org/{name}", **spec})
    live["metadata"] |= {"uid": name, "resourceVersion": version}
    return live


def test_the_models_of_the_store_are_told_and_one_that_is_gone_is_not() -> None:
    store = Store()
    candidates = Candidates(store)
    assert candidates.all() == ()
    store.put(MODEL, _model("a", "1"))
    store.put(MODEL, _model("b", "2"))
    assert [each.model for each in candidates.all()] == ["org/a", "org/b"]
    store.prune(MODEL, None, {next(iter(store.refs(MODEL)))}, "9")
    assert [each.model for each in candidates.all()] == ["org/a"]


def test_one_on_its_way_out_is_not_told() -> None:
    store = Store()
    going = _model("a", "1")
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    store.put(MODEL, going)
    assert Candidates(store).all() == ()


def test_what_routing_does_not_need_changes_nothing() -> None:
    store = Store()
    candidates = Candidates(store)
    store.put(MODEL, _model("a", "1"))
    first = candidates.all()
    store.put(MODEL, {**_model("a", "2"), "status": {"readyReplicas": 1}})
    assert candidates.all() is first
    store.put(MODEL, _model("a", "3", aliases=["other"]))
    assert candidates.all() is not first
    assert candidates.all()[0].aliases == ("other",)
