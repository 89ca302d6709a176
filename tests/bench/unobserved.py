"""The source of `exchange.py` without the statements that observe.

What `--price` and `--pairs` compare the proxy with: the product has no switch for this.
"""

import ast
from typing import Any

OBSERVING = frozenset(("account", "watch", "first_byte_at", "bytes_out", "meters", "picks"))
"""Attributes that only observing reads or writes; each must stand in `exchange.py`."""


class _Blinding(ast.NodeTransformer):
    """Takes out statements that name what only observing needs, and ifs that are left empty."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Expr | ast.Assign | ast.AugAssign):
            names = {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
            if seen := names & OBSERVING:
                self.found |= seen
                return ast.copy_location(ast.Pass(), node)
        node = self.generic_visit(node)
        if isinstance(node, ast.If) and _is_empty(node.body) and _is_empty(node.orelse):
            return ast.copy_location(ast.Pass(), node)
        return node


def _is_empty(block: list[ast.stmt]) -> bool:
    return all(isinstance(each, ast.Pass) for each in block)


def blind(source: str) -> str:
    """Return `source` without what observes.

    Raises:
        LookupError: one of `OBSERVING` does not stand in it any more.
    """
    blinding = _Blinding()
    tree: ast.Module = ast.fix_missing_locations(blinding.visit(ast.parse(source)))
    if missing := OBSERVING - blinding.found:
        raise LookupError(f"exchange.py no longer has: {', '.join(sorted(missing))}")
    return ast.unparse(tree)
