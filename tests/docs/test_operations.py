"""docs/operations.md names the chart's values, the operator's rights, and what containers get."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from nimway.control.desired.pod import build_template
from tests.control import samples
from tests.docs.pages import DOCS, ROOT, manifests, table

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


def test_crds_go_before_an_upgrade_by_the_same_command_everywhere() -> None:
    command = "kubectl apply --server-side --force-conflicts -f crds/"
    for page in (ROOT / "README.md", PAGE, CHART / "templates/NOTES.txt"):
        text = page.read_text(encoding="utf-8")
        assert text.count(command) == 1, page.name
        assert re.search(r"\bbefore an upgrade", text, re.IGNORECASE) or page == PAGE, page.name
    upgrade = PAGE.read_text(encoding="utf-8").partition("\n## Upgrade\n")[2]
    assert upgrade.index(command) < upgrade.index("helm upgrade nimway")


def test_every_install_command_names_an_image_that_its_reader_has() -> None:
    for page in (ROOT / "README.md", PAGE):
        text = page.read_text(encoding="utf-8").replace("\\\n", "")
        installs = re.findall(r"^helm (?:install|upgrade) nimway .*$", text, re.MULTILINE)
        assert installs, page.name
        assert all("--set image.repository=REGISTRY/nimway" in each for each in installs)
        assert "docker push REGISTRY/nimway:0.1.0" in text


CONTAINER = "The model's container"
MODEL: dict[str, Any] = {
    "authSecret": "ngc-api-key",
    "port": 9000,
    "profile": "a-profile",
    "sharedMemory": "16Gi",
    "storage": {"pvc": {"claimName": "weights"}},
}


def _container() -> dict[str, Any]:
    pod = build_template(samples.resolved(**MODEL))["spec"]
    found: dict[str, Any] = pod["containers"][0]
    return found


def test_the_containers_variables_are_those_of_the_page() -> None:
    declared = samples.model(**MODEL)["spec"]
    told = {row[0].strip("`"): row[1] for row in table(PAGE, CONTAINER)}
    assert set(told) == {each["name"] for each in _container()["env"]}
    for variable in _container()["env"]:
        text = told[variable["name"]]
        if "valueFrom" in variable:
            named = variable["valueFrom"]["secretKeyRef"]
            assert declared["authSecret"] == named["name"]
            assert text.startswith(f"the key `{named['key']}` of the Secret `spec.authSecret`")
            continue
        source = text.partition("`")[2].partition("`")[0]
        name = source.removeprefix("spec.")
        assert variable["value"] == (str(declared[name]) if name != source else source)


def test_the_containers_mounts_are_those_of_the_page() -> None:
    below = PAGE.read_text(encoding="utf-8").partition("| mounted at |")[2].partition("\n\n")[0]
    told = set(re.findall(r"^\| `(/\S+)` \|", below, re.MULTILINE))
    assert told == {each["mountPath"] for each in _container()["volumeMounts"]}


def test_the_example_with_adapters_finds_them_in_its_claim() -> None:
    examples = [each for _, each in manifests() if each["spec"].get("adapters")]
    assert examples
    store = next(each for each in _container()["volumeMounts"] if each["name"] == "model-store")
    for example in examples:
        env = {each["name"]: each["value"] for each in example["spec"]["env"]}
        assert env["NIM_PEFT_SOURCE"].startswith(f"{store['mountPath']}/")
        assert "claimName" in example["spec"]["storage"]["pvc"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip(" `") for part in text.split(","))
