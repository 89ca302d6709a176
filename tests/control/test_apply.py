"""When a child's owner is read afresh, and which children are left as they are."""

import contextlib
import copy
import re
from typing import Any

import pytest

from nimway.control.apply import Applier, ContestedError, NotOursError, OwnerGoneError, WaitingError
from nimway.control.client import (
    ForbiddenError,
    InvalidError,
    KubeClient,
    NamespaceTerminatingError,
    NotFoundError,
)
from nimway.control.contests import FREE_REPAIRS
from nimway.control.kinds import (
    CLAIM,
    DEPLOYMENT,
    MODEL,
    PROXY,
    SERVICE,
    Kind,
    Manifest,
    Ref,
)
from nimway.control.metrics import Metrics
from nimway.control.plan import CLAIM_GOING, seal
from nimway.control.resolve import Owner
from nimway.control.store import Change, Store
from tests.control import samples

OWNER = Owner(MODEL, "models", "llama", samples.MODEL_UID)


class Recording(KubeClient):
    """Counts reads and writes; a read finds `found`, a write is answered by its own content."""

    def __init__(self, found: Manifest | None = None) -> None:
        self.found = found
        self.reads = 0
        self.applied: list[Manifest] = []
        self.deleted: list[Kind] = []
        self.refuses = False
        self.uid = "child"
        self.refusals: dict[Kind, Exception] = {}

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        del kind, namespace, name
        self.reads += 1
        if self.found is None:
            raise NotFoundError(404, "NotFound", "gone")
        return self.found

    async def delete(self, kind: Kind, manifest: Manifest) -> None:
        del manifest
        self.deleted.append(kind)

    async def apply(self, kind: Kind, manifest: Manifest, *, subresource: str = "") -> Manifest:
        del subresource
        if self.refuses:
            raise InvalidError(422, "Invalid", "no")
        if kind in self.refusals:
            raise self.refusals[kind]
        self.applied.append(manifest)
        owned = ("labels", "annotations", "ownerReferences")
        fields: Manifest = {"f:metadata": {f"f:{name}": {} for name in owned}}
        ours = {"manager": "nimway", "operation": "Apply", "fieldsV1": fields}
        metadata = {**manifest["metadata"], "uid": self.uid, "managedFields": [ours]}
        metadata["resourceVersion"] = str(100 + len(self.applied))
        return {**manifest, "metadata": metadata}


def _child(kind: Kind = SERVICE, **metadata: Any) -> Manifest:
    labels = {"nimway.dev/owner-uid": OWNER.uid}
    reference = {"uid": OWNER.uid, "controller": True}
    base: Manifest = {"name": "llama", "namespace": "models", "labels": labels}
    if metadata.pop("owned", True):
        base["ownerReferences"] = [reference]
    return {"apiVersion": "v1", "kind": kind.kind, "metadata": {**base, **metadata}}


def _applier(
    client: Recording, store: Store, *, is_current: bool = True, now_s: list[float] | None = None
) -> Applier:
    return Applier(
        client,
        store,
        Metrics(),
        may_write=lambda: True,
        is_current=lambda: is_current,
        clock=lambda: now_s[0] if now_s else 0.0,
    )


async def test_a_first_creation_for_an_owner_just_seen_asks_nothing() -> None:
    client, store = Recording(), Store()
    await _applier(client, store).confirm(OWNER, [(SERVICE, _child())])
    assert client.reads == 0


async def test_what_no_garbage_collector_would_delete_is_asked_for() -> None:
    client, store = Recording(), Store()
    with pytest.raises(OwnerGoneError):
        await _applier(client, store).confirm(OWNER, [(SERVICE, _child(owned=False))])
    assert client.reads == 1


