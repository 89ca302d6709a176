"""Fixtures that several parts' tests share live in tests/support."""

import os
from pathlib import Path
from typing import Any

from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

settings.register_profile("nimway", deadline=None)  # the machine is shared
settings.load_profile("nimway")

pytest_plugins = ["tests.support.cluster", "tests.support.golden", "tests.support.installed"]

INSTALLED = ("tests/installation/", "tests/cluster/")
"""Their tests use the chart's installation: each process that has one has a control plane more."""


class SharedInstallation(LoadScopeScheduling):  # type: ignore[misc]
    """Gives the tests of a file to one process, and all that use the installation to one."""

    def _split_scope(self, nodeid: str) -> str:
        return "installed" if nodeid.startswith(INSTALLED) else nodeid.partition("::")[0]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Append how many tests passed and were skipped to the file of NIMWAY_TEST_COUNTS."""
    path = os.environ.get("NIMWAY_TEST_COUNTS")
    if path and "PYTEST_XDIST_WORKER" not in os.environ:
        counts = [len(terminalreporter.stats.get(each, ())) for each in ("passed", "skipped")]
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(" ".join(map(str, counts)) + "\n")


def pytest_xdist_make_scheduler(config: Any, log: Any) -> SharedInstallation:
    """Distribute tests among processes; see pytest-xdist's hook of this name."""
    return SharedInstallation(config, log)
