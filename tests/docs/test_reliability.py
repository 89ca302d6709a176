"""docs/reliability.md has every fault of the proxy and the operator, and its tests exist."""

import ast
import re

import pytest

from tests.docs.pages import DOCS, table

PAGE = DOCS / "reliability.md"
LINK = re.compile(r"\[(\w+)\]\((\.\./tests/[\w/]+\.py)\)( \(full\))?")
PROXY = [*(f"PX-{number}" for number in range(1, 17)), "SEC-2", "SEC-3", "SEC-5"]
OPERATOR = [*(f"OP-{number}" for number in range(1, 19)), "SEC-1", "SEC-6", "SEC-7"]
ROWS = [*table(PAGE, "The proxy"), *table(PAGE, "The operator")]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(path: str) -> dict[str, bool]:
    """Return a module's functions, and of each whether it runs with `make faults` alone."""
    tree = ast.parse((DOCS / path).read_text(encoding="utf-8"))
    marks = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    whole = any(_is_full_only(each) for mark in marks for each in getattr(mark, "elts", [mark]))
    return {
        node.name: whole or any(map(_is_full_only, node.decorator_list))
        for node in tree.body
        if isinstance(node, Function)
    }


def _is_full_only(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "full_only"


def test_every_fault_has_a_row() -> None:
    known = {row[0] for row in ROWS}
    assert [fault for fault in (*PROXY, *OPERATOR) if fault not in known] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[1][:30]}")
def test_what_proves_a_row_exists_and_is_marked_where_make_test_leaves_it_out(
    row: list[str],
) -> None:
    proofs = LINK.findall(row[3])
    assert len(proofs) == row[3].count("](") > 0
    for name, path, full in proofs:
        functions = _functions(path)
        assert name in functions
        assert functions[name] == bool(full), f"{name} runs with `make faults` alone, or does not"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[1][:30]}")
def test_something_of_each_row_runs_in_the_short_form(row: list[str]) -> None:
    assert not all(full for _, _, full in LINK.findall(row[3]))
