"""The wheel holds what an installed `nimway sandbox` needs."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMPILED = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["modules"]
CHART = "nimway/sandbox/share/charts/nimway/"
NEEDED = {
    "nimway/sandbox/controlplane/go.mod",
    "nimway/sandbox/controlplane/go.sum",
    f"{CHART}Chart.yaml",
    f"{CHART}crds/nimmodels.yaml",
    f"{CHART}crds/nimproxies.yaml",
    f"{CHART}templates/operator.yaml",
    f"{CHART}values.schema.json",
    "nimway/py.typed",
}


def test_the_wheel_contains_chart_crds_and_control_plane_module(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("nimway-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= NEEDED
    assert any(name.startswith("nimway/sandbox/samples/") for name in names)
    assert not [name for name in names if not name.startswith(("nimway/", "nimway-"))]


def test_what_is_compiled_exists_and_has_no_form_that_needs_python() -> None:
    assert len(COMPILED) > 20
    for module in COMPILED:
        source = (ROOT / "operator" / "src" / module).read_text(encoding="utf-8")
        assert "msgspec.Struct" not in source, f"{module}: msgspec's forms are in structs.py"


def test_the_compiled_wheel_holds_every_module_that_is_to_be_compiled() -> None:
    folder = ROOT / ".venv" / "compiled"
    if not (folder / "nimway").exists():
        pytest.skip("nothing here can compile: see `make verify`")
    built = {str(file.relative_to(folder)).partition(".")[0] for file in folder.rglob("*.so")}
    assert built == {module.removesuffix(".py") for module in COMPILED} | {"nimway_proxy__mypyc"}
    assert not list((ROOT / "operator").rglob("*.so")), "left in the tree"
