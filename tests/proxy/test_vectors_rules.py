"""Each rule of `wire.py` and `lines.py` is needed: without any one, at least one vector fails.

A rule is a `raise WireError`, an operand of the condition in front of it, and in `wire.py` an entry
of a table of fields, or a name in a set. Each is taken out of the source, the rest is compiled, and
the vectors run on what is left.
"""

import ast
import copy
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nimway.proxy import lines, wire
from tests.proxy import vectors_answers, vectors_chunks, vectors_heads
from tests.proxy.vectors import flatten
from tests.proxy.vectors_accepted import ACCEPTED

ROOT = Path(__file__).parents[2]
HEADS = [data[: data.index(b"\r\n\r\n") + 4] for data in flatten(vectors_heads.BY_SOURCE).values()]
TOO_LARGE = [
    b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"a" * 16384),
    b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n" % (b"X: y\r\n" * 100),
]
ANSWERS = list(flatten(vectors_answers.BY_SOURCE).values())
CHUNKS = list(flatten(vectors_chunks.REJECTED_BY_SOURCE).values())
GOOD_ANSWERS = [
    b"HTTP/1.1 200 OK\r\nX: 1\r\nKeep-Alive: x\r\nProxy-Connection: x\r\nTE: x\r\nUpgrade: x\r\n"
    b"HTTP2-Settings: x\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nX-Request-Id: x\r\n"
    b"Proxy-Authenticate: x\r\nContent-Type: text/event-stream\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 304 Not\r\nContent-Length: 5\r\n\r\n",
]
GOOD_HEADS = [vector.data for vector in ACCEPTED.values()] + [
    b"GET http://b?x HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nX-Request-Id: a b\r\nContent-Length: 1\r\n\r\n",
]


def _facts(head: Any) -> dict[str, Any]:
    """The instance's facts, those at its class included."""
    names = [name for name in dir(head) if not name.startswith("_") and name != "rules"]
    return {name: value for name in names if not callable(value := getattr(head, name))}


def _outcome(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception as error:  # noqa: BLE001 # a mutant may fail in any way
        return type(error).__name__, getattr(error, "status", None)


def _dechunk(module: ModuleType, data: bytes, size: int) -> Any:
    dechunker = module.Dechunker()
    pieces = [
        piece for at in range(0, len(data), size) for piece in dechunker.feed(data[at : at + size])
    ]
    return b"".join(pieces), dechunker.done, dechunker.trailers, dechunker.rest


def _run(module: Any) -> Iterator[Any]:
    """The outcome of each vector, one by one, so that the first difference ends it."""
    for data in (*HEADS, *TOO_LARGE, *GOOD_HEADS):
        head = data.lstrip(b"\r\n") if data in GOOD_HEADS else data
        head = head[: head.index(b"\r\n\r\n") + 4]
        yield _outcome(lambda head=head: _facts(module.read_request(head)))  # type: ignore[misc] # bound now
    for data in (*ANSWERS, *GOOD_ANSWERS):
        head = data[: data.index(b"\r\n\r\n") + 4]
        yield _outcome(lambda head=head: _facts(module.read_response(head)))  # type: ignore[misc] # bound now
    good = [data for data, _, _ in vectors_chunks.ACCEPTED.values()]
    for data, size in itertools.product((*CHUNKS, *good), (100_000, 1)):
        step = size if len(data) < 1000 else 4096
        yield _outcome(lambda data=data, step=step: _dechunk(module, data, step))  # type: ignore[misc] # bound now


Site = tuple[str, Callable[[], None]]
PROXY = ROOT / "operator/src/nimway/proxy"
WIRE = ast.parse((PROXY / "wire.py").read_text(encoding="utf-8"))
LINES = ast.parse((PROXY / "lines.py").read_text(encoding="utf-8"))


def _is_refusal(node: ast.stmt) -> bool:
    call = node.exc if isinstance(node, ast.Raise) else None
    return (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "WireError"
    )


def _refusals(node: ast.AST) -> Iterator[Site]:
    """A `raise`, and each of the alternatives that lead to it."""
    for name in ("body", "orelse"):
        block: list[Any] = getattr(node, name, None) or []
        for at, child in enumerate(block if isinstance(block, list) else ()):
            if isinstance(child, ast.stmt) and _is_refusal(child):
                yield (
                    f"line {child.lineno}: {ast.unparse(child)}",
                    _replacing(block, at, ast.Pass()),
                )
    if isinstance(node, ast.If) and any(map(_is_refusal, node.body)):
        test = node.test
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
            for at, operand in enumerate(test.values):
                rule = f"line {operand.lineno}: {ast.unparse(operand)}"
                yield rule, _replacing(test.values, at, ast.Constant(value=False))


def _entries(node: ast.AST) -> Iterator[Site]:
    """What tables and sets say of a field."""
    if isinstance(node, ast.Dict):
        for at, key in enumerate(node.keys):
            if isinstance(key, ast.Constant) and isinstance(key.value, bytes):
                yield f"line {key.lineno}: {key.value!r}", _deleting(node, at)
    if isinstance(node, ast.Tuple) and all(map(_is_name, node.elts)):
        for at, name in enumerate(node.elts):
            yield f"line {name.lineno}: {ast.unparse(name)}", _dropping(node.elts, at)


def _is_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, bytes)


