"""Each field of a spec changes what is built of it: no builder may drop one unnoticed.

The fields come from the generated schema and their values from the admission tests' good specs.
What a field changes, the golden files and the tests of the builders say; here it is that it does.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import yaml

from nimway.control.desired.model import build_model, build_model_monitor
from nimway.control.desired.proxy import (
    build_proxy_monitor,
    build_rights,
    build_routes,
    build_workload,
)
from nimway.control.kinds import Manifest
from nimway.control.resolve import InvalidSpecError, resolve_model
from nimway.control.routing import Candidate, candidate, decide
from tests.control import samples
from tests.control.test_admission import DATA, SCHEMAS
from tests.support import schema
from tests.support.schema import Schema, Steps

Build = Callable[[Manifest], Any]

BELOW_BOUNDS: Manifest = {
    "model": "m",
    "image": "i",
    "replicas": 1,
    "autoscaling": {"minReplicas": 2, "maxReplicas": 3},
}
"""The good specs have no count that is below its bounds."""

AUTOSCALER = "the autoscaler's alone, which writes the count: test_autoscale.py"
SELECTOR = (
    "evaluated over the cluster's namespaces, and matched as modelSelector is: "
    "tests/faults/test_namespaces.py"
)
SILENT = {
    "nimmodels": {
        "spec.autoscaling.targetConcurrency": AUTOSCALER,
        "spec.autoscaling.scaleDownDelaySeconds": AUTOSCALER,
        "spec.autoscaling.idleSeconds": AUTOSCALER,
    },
    "nimproxies": {
        f"spec.namespaceSelector{rest}": SELECTOR
        for rest in (
            ".matchLabels{}",
            ".matchExpressions[].key",
            ".matchExpressions[].operator",
            ".matchExpressions[].values[]",
        )
    },
}
"""Fields that change neither a manifest nor a table, and why."""


def _good(plural: str) -> list[Manifest]:
    """Return the good specs, without YAML's aliases: a change of one place is one of that alone."""
    cases = yaml.safe_load((DATA / f"{plural}.yaml").read_text(encoding="utf-8"))
    found: list[Manifest] = json.loads(json.dumps(cases["good"]))
    return [*found, BELOW_BOUNDS] if plural == "nimmodels" else found


def _of_model(spec: Manifest) -> Any:
    """Return a model's manifests, and its route."""
    manifest = {**samples.model(), "spec": spec}
    # The hash of what the user said differs with every field, whatever is made of it.
    model = replace(resolve_model(manifest), intent="")
    found = candidate(manifest)
    assert found is not None
    return build_model(model, None), build_model_monitor(model), decide([found], None, None).table


def _models() -> Iterator[Candidate]:
    """Models of several namespaces, with and without each label that the good specs select by."""
    every: tuple[dict[str, str], ...] = ({}, {"team": "a"}, {"team": "a", "stage": "test"})
    for namespace in ("team-a", "team-b", "nimway-system"):
        for number, labels in enumerate(every):
            name = f"{namespace}-{number}"
            manifest = samples.model(name, namespace, model=f"org/{name}")
            manifest["metadata"]["labels"] = labels
            found = candidate(manifest)
            assert found is not None
            yield found


MODELS = tuple(_models())


def _of_proxy(spec: Manifest) -> Any:
    """Return a proxy's manifests, its routing table among them."""
    proxy = samples.resolved_proxy(**spec)
    table = decide(MODELS, proxy.namespaces, proxy.spec.model_selector).table
    return (
        build_rights(proxy, table.namespaces, samples.SETTINGS),
        build_routes(proxy, table),
        build_workload(proxy, samples.SETTINGS),
        build_proxy_monitor(proxy),
    )


def _changes(build: Build, spec: Manifest, steps: Steps, field: Schema) -> bool:
    """Tell whether what is built differs without this field's value, or with another one."""
    before = build(spec)
    for variant in schema.variants(spec, steps, field):
        try:
            if build(variant) != before:
                return True
        except InvalidSpecError:
            continue
    return False


def _without_effect(build: Build, plural: str, good: list[Manifest]) -> set[str]:
    """Return the fields of a schema whose values change nothing in any good spec.

    Lists and objects are judged by what they hold.
    """
    return {
        schema.dotted(steps)
        for steps, field in schema.walk(SCHEMAS[plural])
        if not any(schema.children(field))
        and not any(
            _changes(build, spec, steps, field)
            for spec in good
            if steps in set(schema.present(spec, SCHEMAS[plural]))
        )
    }


@pytest.mark.parametrize(("plural", "build"), [("nimmodels", _of_model), ("nimproxies", _of_proxy)])
def test_every_field_reaches_a_manifest_or_the_table(plural: str, build: Build) -> None:
    assert _without_effect(build, plural, _good(plural)) == set(SILENT[plural])


def test_a_field_that_a_builder_drops_is_noticed() -> None:
    def forgetful(spec: Manifest) -> Any:
        probes = {**spec.get("probes", {}), "startup": {}}
        left_out = ("runtimeClassName", "queueName")
        return _of_model(
            {**{key: spec[key] for key in spec if key not in left_out}, "probes": probes}
        )

    assert {
        "spec.runtimeClassName",
        "spec.queueName",
        "spec.probes.startup.periodSeconds",
        "spec.probes.startup.timeoutSeconds",
    } <= _without_effect(forgetful, "nimmodels", _good("nimmodels"))
