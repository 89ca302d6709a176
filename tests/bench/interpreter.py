"""Which Python the proxy under test runs on: named in the results, because it decides a fifth.

The image's Python is built with profile-guided and link-time optimisation (PGO, LTO), as Debian's
is; one that a version manager compiled mostly is not. So the proxy runs on the fastest Python of
this machine, with the product's own lock file, and the results say which and how fast. It is
measured and not looked up: Debian's `sysconfig` does not tell how its /usr/bin/python3 was built.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import install
from tests.bench.running import BenchError

VERSION_MIN = (3, 11)
CANDIDATES = ("/usr/local/bin/python3", "/usr/bin/python3")

_PROBE = """
import json, platform, sysconfig, timeit
def work():
    found = {}
    for number in range(1000):
        found[number] = (number, str(number))
        found[number][0] + 1
flags = sysconfig.get_config_var("CONFIG_ARGS") or ""
print(json.dumps({
    "version": platform.python_version(),
    "compiler": platform.python_compiler(),
    "optimized": "--enable-optimizations" in flags,
    "work_us": min(timeit.repeat(work, number=50, repeat=20)) / 50 * 1e6,
}))
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """One Python; `work_us` is its time for a fixed piece of plain Python.

    `optimized` says that its `sysconfig` names PGO; that it does not says nothing.
    """

    path: Path
    version: str
    compiler: str
    optimized: bool
    work_us: float

    @property
    def usable(self) -> bool:
        """Whether nimway runs on it."""
        return tuple(map(int, self.version.split(".")[:2])) >= VERSION_MIN

    def describe(self, own: "Interpreter") -> str:
        """Say which it is, and how fast next to the Python that runs the benchmark."""
        build = f"{self.path}, {self.compiler}{', PGO' if self.optimized else ''}"
        if self == own:
            return f"{self.version} ({build})"
        times = own.work_us / self.work_us
        return f"{self.version} ({build}; {times:.2f} times as fast as {own.version} of the venv)"


def probe(path: Path) -> Interpreter:
    """Ask a Python for its version and build, and time it."""
    found: dict[str, Any] = json.loads(install.run([str(path), "-I", "-c", _PROBE]))
    return Interpreter(path, **found)


def choose(wanted: str | None = None) -> tuple[Interpreter, str]:
    """Return `wanted`, or the fastest Python that nimway runs on, and its description.

    Raises:
        BenchError: `wanted` is no Python that nimway runs on.
    """
    own = probe(Path(sys.executable))
    if wanted is None:
        others = [probe(Path(path)) for path in CANDIDATES if Path(path).exists()]
        found = fastest([own, *others])
    else:
        found = probe(Path(shutil.which(wanted) or wanted))
        if not found.usable:
            raise BenchError(f"{wanted} is Python {found.version}; nimway needs 3.11 or later")
    return found, found.describe(own)


def fastest(found: Sequence[Interpreter]) -> Interpreter:
    """Return the fastest that nimway runs on."""
    return min((each for each in found if each.usable), key=lambda each: each.work_us)
