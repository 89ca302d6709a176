"""A worker that observes nothing: what `--price` compares the production worker with.

`python -m tests.bench.unobserved FD HOST PORT SETTINGS`, as `nimway.proxy.worker`. The product has
no switch for this: here `exchange.py` is compiled without the statements that observe.
"""

import ast
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from nimway.proxy import exchange, worker

OBSERVING = frozenset(("account", "watch", "tail", "first_byte_at", "bytes_out", "meters", "picks"))
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


def blind(source: str) -> tuple[ast.Module, set[str]]:
    """Return `source` without what observes, and which names were found in it."""
    blinding = _Blinding()
    tree: ast.Module = ast.fix_missing_locations(blinding.visit(ast.parse(source)))
    return tree, blinding.found


def load_exchange() -> Any:
    """Return the class `Exchange` without what observes."""
    tree, found = blind(Path(exchange.__file__).read_text(encoding="utf-8"))
    if missing := OBSERVING - found:
        raise LookupError(f"exchange.py no longer has: {', '.join(sorted(missing))}")
    module = ModuleType("nimway.proxy.exchange")
    exec(compile(tree, "exchange.py", "exec"), module.__dict__)  # noqa: S102 # our own source
    return module.__dict__["Exchange"]


class Unobserved(worker.Worker):
    """A worker whose exchanges are not observed."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._server.begin = partial(load_exchange(), self._server)


if __name__ == "__main__":
    worker.Worker = Unobserved  # type: ignore[assignment,misc] # what `main` starts
    worker.main(sys.argv[1:])
