"""A settled system writes nothing: counted in the API server's own audit log."""

import json
import threading
from pathlib import Path

import pytest

from tests.support.installed import NAMESPACE, Installed, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

IDLE_S = 60
SILENCE_S = 3.0
LEFTOVERS_S = 120.0
MODELS = 20
RUNNING = 5
"""So many of them have a pod, ready without a process: the others are switched off."""

PRETEND = {"sandbox.nimway.dev/pretend": "true"}
MUTATING = {"create", "update", "patch", "delete", "deletecollection"}


def _writes(audit_log: Path, offset: int) -> list[str]:
    """Mutating requests of Nimway's ServiceAccounts since `offset`, Lease renewals apart."""
    with audit_log.open(encoding="utf-8") as file:
        file.seek(offset)
        events = [json.loads(line) for line in file if line.endswith("}\n")]
    return [
        f"{event['user']['username']} {event['verb']} {event['requestURI']}"
        for event in events
        if event["verb"] in MUTATING
        and event["user"]["username"].startswith(f"system:serviceaccount:{NAMESPACE}:nimway")
        and event["objectRef"]["resource"] != "leases"
    ]


def _is_settled(installed: Installed, models: str) -> bool:
    """Tell whether every model is routed and ready, those that run with their pod."""
    found = [model.get("status", {}) for model in installed.list(models, "nimmodels")]
    holding = [
        {each["type"] for each in status.get("conditions", ()) if each["status"] == "True"}
        for status in found
    ]
    return sum(status.get("ready") == "1/1" for status in found) == RUNNING and all(
        {"Ready", "Routed"} <= each for each in holding
    )


def _is_gone(installed: Installed, models: str) -> bool:
    """Tell whether nothing is left of other tests, whose namespaces go while this one begins."""
    return all(
        model["metadata"]["namespace"] == models for model in installed.list("", "nimmodels")
    )


def test_twenty_models_at_rest_cause_no_write(installed: Installed, models: str) -> None:
    sandbox = installed.cluster.sandbox
    if sandbox is None:
        pytest.skip("a foreign cluster's audit log is elsewhere")
    for number in range(MODELS):
        spec = {"gpus": 0, "annotations": PRETEND} if number < RUNNING else {"replicas": 0}
        installed.apply_model(models, f"idle-{number}", f"org/idle-{number}", **spec)
    eventually(lambda: _is_settled(installed, models), 60)
    eventually(lambda: _is_gone(installed, models), LEFTOVERS_S, "other tests' models are gone")
    threading.Event().wait(SILENCE_S)  # what is still on its way, such as statuses, arrives
    offset = sandbox.audit_log.stat().st_size

    threading.Event().wait(IDLE_S)

    assert _writes(sandbox.audit_log, 0), "the audit log names the operator's writes"
    assert _writes(sandbox.audit_log, offset) == []
    assert sandbox.audit_log.stat().st_size > offset, "and it went on"
