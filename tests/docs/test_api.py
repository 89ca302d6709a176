"""What docs/api.md is made of (tests/house keeps it current) leaves nothing out of the types."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from nimway.api import reference
from nimway.api.command import crds
from nimway.api.crd import build_crds
from nimway.api.status import CONDITION_HELP, REASON_HELP, ConditionType, Reason
from tests.docs.pages import ROOT
from tests.support import schema

CONTROL = ROOT / "operator/src/nimway/control"


def test_the_command_prints_the_reference() -> None:
    printed = CliRunner().invoke(crds, ["--reference"])
    assert (printed.exit_code, printed.output) == (0, reference.render())


def test_the_reference_is_not_written_where_crds_go(tmp_path: Path) -> None:
    refused = CliRunner().invoke(crds, ["--reference", "--write", str(tmp_path)])
    assert refused.exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["spec", "status"])
@pytest.mark.parametrize("name", build_crds())
def test_every_field_of_the_crds_has_a_meaning(name: str, part: str) -> None:
    crd = build_crds()[name]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    silent = [
        schema.dotted(steps)
        for steps, field in schema.walk(crd["properties"][part])
        if steps and steps[-1] not in (schema.ITEM, schema.KEY) and not field.get("description")
    ]
    assert silent == []


def test_every_row_of_a_field_has_its_five_cells() -> None:
    rows = [line for line in reference.render().splitlines() if line.startswith("| `")]
    fields = [row for row in rows if len(re.split(r"(?<!\\)\|", row)) == 7]
    others = len(ConditionType) + len(Reason)
    assert len(rows) == len(fields) + others
    assert [row for row in fields if row.endswith("|  |")] == []


def test_every_condition_and_every_reason_is_explained() -> None:
    assert set(CONDITION_HELP) == set(ConditionType)
    assert set(REASON_HELP) == set(Reason)


def test_a_reason_is_called_reserved_just_when_the_operator_never_reports_it() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in CONTROL.rglob("*.py"))
    for reason, (means, _) in REASON_HELP.items():
        used = re.search(rf"\bReason\.{reason.name}\b", code) is not None
        assert used is not means.startswith("Reserved"), reason
