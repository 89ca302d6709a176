"""Client libraries as users install them, each in an environment of its own.

Their pins collide with ours and with each other, so each has a lock file with hashes in
tests/data/sdk and a virtual environment in the user's cache, made when a test first needs it.

`python -m tests.support.sdk` renews the lock files from the `.in` files beside them.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data" / "sdk"
UV = Path(sys.executable).with_name("uv")
_RUN_MAX_S = 60


@dataclass(frozen=True, slots=True)
class Sdk:
    """One installed client library: the interpreter that can import it."""

    name: str
    python: Path

    def run(self, script: str, *arguments: str) -> Any:
        """Run `script` of tests/data/sdk; return the JSON it prints.

        Raises:
            AssertionError: the script failed; the text is what it wrote.
        """
        done = subprocess.run(
            [self.python, "-I", DATA / script, *arguments],
            capture_output=True,
            text=True,
            timeout=_RUN_MAX_S,
            env={"PATH": os.environ.get("PATH", ""), "HOME": os.environ.get("HOME", "/")},
            check=False,
        )
        assert done.returncode == 0, f"{script} in {self.name}:\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)


def installed(name: str) -> Sdk:
    """Return the environment of tests/data/sdk/`name`.lock; make it if it is not there yet."""
    lock = DATA / f"{name}.lock"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    key = hashlib.sha256(lock.read_bytes() + version.encode()).hexdigest()[:12]
    folder = _cache() / f"sdk-{name}-{key}"
    if not folder.is_dir():
        _install(lock, folder)
    return Sdk(name, folder / "bin" / "python")


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "nimway"


def _install(lock: Path, folder: Path) -> None:
    """Make the environment beside its place and move it there whole, so that none is ever half."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="sdk-") as scratch:
        made = Path(scratch) / "venv"
        _uv("venv", "--relocatable", "--python", sys.executable, str(made))
        python = str(made / "bin" / "python")
        _uv("pip", "install", "--require-hashes", "--python", python, "-r", str(lock))
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # another test run was quicker otherwise
                raise


def _uv(*arguments: str) -> None:
    done = subprocess.run([UV, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"uv {' '.join(arguments)} failed: {done.stderr}")


def _renew_locks() -> None:
    for wanted in sorted(DATA.glob("*.in")):
        lock = wanted.with_suffix(".lock")
        fixed = ("--universal", "--python-version", "3.11", "--generate-hashes", "--upgrade")
        quiet = ("--no-emit-index-url", "--no-annotate", "--quiet")
        said = ("--custom-compile-command", "python -m tests.support.sdk")
        _uv("pip", "compile", str(wanted), *fixed, *quiet, *said, "-o", str(lock))


if __name__ == "__main__":
    if shutil.which(str(UV)) is None:
        raise SystemExit("uv is not installed beside this Python: run make setup")
    _renew_locks()
