"""Fixtures that several parts' tests share live in tests/support."""

from hypothesis import settings

settings.register_profile("nimway", deadline=None)  # the machine is shared
settings.load_profile("nimway")

pytest_plugins = ["tests.support.cluster", "tests.support.golden", "tests.support.installed"]