async def test_what_went_is_not_created_again_for_an_owner_that_is_gone() -> None:
    client, store = Recording(), Store()
    store.put(MODEL, samples.model())
    known = _child(uid="child", resourceVersion="5", managedFields=[])
    store.put(SERVICE, known)
    store.remove(SERVICE, known)
    with pytest.raises(OwnerGoneError):
        await _applier(client, store).confirm(OWNER, [(SERVICE, _child())])
    assert store.get(MODEL, "models", "llama") is None, "the ghost is forgotten"
    client.found = samples.model()
    await _applier(client, store).confirm(OWNER, [(SERVICE, _child())])


async def test_an_owner_that_was_not_listed_lately_is_asked_for() -> None:
    client, store = Recording(samples.model()), Store()
    await _applier(client, store, is_current=False).confirm(OWNER, [(SERVICE, _child())])
    assert client.reads == 1


async def test_an_owner_on_its_way_out_gets_nothing() -> None:
    going = samples.model()
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    client, store = Recording(going), Store()
    with pytest.raises(OwnerGoneError):
        await _applier(client, store, is_current=False).confirm(OWNER, [(SERVICE, _child())])


async def test_an_owners_successor_is_left_to_the_watch_that_marks_it() -> None:
    successor = samples.model()
    successor["metadata"].update({"uid": "another", "resourceVersion": "30"})
    client, store = Recording(successor), Store()
    store.put(MODEL, samples.model())
    with pytest.raises(OwnerGoneError):
        await _applier(client, store, is_current=False).confirm(OWNER, [(SERVICE, _child())])
    assert store.get(MODEL, "models", "llama") is None, "the ghost is forgotten"
    assert store.put(MODEL, successor) is Change.CONTENT, "its event is news"


async def test_nothing_is_asked_where_nothing_is_missing() -> None:
    client, store = Recording(), Store()
    store.put(SERVICE, _child(uid="child", resourceVersion="5", managedFields=[]))
    applier = _applier(client, store, is_current=False)
    await applier.confirm(OWNER, [(SERVICE, _child(owned=False))])
    assert client.reads == 0


async def test_a_child_found_as_declared_is_not_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, store = Recording(), Store()
    applier, children = _applier(client, store), [(DEPLOYMENT, _child(DEPLOYMENT))]
    await applier.apply_all(children, OWNER)
    await applier.apply_all(children, OWNER)
    assert len(client.applied) == 1

    def get(*_: Any) -> None:
        raise AssertionError("it was decoded")

    with monkeypatch.context() as patched:
        patched.setattr(store, "get", get)
        await applier.apply_all(children, OWNER)
    changed = [(DEPLOYMENT, _child(DEPLOYMENT, annotations={"a": "b"}))]
    await applier.apply_all(changed, OWNER)
    assert len(client.applied) == 2


async def test_an_orphaned_child_gets_no_reference_to_an_owner_that_is_going() -> None:
    client, store = Recording(), Store()
    store.put(MODEL, samples.model())
    orphan = _child(owned=False, uid="child", resourceVersion="5", managedFields=[])
    store.put(SERVICE, orphan)
    applier = _applier(client, store)
    with pytest.raises(OwnerGoneError):
        await applier.apply(SERVICE, _child(), OWNER)
    assert client.applied == [], "the garbage collector would delete it with its owner"
    client.found = samples.model()
    await applier.apply(SERVICE, _child(), OWNER)
    assert len(client.applied) == 1, "somebody else took the reference away"


