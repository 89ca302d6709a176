"""What the benchmark compares with: found on this machine, or installed once.

Owns Debian's packages (apt-get, only as root), virtual environments from hash-locked requirements
and Go programs from this folder, both in nimway's cache. Nothing goes into nimway's environment.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from nimway.sandbox import toolchain
from tests.bench.running import BenchError

HERE = Path(__file__).parent


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def run(command: Sequence[str], *, cwd: Path | None = None) -> str:
    """Run to the end and return what it printed; a failure quotes its last line."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise BenchError(f"{' '.join(command[:4])} ... failed: {' '.join(tail)}")
    return done.stdout + done.stderr


def install_debian(programs: Sequence[str]) -> None:
    """Install the programs that are not on PATH from Debian's packages of the same name."""
    missing = [program for program in programs if shutil.which(program) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise BenchError(f"install these first (Debian: apt-get install): {' '.join(missing)}")
    say(f"installing {' '.join(missing)} with apt-get")
    install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *missing]
    try:
        run(install)
    except BenchError:
        run(["apt-get", "update", "--quiet"])
        run(install)


def venv(name: str) -> Path:
    """Return the folder of programs of the environment that requirements/NAME.txt describes."""
    requirements = HERE / "requirements" / f"{name}.txt"
    mark = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    folder = toolchain.cache_folder() / f"bench-{name}-{mark}"
    done = folder / "installed"
    if not done.exists():
        say(f"installing {name} from PyPI into {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        run([sys.executable, "-m", "venv", str(folder)])
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input"]
        run([*pip, "--require-hashes", "--only-binary=:all:", "-r", str(requirements)])
        done.touch()
    return folder / "bin"


def venv_version(programs: Path, package: str) -> str:
    """Return the version of a package that an environment holds."""
    [site] = (programs.parent / "lib").glob("python*/site-packages")
    [found] = metadata.distributions(name=package, path=[str(site)])
    return found.version


def go_program(name: str) -> Path:
    """Build tests/bench/NAME with the Go of this machine, or of the sandbox."""
    sources = sorted(path for path in (HERE / name).iterdir() if path.suffix in {".go", ".mod"})
    mark = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    program = toolchain.cache_folder() / f"bench-{name}-{mark}"
    if not program.exists():
        say(f"building {name}")
        with tempfile.TemporaryDirectory(dir=program.parent) as folder:
            staged = Path(folder) / name
            run([str(go()), "build", "-o", str(staged), "."], cwd=HERE / name)
            staged.rename(program)
    return program


def go() -> Path:
    """Return a Go toolchain."""
    return toolchain.go(say)
