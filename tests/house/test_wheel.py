"""The wheel holds what an installed `nimway sandbox` needs."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
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
