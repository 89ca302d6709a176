"""Fixtures that several parts' tests share live in tests/support."""

pytest_plugins = ["tests.support.cluster", "tests.support.golden", "tests.support.installed"]
