"""Build hook: compiles the proxy's data path to C with mypyc, for the wheel that the image holds.

Off unless `HATCH_BUILD_HOOK_ENABLE_CUSTOM=true`: it needs a C compiler and Python's headers. The
modules stay Python and are tested as such, too; compiled, a small request takes half of the
instructions in user space. Which modules: `modules` of the hook's table in pyproject.toml.
"""

import contextlib
import os
import shlex
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

GROUP = "nimway_proxy"
"""All modules are one library of this name: calls between them are calls in C."""


def find_missing() -> str:
    """Return what a machine lacks to compile, "" if nothing."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if not headers.exists():
        return f"{headers} (your distribution's python3-dev package)"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    return "" if shutil.which(compiler) else f"a C compiler ({compiler})"


class CompilingHook(BuildHookInterface[Any]):
    """Puts the compiled modules beside their sources; Python imports the compiled ones."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, for a wheel that is not editable."""
        if version != "standard":
            return
        self._folder = Path(tempfile.mkdtemp(prefix="nimway-build-"))
        compile_modules(Path(self.root), self.config["modules"], self._folder)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"].update(
            {str(file): str(file.relative_to(self._folder)) for file in self._folder.rglob("*.so")}
        )

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Take away what was compiled: the wheel has it."""
        del build_data, artifact_path
        if version == "standard":
            shutil.rmtree(self._folder)


def compile_modules(root: Path, modules: list[str], target: Path) -> None:
    """Compile `modules` of the project at `root`, and put them below `target` as in its wheel.

    `NIMWAY_OPT_LEVEL` is the C compiler's, 3 unless set: tests do with less.

    Raises:
        SystemExit: mypy or the C compiler refuses; it said why.
    """
    from mypyc.build import mypycify  # noqa: PLC0415 # only this hook needs it, and it is slow
    from setuptools import Distribution  # noqa: PLC0415 # as above

    with contextlib.chdir(root / "operator" / "src"), tempfile.TemporaryDirectory() as scratch:
        config = str(root / "pyproject.toml")
        options = ["--config-file", config, "--cache-dir", f"{scratch}/cache"]
        extensions = mypycify(
            [*options, *modules],
            opt_level=os.environ.get("NIMWAY_OPT_LEVEL", "3"),
            target_dir=f"{scratch}/c",
            group_name=GROUP,
        )
        distribution = Distribution({"name": GROUP, "ext_modules": extensions})
        command = distribution.get_command_obj("build_ext")
        command.build_lib = str(target)
        command.build_temp = f"{scratch}/objects"
        command.ensure_finalized()
        command.run()


if __name__ == "__main__":
    if missing := find_missing():
        sys.exit(f"The proxy stays uncompiled: {missing} is missing")