def _sites(wire_tree: ast.Module, lines_tree: ast.Module) -> Iterator[Site]:
    """Each rule of the two, and what takes it out."""
    for node in ast.walk(wire_tree):
        yield from _refusals(node)
        yield from _entries(node)
    for node in ast.walk(lines_tree):
        yield from ((f"lines.py, {rule}", take_out) for rule, take_out in _refusals(node))


def _replacing(block: list[Any], at: int, other: ast.AST) -> Callable[[], None]:
    return lambda: block.__setitem__(at, other)


def _dropping(block: list[Any], at: int) -> Callable[[], None]:
    return lambda: block.__delitem__(at)


def _deleting(node: ast.Dict, at: int) -> Callable[[], None]:
    def delete() -> None:
        del node.keys[at], node.values[at]

    return delete


TWICE = {
    "not value.isdigit()": "llhttp refuses the same; what frames is not left to one parser",
    **dict.fromkeys(
        (
            "raise WireError(400, 'malformed field line')",
            "not colon",
            "found.fields != [(name, value)]",
        ),
        "llhttp refuses every line that it would read otherwise; that both agree is not left to it",
    ),
}
"""Rules that another one covers, and why they stay."""

RULES = [rule for rule, _ in _sites(WIRE, LINES)]
NEEDED = [at for at, rule in enumerate(RULES) if rule.partition(": ")[2] not in TWICE]


def _without(number: int | None) -> ModuleType:
    """`wire.py` on `lines.py`, one of them without one rule, unless it is None."""
    trees = copy.deepcopy((WIRE, LINES))
    if number is not None:
        next(itertools.islice(_sites(*trees), number, None))[1]()
    modules = [ModuleType("wire_again"), ModuleType(lines.__name__)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, lines.__name__, modules[1])
        for module, tree in reversed(list(zip(modules, trees, strict=True))):
            code = compile(ast.fix_missing_locations(tree), module.__name__, "exec")
            exec(code, module.__dict__)  # noqa: S102 # our own source
    return modules[0]


@pytest.fixture(scope="module")
def expected() -> list[Any]:
    outcomes = list(_run(wire))
    assert all(outcome[0] == "WireError" for outcome in outcomes[: len(HEADS) + len(TOO_LARGE)])
    return outcomes


@pytest.mark.parametrize("number", NEEDED, ids=[RULES[number] for number in NEEDED])
def test_without_this_rule_a_vector_fails(number: int, expected: list[Any]) -> None:
    assert any(new != old for new, old in zip(_run(_without(number)), expected, strict=False))


def test_the_rules_are_found() -> None:
    assert len(NEEDED) > 50
    assert len(NEEDED) == len(RULES) - len(TWICE)
    assert list(_run(_without(None))) == list(_run(wire))
