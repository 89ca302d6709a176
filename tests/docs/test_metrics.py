"""docs/metrics.md names every metric and every key of the access log, and no other."""

import json
import re

from prometheus_client import generate_latest

from nimway.control.metrics import Metrics
from nimway.proxy.exposition import METRICS
from nimway.proxy.metrics import Answered, Meters
from nimway.proxy.settings import Settings
from nimway.proxy.wire import RequestHead
from tests.docs.pages import DOCS, table

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


def test_the_keys_of_the_access_log_are_those_of_the_page() -> None:
    written = [row[0].strip("`") for row in table(PAGE, "Access log")]
    meters = Meters(Settings(), 0.0)
    meters.account(Answered(), None, "", RequestHead(), 0.0)
    assert written == list(json.loads(meters.take_lines()))
