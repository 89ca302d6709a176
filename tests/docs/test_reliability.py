"""docs/reliability.md has every fault of the proxy and the operator, and its tests exist."""

import ast
import re

import pytest

from tests.docs.pages import DOCS, table

PAGE = DOCS / "reliability.md"
LINK = re.compile(r"\[(\w+)\]\((\.\./tests/[\w/]+\.py)\)")
PROXY = [*(f"PX-{number}" for number in range(1, 17)), "SEC-2", "SEC-3", "SEC-5"]
OPERATOR = [f"OP-{number}" for number in range(1, 19)]
ROWS = [*table(PAGE, "The proxy"), *table(PAGE, "The operator")]


def test_every_fault_has_a_row() -> None:
    known = {row[0] for row in ROWS}
    assert [fault for fault in (*PROXY, *OPERATOR) if fault not in known] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[1][:30]}")
def test_what_proves_a_row_exists(row: list[str]) -> None:
    proofs = LINK.findall(row[3])
    assert proofs
    for name, path in proofs:
        tree = ast.parse((DOCS / path).read_text(encoding="utf-8"))
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert name in {node.name for node in tree.body if isinstance(node, functions)}, name
