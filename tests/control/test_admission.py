"""What the real API server accepts and refuses; the cases come from the generated schema."""

import copy
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from nimway.api import GROUP, VERSION
from tests.support import schema
from tests.support.cluster import Cluster

pytestmark = pytest.mark.cluster

DATA = Path(__file__).parents[1] / "data" / "admission"
KINDS = {"nimmodels": "NIMModel", "nimproxies": "NIMProxy"}
SMALLEST: dict[str, Any] = {"nimmodels": {"model": "m", "image": "i"}, "nimproxies": {}}
SCHEMAS = {plural: schema.spec_schema(schema.load_crd(f"{plural}.yaml")) for plural in KINDS}
CASES = {
    plural: yaml.safe_load((DATA / f"{plural}.yaml").read_text(encoding="utf-8"))
    for plural in KINDS
}


class Admission:
    """Creates objects with `dryRun=All`, as `kubectl apply --dry-run=server` does."""

    def __init__(self, cluster: Cluster) -> None:
        self._client = config.new_client_from_config(str(cluster.kubeconfig))
        self._api = client.CustomObjectsApi(self._client)
        self.core = client.CoreV1Api(self._client)
        self.extensions = client.ApiextensionsV1Api(self._client)

    def create(self, plural: str, spec: Any, *, dry_run: bool = True, name: str = "case") -> Any:
        return self._api.create_namespaced_custom_object(
            GROUP,
            VERSION,
            "default",
            plural,
            {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": KINDS[plural],
                "metadata": {"name": name},
                "spec": spec,
            },
            field_validation="Strict",
            dry_run="All" if dry_run else None,
        )

    def replace(self, plural: str, current: Any, spec: Any) -> Any:
        return self._api.replace_namespaced_custom_object(
            GROUP,
            VERSION,
            "default",
            plural,
            current["metadata"]["name"],
            {**current, "spec": spec},
            dry_run="All",
        )

    def delete(self, plural: str, name: str) -> None:
        self._api.delete_namespaced_custom_object(GROUP, VERSION, "default", plural, name)

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def admission(crds: Cluster) -> Iterator[Admission]:
    made = Admission(crds)
    yield made
    made.close()


def _refusal(call: Any, *args: Any) -> str:
    with pytest.raises(ApiException) as caught:
        call(*args)
    assert caught.value.status in (400, 422), caught.value
    return str(caught.value.body)


def _assert_contains(stored: Any, given: Any) -> None:
    """Everything given was stored; defaults may have come on top."""
    if isinstance(given, dict):
        for name, value in given.items():
            _assert_contains(stored[name], value)
    elif isinstance(given, list):
        assert len(stored) == len(given)
        for one, other in zip(stored, given, strict=True):
            _assert_contains(one, other)
    else:
        assert stored == given


@pytest.mark.parametrize("plural", KINDS)
def test_every_field_has_a_good_value(plural: str) -> None:
    known = {steps for steps, _ in schema.walk(SCHEMAS[plural])}
    covered = {
        steps for spec in CASES[plural]["good"] for steps in schema.present(spec, SCHEMAS[plural])
    }
    assert {schema.dotted(steps) for steps in known - covered} == set()


@pytest.mark.parametrize("plural", KINDS)
def test_every_rule_has_a_case(plural: str) -> None:
    cases = [*CASES[plural]["bad"], *CASES[plural]["immutable"]]
    untested = {
        f"{path}: {message}"
        for path, message in schema.rules(SCHEMAS[plural])
        if not any(message.startswith(case["message"]) for case in cases)
    }
    assert untested == set()


@pytest.mark.parametrize("plural", KINDS)
def test_good_values_are_accepted(plural: str, admission: Admission) -> None:
    for spec in CASES[plural]["good"]:
        _assert_contains(admission.create(plural, spec)["spec"], spec)


@pytest.mark.parametrize("plural", KINDS)
def test_every_field_refuses_bad_values_by_its_name(plural: str, admission: Admission) -> None:
    cases = list(schema.bad_values(SCHEMAS[plural], CASES[plural]["good"]))
    answers = {str(case): _status_and_body(admission, plural, case.spec) for case in cases}
    assert {case for case, (status, _) in answers.items() if status not in (400, 422)} == set()
    unnamed = {str(case) for case in cases if _field(case) not in answers[str(case)][1]}
    assert unnamed == set()
    assert len(cases) > len(list(schema.walk(SCHEMAS[plural])))


def _field(case: schema.BadValue) -> str:
    return case.path.replace("[]", "").replace("{}", "").rsplit(".", 1)[-1]


def _status_and_body(admission: Admission, plural: str, spec: Any) -> tuple[int, str]:
    try:
        admission.create(plural, spec)
    except ApiException as refusal:
        return refusal.status, str(refusal.body)
    return 201, ""


@pytest.mark.parametrize("plural", KINDS)
def test_rules_across_fields_say_what_is_wrong(plural: str, admission: Admission) -> None:
    for case in CASES[plural]["bad"]:
        body = _refusal(admission.create, plural, {**SMALLEST[plural], **case["spec"]})
        assert case["message"] in body, body


@pytest.mark.parametrize("case", CASES["nimmodels"]["immutable"], ids=lambda case: case["message"])
def test_rules_over_changes_say_what_cannot_change(case: Any, admission: Admission) -> None:
    spec = {**SMALLEST["nimmodels"], **case["from"]}
    name = f"change-{uuid.uuid4().hex[:8]}"
    current = admission.create("nimmodels", spec, dry_run=False, name=name)
    try:
        body = _refusal(admission.replace, "nimmodels", current, {**spec, **case["to"]})
    finally:
        admission.delete("nimmodels", name)
    assert case["message"] in body, body


@pytest.mark.parametrize("case", CASES["nimmodels"]["mutable"], ids=str)
def test_rules_over_changes_let_others_pass(case: Any, admission: Admission) -> None:
    spec = {**SMALLEST["nimmodels"], **case["from"]}
    name = f"change-{uuid.uuid4().hex[:8]}"
    current = admission.create("nimmodels", spec, dry_run=False, name=name)
    try:
        changed = {**spec, **case["to"]}
        _assert_contains(admission.replace("nimmodels", current, changed)["spec"], changed)
    finally:
        admission.delete("nimmodels", name)


@pytest.mark.parametrize("field", ["model", "image"])
def test_a_missing_required_field_is_named(field: str, admission: Admission) -> None:
    spec = copy.deepcopy(SMALLEST["nimmodels"])
    del spec[field]
    assert f"spec.{field}: Required value" in _refusal(admission.create, "nimmodels", spec)


def test_a_new_object_is_not_current(admission: Admission) -> None:
    created = admission.create("nimmodels", SMALLEST["nimmodels"])
    assert created["status"] == {"observedGeneration": -1}


def test_the_scale_subresource_and_the_columns_are_served(admission: Admission) -> None:
    crd: Any = admission.extensions.read_custom_resource_definition(f"nimmodels.{GROUP}")
    version = crd.spec.versions[0]
    assert version.subresources.scale.label_selector_path == ".status.selector"
    columns = [column.name for column in version.additional_printer_columns]
    assert columns[:6] == ["Model", "Ready", "GPUs", "Reason", "Routed", "Age"]
    assert crd.spec.names.short_names == ["nim"]


@pytest.mark.parametrize("plural", KINDS)
def test_a_crd_stays_far_below_the_limit_of_client_side_apply(plural: str) -> None:
    assert (schema.CRDS / f"{plural}.yaml").stat().st_size < 100_000
