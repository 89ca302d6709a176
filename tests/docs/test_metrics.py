"""docs/metrics.md names every metric and every key of the access log, and no other."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from nimway.control.metrics import Metrics
from nimway.proxy.exposition import METRICS
from nimway.proxy.metrics import Answered, Meters
from nimway.proxy.settings import Settings
from nimway.proxy.wire import RequestHead
from tests.docs.pages import DOCS, manifests, table

PAGE = DOCS / "metrics.md"
SUFFIXES = re.compile(r"_(bucket|sum|count)$")
Row = tuple[str, str, tuple[str, ...]]


def _rows(heading: str) -> set[Row]:
    return {
        (row[0].strip("`"), row[1], tuple(re.findall(r"`(\w+)`", row[2])))
        for row in table(PAGE, heading)
    }


def _operator() -> set[Row]:
    """Return name, type and labels of the operator's metrics as they are scraped."""
    registry = Metrics().registry
    text = generate_latest(registry).decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
    found = set()
    for family in vars(Metrics()).values():
        described = getattr(family, "_name", None)
        if described is None:
            continue
        name = f"{described}_total" if f"{described}_total" in kinds else described
        found.add((name, kinds[name], tuple(family._labelnames)))
    return found


def test_the_proxys_metrics_are_those_of_the_page() -> None:
    assert _rows("Proxy") == {(each.name, each.kind, each.labels) for each in METRICS}


def test_the_operators_metrics_are_those_of_the_page() -> None:
    assert _rows("Operator") == _operator()


def test_every_metric_named_anywhere_in_the_page_exists() -> None:
    known = {name for name, _, _ in _rows("Proxy") | _rows("Operator")}
    named = set(re.findall(r"\b(?:nimway|gen_ai)_(?:\w+)", PAGE.read_text(encoding="utf-8")))
    labels = {label for _, _, labels in _rows("Proxy") for label in labels}
    assert {SUFFIXES.sub("", name) for name in named} - labels == known


def test_each_metric_has_a_query_of_its_own() -> None:
    for heading in ("Proxy", "Operator"):
        for row in table(PAGE, heading):
            assert row[0].strip("`") in row[4]


def _examples(kind: str) -> list[dict[str, Any]]:
    return [each for _, each in manifests() if each["kind"] == kind]


def test_who_has_no_series_without_pods_is_missed_all_the_same() -> None:
    (rules,) = _examples("PrometheusRule")
    alerts = {each["alert"]: each["expr"] for each in rules["spec"]["groups"][0]["rules"]}
    for alert, metric in (
        ("NimwayNoLeader", "nimway_operator_leader"),
        ("NimwayNoProxy", "nimway_proxy_workers"),
    ):
        assert alerts[alert].endswith(f" or absent({metric})")


def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    (rules,) = _examples("PrometheusRule")
    page = tmp_path / "rules.yaml"
    page.write_text(yaml.safe_dump({"groups": rules["spec"]["groups"]}), encoding="utf-8")
    done = subprocess.run(
        [promtool, "check", "rules", str(page)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_operators_namespace_label_is_not_taken_for_its_own() -> None:
    (monitor,) = _examples("PodMonitor")
    assert [each["honorLabels"] for each in monitor["spec"]["podMetricsEndpoints"]] == [True]
    (rules,) = _examples("PrometheusRule")
    assert monitor["metadata"]["labels"] == rules["metadata"]["labels"] == {"release": "prometheus"}


def test_the_keys_of_the_access_log_are_those_of_the_page() -> None:
    written = [row[0].strip("`") for row in table(PAGE, "Access log")]
    meters = Meters(Settings(), 0.0)
    meters.account(Answered(), None, "", RequestHead(), 0.0)
    assert written == list(json.loads(meters.take_lines()))