async def test_a_name_is_waited_for_only_while_its_holder_goes() -> None:
    store, uid = Store(), samples.PROXY_UID
    theirs = _child(uid="child", resourceVersion="5", managedFields=[])
    theirs["metadata"]["labels"] = {"nimway.dev/owner-uid": uid}
    theirs["metadata"]["ownerReferences"] = [{"uid": uid, "controller": True}]
    store.put(SERVICE, theirs)
    holder = samples.proxy("edge", "models")
    store.put(PROXY, holder)

    class Both(Recording):
        async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
            del namespace, name
            return samples.model() if kind == MODEL else theirs

    applier = _applier(Both(), store)
    with pytest.raises(NotOursError, match="it belongs to NIMProxy models/edge"):
        await applier.apply(SERVICE, _child(), OWNER)
    going = {"deletionTimestamp": "2026-11-01T00:00:00Z", "resourceVersion": "20"}
    store.put(PROXY, {**holder, "metadata": {**holder["metadata"], **going}})
    with pytest.raises(WaitingError):
        await applier.apply(SERVICE, _child(), OWNER)
    store.remove(PROXY, holder)
    with pytest.raises(WaitingError):
        await applier.apply(SERVICE, _child(), OWNER)


def _robbed(client: Recording, number: int, *taken: str) -> Manifest:
    """Return the Service as it was applied last, some metadata taken over by somebody else."""
    live = copy.deepcopy(client.applied[-1])
    live["metadata"] |= {"uid": "child", "resourceVersion": str(1000 + number)}
    kept = {"labels", "annotations", "ownerReferences"} - set(taken)
    owned: Manifest = {f"f:{name}": {} for name in sorted(kept)}
    ours = {"manager": "nimway", "operation": "Apply", "fieldsV1": {"f:metadata": owned}}
    theirs = {"manager": "vpa", "operation": "Update", "time": "2026-11-01T00:00:00Z"}
    live["metadata"]["managedFields"] = [ours, theirs]
    return live


async def _fight(applier: Applier, client: Recording, store: Store) -> None:
    """Have somebody take the labels as often as they are put back at once."""
    await applier.apply(SERVICE, _child(), OWNER)
    for number in range(FREE_REPAIRS):
        store.put(SERVICE, _robbed(client, 2 * number, "labels"))
        await applier.apply(SERVICE, _child(), OWNER)
        client.applied[-1]["metadata"]["resourceVersion"] = str(1001 + 2 * number)
        store.put(SERVICE, client.applied[-1])


async def test_who_takes_a_field_again_and_again_is_named_and_undone_ever_more_rarely() -> None:
    client, store, now_s = Recording(), Store(), [100.0]
    applier = _applier(client, store, now_s=now_s)
    await _fight(applier, client, store)
    assert applier.fight(OWNER.uid) is None
    writes = len(client.applied)
    client.found = _robbed(client, 500, "labels")
    store.put(SERVICE, client.found)
    with pytest.raises(ContestedError, match=r"metadata\.labels is changed .* by vpa;") as raised:
        await applier.apply(SERVICE, _child(), OWNER)
    assert raised.value.wait_s == 1.0
    reads = client.reads
    with pytest.raises(ContestedError):
        await applier.apply(SERVICE, _child(), OWNER)
    assert (len(client.applied), client.reads) == (writes, reads), "it is asked for once"
    now_s[0] += 1.0
    await applier.apply(SERVICE, _child(), OWNER)
    assert len(client.applied) == writes + 1
    fight = applier.fight(OWNER.uid)
    assert fight is not None
    assert "lately by vpa;" in fight.text
    store.put(SERVICE, _robbed(client, 600, "labels"))
    await applier.apply(SERVICE, _child(annotations={"a": "b"}), OWNER)
    assert len(client.applied) == writes + 2, "what its user declares anew waits for nothing"


async def test_what_is_contested_keeps_neither_its_siblings_nor_another_field_waiting() -> None:
    client, store = Recording(), Store()
    applier = _applier(client, store)
    await _fight(applier, client, store)
    store.put(SERVICE, _robbed(client, 500, "labels"))
    writes = len(client.applied)
    await applier.apply_all([(SERVICE, _child()), (DEPLOYMENT, _child(DEPLOYMENT))], OWNER)
    assert [each["kind"] for each in client.applied[writes:]] == ["Deployment"]
    fight = applier.fight(OWNER.uid)
    assert fight is not None
    assert fight.again_s == 1.0
    store.put(SERVICE, _robbed(client, 600, "labels", "ownerReferences"))
    client.found = samples.model()  # whoever lost its owner is asked for
    await applier.apply(SERVICE, _child(), OWNER)
    assert len(client.applied) == writes + 2, "another field went as well"


