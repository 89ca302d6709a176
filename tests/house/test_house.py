"""The tree keeps its own rules: sizes, rooms, and generated files that are current."""

import ast
import subprocess
from pathlib import Path

import pytest

from nimway.api import reference
from nimway.api.crd import build_crds, render

ROOT = Path(__file__).parents[2]
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70


def _tracked(pattern: str) -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


@pytest.mark.parametrize("name", build_crds())
def test_generated_crds_are_current(name: str) -> None:
    expected = render(build_crds()[name])
    for folder in ("crds", "charts/nimway/crds"):
        assert (ROOT / folder / name).read_text(encoding="utf-8") == expected, "run: make crds"


def test_the_generated_reference_is_current() -> None:
    written = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert written == reference.render(), "run: make docs"


def test_no_file_is_longer_than_its_limit() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in _tracked("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > FILE_LINES_MAX
    }
    assert long == {}


def test_no_function_is_longer_than_its_limit() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines"
        for path in _tracked("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_the_operator_folder_is_plain_so_that_it_does_not_shadow_the_standard_library() -> None:
    assert not list((ROOT / "operator").glob("*.py"))


def test_the_top_level_is_the_one_that_was_asked_for() -> None:
    wanted = {"pyproject.toml", "README.md", "operator", "crds", "charts", "tests", "Makefile"}
    also = {"LICENSE", "docs", "requirements.lock", "requirements-dev.lock"}
    names = {path.relative_to(ROOT).parts[0] for path in _tracked("*")}
    visible = {name for name in names if not name.startswith(".")}
    assert wanted <= visible
    assert visible - wanted <= also


def test_every_package_is_documented_and_every_module_says_what_it_owns() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in _tracked("operator/src/*.py")
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []
