"""Every manifest in the pages is one that the API types, the chart and the API server accept."""

import re
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from nimway.api import API_VERSION
from nimway.api.nimmodel import NIMModelSpec
from nimway.api.nimproxy import NIMProxySpec
from tests.docs.pages import ROOT, blocks, manifests
from tests.support.cluster import Cluster

MANIFESTS = list(manifests())
OURS = [each for each in MANIFESTS if each[1]["apiVersion"] == API_VERSION]
NOT_OURS = ("argoproj.io/", "keda.sh/", "monitoring.coreos.com/", "toolkit.fluxcd.io/")
"""API groups that other products bring; a bare cluster does not serve them."""

SPECS: dict[str, Any] = {"NIMModel": NIMModelSpec, "NIMProxy": NIMProxySpec}
VALUES = [block for block in blocks("yaml") if block.text.startswith("# values.yaml\n")]


def _foreign(manifest: dict[str, Any]) -> bool:
    return any(group in manifest["apiVersion"] for group in NOT_OURS)


def test_the_pages_have_examples_of_both_kinds() -> None:
    assert {manifest["kind"] for _, manifest in OURS} == set(SPECS)


@pytest.mark.parametrize(("where", "manifest"), OURS, ids=[where for where, _ in OURS])
def test_our_examples_are_valid_by_the_types(where: str, manifest: dict[str, Any]) -> None:
    assert where
    SPECS[manifest["kind"]].model_validate(manifest["spec"])


@pytest.mark.parametrize(("where", "manifest"), MANIFESTS, ids=[where for where, _ in MANIFESTS])
def test_every_yaml_example_names_its_object(where: str, manifest: dict[str, Any]) -> None:
    assert where
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", manifest["metadata"]["name"])


@pytest.mark.parametrize("block", VALUES, ids=lambda block: str(block.id))
def test_values_examples_are_valid_by_the_charts_schema(block: Any) -> None:
    schema = yaml.safe_load((ROOT / "charts/nimway/values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load(block.text)
    Draft7Validator(schema).validate(values)
    spec = values.get("proxy", {}).get("spec", {})
    NIMProxySpec.model_validate({key: each for key, each in spec.items() if each is not None})


def test_every_yaml_block_is_a_manifest_or_values() -> None:
    known = {where.rpartition(" ")[0] for where, _ in MANIFESTS} | {each.id for each in VALUES}
    assert [block.id for block in blocks("yaml") if block.id not in known] == []


@pytest.mark.cluster
def test_the_api_server_accepts_the_examples(crds: Cluster, namespace: str) -> None:
    refused = {}
    for where, manifest in MANIFESTS:
        if _foreign(manifest):
            continue
        manifest["metadata"]["namespace"] = namespace
        answer = crds.kubectl(
            *("apply", "--dry-run=server", "-f", "-"), stdin=yaml.safe_dump(manifest), check=False
        )
        if not answer.strip().endswith("(server dry run)"):
            refused[where] = answer
    assert refused == {}
