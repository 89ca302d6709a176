"""OP-5, the data plane's half: the API server is away, and every request is answered."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nimway.sandbox import launcher
from tests.bench_control import processes
from tests.support.faults import FULL
from tests.support.installed import Installed, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

AWAY_S = 60.0 if FULL else 10.0
"""Longer than the operator's Lease may go without a renewal."""


@contextmanager
def _away(sandbox: launcher.Sandbox) -> Iterator[None]:
    """Stop the API server: it accepts connections and says nothing, the worst kind of away."""
    assert sandbox._keeper is not None
    (pid,) = processes.find(sandbox._keeper.pid).plane["API server"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_no_request_fails_while_the_api_server_is_away(installed: Installed, models: str) -> None:
    sandbox = installed.cluster.sandbox
    if sandbox is None:
        pytest.skip("a foreign cluster's API server is not ours to stop")
    installed.apply_model(models, "served", "org/served", drain={"seconds": 5})
    installed.wait_ready(models, "served")
    eventually(lambda: installed.complete("org/served").status_code == 200, 30)

    with installed.load("org/served", clients=2) as answers:
        with _away(sandbox):
            before = len(answers.statuses)
            threading.Event().wait(AWAY_S)
            during = len(answers.statuses) - before
        # What was declared is caught up with, and still nothing fails.
        installed.apply_model(models, "later", "org/later", replicas=0)
        eventually(lambda: "org/later" in installed.listed(), 60)

    assert during > 5 * AWAY_S
    assert set(answers.statuses) == {200}
    assert answers.errors == []