async def test_a_refused_childs_owner_is_told_once() -> None:
    client, store = Recording(), Store()
    client.refuses = True
    applier = _applier(client, store)
    with pytest.raises(InvalidError):
        await applier.apply(SERVICE, _child(), OWNER)
    assert applier.take_refused() == {Ref("NIMModel", "models", "llama")}
    assert applier.take_refused() == set()


def _mounting(claim: str | None) -> Manifest:
    """Return a Deployment whose pods mount a claim, or an emptyDir."""
    store = {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}
    pod = {"volumes": [{"name": "dshm", "emptyDir": {}}, {"name": "model-store", **store}]}
    return {**_child(DEPLOYMENT), "spec": {"template": {"spec": pod}}}


@pytest.mark.parametrize(
    ("before", "error", "expected"),
    [
        (None, ForbiddenError(403, "Forbidden", "no"), ["Service"]),
        (None, InvalidError(422, "Invalid", "no"), ["Service"]),
        ("other", InvalidError(422, "Invalid", "no"), ["Service"]),
        ("llama-store", InvalidError(422, "Invalid", "no"), ["Deployment", "Service"]),
        ("llama-store", ForbiddenError(403, "Forbidden", "no"), ["Deployment", "Service"]),
        ("llama-store", NamespaceTerminatingError(403, "Forbidden", "going"), []),
        (None, None, ["PersistentVolumeClaim", "Deployment", "Service"]),
    ],
)
async def test_a_deployment_does_not_come_to_mount_a_claim_that_was_refused(
    before: str | None, error: Exception | None, expected: list[str]
) -> None:
    client, store = Recording(), Store()
    client.refusals = {CLAIM: error} if error else {}
    live = _mounting(before)
    live["metadata"].update({"uid": "child", "resourceVersion": "5", "managedFields": []})
    store.put(DEPLOYMENT, live)
    children = [
        (CLAIM, _child(CLAIM, name="llama-store")),
        (DEPLOYMENT, _mounting("llama-store")),
        (SERVICE, _child()),
    ]
    with contextlib.nullcontext() if error is None else pytest.raises(type(error)):
        await _applier(client, store).apply_all(children, OWNER)
    assert [each["kind"] for each in client.applied] == expected


async def test_what_is_not_declared_any_more_is_deleted_but_never_a_claim() -> None:
    client, store = Recording(), Store()
    live: Manifest = {"uid": "child", "resourceVersion": "5", "managedFields": []}
    store.put(SERVICE, _child(**live))
    store.put(CLAIM, _child(CLAIM, name="llama-store", **live))
    await _applier(client, store).prune([], OWNER)
    assert client.deleted == [SERVICE]


async def test_of_a_claim_in_use_nobody_is_told_to_take_the_finalizer() -> None:
    store = Store()
    going = {"deletionTimestamp": "2026-11-01T00:00:00Z", "resourceVersion": "20"}
    for kind in (CLAIM, SERVICE):
        store.put(kind, _child(kind, uid="child", managedFields=[], **going))
    applier = _applier(Recording(), store)
    with pytest.raises(WaitingError, match=re.escape(CLAIM_GOING)):
        await applier.apply(CLAIM, _child(CLAIM), OWNER)
    with pytest.raises(WaitingError, match="it is being deleted"):
        await applier.apply(SERVICE, _child(), OWNER)


def test_a_seal_covers_the_whole_manifest() -> None:
    first, second = seal(_child()), seal(_child(annotations={"a": "b"}))
    annotations = [each["metadata"]["annotations"] for each in (first, second)]
    assert annotations[0]["nimway.dev/applied"] != annotations[1]["nimway.dev/applied"]
