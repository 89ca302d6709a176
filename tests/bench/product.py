"""The product as its image holds it: the locked dependencies, and the wheel with compiled modules.

Owns environments and wheels of the proxy under test, in nimway's cache: one of each for a Python,
made anew when the lock file or the sources changed.
"""

import hashlib
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nimway.sandbox import toolchain
from tests.bench import install, unobserved
from tests.bench.interpreter import Interpreter

ROOT = install.HERE.parents[1]
SHIPPED, BUILDING = ROOT / "requirements.lock", ROOT / "requirements-dev.lock"
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "charts", "crds", "operator")
"""What operator/Dockerfile copies to build the wheel."""

EXCHANGE = Path("operator", "src", "nimway", "proxy", "exchange.py")
HOOK = ROOT / "operator" / "build" / "hatch_build.py"


@dataclass(frozen=True, slots=True)
class Program:
    """How to run the product: a Python with its dependencies, and what to put on its path."""

    python: Path
    packages: Path


def build(interpreter: Interpreter, *, blind: bool = False) -> Program:
    """Return the product for `interpreter`; `blind`: without what observes.

    Raises:
        BenchError: it cannot be built; the text says what is missing.
    """
    kind = "blind" if blind else "whole"
    folder = toolchain.cache_folder() / f"bench-wheel-{_key(interpreter)}-{kind}"
    done, digest = folder / "sources", _digest()
    if not done.exists() or done.read_text() != digest:
        install.say(f"compiling the proxy ({kind}) for Python {interpreter.version}")
        shutil.rmtree(folder, ignore_errors=True)
        _compile(interpreter, folder, blind=blind)
        done.write_text(digest)
    return Program(_environment(interpreter, SHIPPED), folder)


def _compile(interpreter: Interpreter, folder: Path, *, blind: bool) -> None:
    install.install_debian(["gcc"])
    python = _environment(interpreter, BUILDING)
    install.run([str(python), str(HOOK)])  # says what is missing
    with tempfile.TemporaryDirectory(prefix="nimway-bench-") as name:
        tree = Path(name)
        for source in SOURCES:
            _copy(ROOT / source, tree / source)
        if blind:
            text = (tree / EXCHANGE).read_text(encoding="utf-8")
            (tree / EXCHANGE).write_text(unobserved.blind(text), encoding="utf-8")
        switch = "HATCH_BUILD_HOOK_ENABLE_CUSTOM=true"
        hatchling = [str(python), "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"]
        install.run(["env", switch, *hatchling], cwd=tree)
        (wheel,) = (tree / "dist").glob("*.whl")
        zipfile.ZipFile(wheel).extractall(folder)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _digest() -> str:
    found = hashlib.sha256(BUILDING.read_bytes())
    for file in _files():
        found.update(b"%b\0%b\0" % (str(file.relative_to(ROOT)).encode(), file.read_bytes()))
    return found.hexdigest()


def _files() -> Iterator[Path]:
    yield ROOT / "pyproject.toml"
    yield from sorted((ROOT / "operator").rglob("*.py"))


def _environment(interpreter: Interpreter, lock: Path) -> Path:
    """Return the Python of an environment with what `lock` says."""
    mark = hashlib.sha256(lock.read_bytes() + _key(interpreter).encode()).hexdigest()[:12]
    folder = toolchain.cache_folder() / f"bench-nimway-{mark}"
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        install.say(f"installing {lock.name} for Python {interpreter.version} into {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        install.run([str(interpreter.path), "-m", "venv", "--without-pip", str(folder)])
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        install.run([*pip, "--require-hashes", "--only-binary=:all:", "-r", str(lock)])
        done.touch()
    return python


def _key(interpreter: Interpreter) -> str:
    mark = f"{interpreter.path} {interpreter.version} {interpreter.compiler}".encode()
    return hashlib.sha256(mark).hexdigest()[:12]
