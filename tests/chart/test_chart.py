"""The chart without a cluster: it renders, says what it refuses, and gives away no rights."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from nimway.control.desired import names
from nimway.sandbox import toolchain
from tests.support.installed import CHART, NAMESPACE


@pytest.fixture(scope="session")
def helm() -> Path:
    return toolchain.helm(print)


def _helm(helm: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(helm), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _render(helm: Path, *arguments: str) -> list[Any]:
    done = _helm(helm, "template", "nimway", str(CHART), "-n", NAMESPACE, *arguments)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def _of(objects: list[Any], kind: str) -> list[Any]:
    return [each for each in objects if each["kind"] == kind]


def test_lint_finds_nothing(helm: Path) -> None:
    done = _helm(helm, "lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("operator.replica=2", "additional properties 'replica' not allowed"),
        ("operator.replicas=-1", "/operator/replicas"),
        ("operator.logLevel=loud", "/operator/logLevel"),
        ("image.digest=latest", "/image/digest"),
        ("image.repository=registry.example.com/nimway:0.1.0", "/image/repository"),
        ("image.repository=https://registry.example.com/nimway", "/image/repository"),
        ("image.tag=sha256:0", "/image/tag"),
        ("operator.tolerations[0].keys=gpu", "additional properties 'keys' not allowed"),
        ("proxy.name=Default", "/proxy/name"),
        ("proxy.name=1proxy", "/proxy/name"),
        ("operator.trustedProxyNamespaces={A_B}", "/operator/trustedProxyNamespaces/0"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(helm: Path, setting: str, message: str) -> None:
    done = _helm(helm, "template", "nimway", str(CHART), "--set", setting)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize("repository", ["nimway", "localhost:5000/nimway", "r.example.com/a/b"])
def test_a_registry_may_have_a_port_and_folders(helm: Path, repository: str) -> None:
    (deployment,) = _of(_render(helm, "--set", f"image.repository={repository}"), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"{repository}:0.1.0"


def test_a_name_that_the_schema_takes_is_the_services_too(helm: Path) -> None:
    name = "a" + "-b" * 19 + "c"
    (proxy,) = _of(_render(helm, "--set", f"proxy.name={name}"), "NIMProxy")
    assert len(name) == 40
    assert names.proxy_name(proxy["metadata"]["name"]) == f"nimway-{name}"


def test_every_value_is_described_by_the_schema() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = yaml.safe_load((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert set(values) <= set(schema["properties"])
    for name, section in values.items():
        if isinstance(section, dict) and name != "proxy":
            assert set(section) == set(schema["properties"][name]["properties"]), name


def test_no_rule_uses_a_wildcard_or_reaches_secrets(helm: Path) -> None:
    for role in [*_of(_render(helm), "ClusterRole"), *_of(_render(helm), "Role")]:
        for rule in role["rules"]:
            for words in rule.values():
                assert "*" not in words, role["metadata"]["name"]
            assert "secrets" not in rule["resources"]
            assert not {"escalate", "impersonate"} & set(rule["verbs"])


def test_bind_is_granted_for_the_two_proxy_roles_only(helm: Path) -> None:
    objects = _render(helm)
    rules = [rule for role in _of(objects, "ClusterRole") for rule in role["rules"]]
    (bind,) = [rule for rule in rules if "bind" in rule["verbs"]]
    names = {role["metadata"]["name"] for role in _of(objects, "ClusterRole")}
    assert bind["resourceNames"] == ["nimway-proxy-routes", "nimway-proxy-endpoints"]
    assert bind["verbs"] == ["bind"]
    assert set(bind["resourceNames"]) <= names


def test_the_operator_passes_pod_security_restricted(helm: Path) -> None:
    (deployment,) = _of(_render(helm), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_nothing_that_the_operator_writes_is_in_the_chart(helm: Path) -> None:
    kinds = {each["kind"] for each in _render(helm)}
    assert not {"ConfigMap", "Service", "Secret"} & kinds


def test_a_digest_wins_over_the_tag_and_reaches_operator_and_proxies(helm: Path) -> None:
    digest = "sha256:" + "0" * 64
    (deployment,) = _of(_render(helm, "--set", f"image.digest={digest}"), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"ghcr.io/nimway/nimway@{digest}"
    assert {"name": "NIMWAY_PROXY_IMAGE", "value": container["image"]} in container["env"]


def test_the_proxy_can_be_left_out(helm: Path) -> None:
    assert not _of(_render(helm, "--set", "proxy.create=false"), "NIMProxy")


def test_namespaces_chosen_by_labels_are_not_listed_as_well(helm: Path) -> None:
    (proxy,) = _of(_render(helm), "NIMProxy")
    assert proxy["spec"]["namespaces"] == ["*"]
    setting = "proxy.spec.namespaceSelector.matchLabels.team=a"
    (proxy,) = _of(_render(helm, "--set", setting), "NIMProxy")
    assert "namespaces" not in proxy["spec"]
    assert proxy["spec"]["namespaceSelector"] == {"matchLabels": {"team": "a"}}


def test_replicas_that_an_hpa_writes_are_left_out_by_null(helm: Path) -> None:
    (proxy,) = _of(_render(helm, "--set", "proxy.spec.replicas=null"), "NIMProxy")
    assert "replicas" not in proxy["spec"]
    assert proxy["spec"]["namespaces"] == ["*"]


def test_pull_secrets_reach_operator_and_proxy(helm: Path) -> None:
    objects = _render(helm, "--set", "imagePullSecrets[0].name=registry")
    (deployment,), (proxy,) = _of(objects, "Deployment"), _of(objects, "NIMProxy")
    assert deployment["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert proxy["spec"]["imagePullSecrets"] == [{"name": "registry"}]


def test_two_releases_share_the_names_alone_by_which_helm_refuses_the_second(helm: Path) -> None:
    def objects_of(release: str) -> set[tuple[str, str]]:
        done = _helm(helm, "template", release, str(CHART), "-n", release)
        objects = [each for each in yaml.safe_load_all(done.stdout) if each]
        return {
            (each["kind"], each["metadata"]["name"])
            for each in objects
            if each["kind"] != "NIMProxy"
        }

    guards = {("ClusterRole", "nimway-edit"), ("ClusterRole", "nimway-view")}
    assert objects_of("team-a") & objects_of("team-b") == guards
    assert guards <= objects_of("nimway")
