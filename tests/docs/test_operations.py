"""docs/operations.md names every value of the chart, and every right of the operator."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.docs.pages import DOCS, ROOT, table

PAGE = DOCS / "operations.md"
CHART = ROOT / "charts/nimway"
IN_WORDS = ("operator.resources", "proxy.spec")
"""Values whose default is told in words."""


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and value and path not in IN_WORDS:
            yield from _leaves(value, f"{path}.")
        else:
            yield path, value


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def test_every_value_of_the_chart_stands_in_the_page_with_its_default() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    expected = {name: _shown(value) for name, value in _leaves(values) if name not in IN_WORDS}
    rows = {row[0].strip("`"): row[1].strip("`") for row in table(PAGE, "Chart values")}
    assert set(rows) == {*expected, *IN_WORDS}
    assert {name: rows[name] for name in expected} == expected


def test_defaults_told_in_words_have_the_charts_numbers() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    rows = {row[0].strip("`"): row[1] for row in table(PAGE, "Chart values")}
    operator, proxy = values["operator"]["resources"], values["proxy"]["spec"]
    for told, resources in ((IN_WORDS[0], operator), (IN_WORDS[1], proxy["resources"])):
        for group in resources.values():
            for amount in group.values():
                assert str(amount) in rows[told]
    assert f"{proxy['replicas']} replicas" in rows[IN_WORDS[1]]


def test_the_operators_rights_are_those_of_the_chart() -> None:
    template = (CHART / "templates/operator-rbac.yaml").read_text(encoding="utf-8")
    rules = re.findall(r"resources: \[(.*?)\]\n(?:.*\n)*?\s+verbs: \[(.*?)\]", template)
    granted = sorted((_words(resources), _words(verbs)) for resources, verbs in rules)
    rows = table(PAGE, "Security")
    assert sorted((_words(row[0]), _words(row[1])) for row in rows) == granted
    assert not any("secrets" in resources for resources, _ in granted)


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip(" `") for part in text.split(","))
