"""Prometheus' own judgement of a page of metrics, where its tool is at hand."""

import shutil
import subprocess

import pytest


def check_metrics(page: bytes) -> tuple[int, bytes]:
    """Return the exit code and all output of `promtool check metrics`; skip the test without it."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, check=False
    )
    return done.returncode, done.stdout + done.stderr
