"""A container's environment and command line."""

import base64
from typing import Any

import pytest

from nimway.sandbox.node import environment, fields, images
from nimway.sandbox.node.environment import ConfigError

POD = {
    "metadata": {
        "name": "p",
        "namespace": "ns",
        "uid": "u",
        "labels": {"b": "2", "a": 'q"'},
        "annotations": {"x/y": "z"},
    },
    "spec": {
        "nodeName": "gpu-1",
        "serviceAccountName": "sa",
        "containers": [
            {"name": "main", "resources": {"limits": {"cpu": "1500m", "memory": "2Gi"}}},
        ],
    },
}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("a$(A)b$(B)", "a1b2"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(MISSING)", "$(MISSING)"),
        ("$A ${A} $(A", "$A ${A} $(A"),
        ("$$", "$"),
        ("", ""),
    ],
)
def test_references_expand_as_kubernetes_documents_them(text: str, expanded: str) -> None:
    assert environment.expand(text, {"A": "1", "B": "2"}) == expanded


def _build(container: dict[str, Any], objects: environment.Objects) -> dict[str, str]:
    return environment.build(
        container,
        "ns",
        objects,
        base={"HOME": "/tmp"},  # noqa: S108 - only a string here
        field=lambda path: fields.field(POD, path, address="10.0.0.2", host_address="10.0.0.1"),
        resource=lambda reference: fields.resource(POD, reference, "main", {"nvidia.com/gpu": "8"}),
    )


SECRET = {"data": {"k": base64.b64encode(b"s3cret").decode(), "not-a-name!": "eA=="}}
CONFIG = {"data": {"a": "1", "b": "2"}}
OBJECTS: environment.Objects = {("Secret", "s"): SECRET, ("ConfigMap", "c"): CONFIG}


def test_env_wins_over_env_from_and_sees_what_came_before() -> None:
    container = {
        "envFrom": [{"configMapRef": {"name": "c"}}, {"secretRef": {"name": "s"}, "prefix": "S_"}],
        "env": [
            {"name": "b", "value": "own"},
            {"name": "later", "value": "$(a)-$(b)-$(S_k)-$(next)"},
            {"name": "next", "value": "x"},
        ],
    }
    assert _build(container, OBJECTS) == {
        "HOME": "/tmp",  # noqa: S108 - only a string here
        "a": "1",
        "b": "own",
        "S_k": "s3cret",
        "later": "1-own-s3cret-$(next)",
        "next": "x",
    }


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"secretKeyRef": {"name": "gone", "key": "k"}}, 'secret "gone" not found'),
        ({"configMapKeyRef": {"name": "gone", "key": "k"}}, 'configmap "gone" not found'),
        ({"secretKeyRef": {"name": "s", "key": "x"}}, "couldn't find key x in Secret ns/s"),
    ],
)
def test_what_is_missing_is_named_as_a_kubelet_names_it(
    source: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        _build({"env": [{"name": "V", "valueFrom": source}]}, OBJECTS)
    assert str(caught.value) == message
    [reference] = source.values()
    optional = {next(iter(source)): reference | {"optional": True}}
    assert "V" not in _build({"env": [{"name": "V", "valueFrom": optional}]}, OBJECTS)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "p"),
        ("metadata.namespace", "ns"),
        ("metadata.uid", "u"),
        ("metadata.labels['a']", 'q"'),
        ("metadata.annotations['x/y']", "z"),
        ("metadata.labels", 'a="q\\""\nb="2"'),
        ("spec.nodeName", "gpu-1"),
        ("spec.serviceAccountName", "sa"),
        ("status.podIP", "10.0.0.2"),
        ("status.hostIP", "10.0.0.1"),
    ],
)
def test_fields_of_the_downward_api(path: str, value: str) -> None:
    assert fields.field(POD, path, address="10.0.0.2", host_address="10.0.0.1") == value


def test_an_unknown_field_is_an_error_that_names_it() -> None:
    with pytest.raises(fields.FieldError, match=r"unsupported fieldPath: spec\.oops"):
        fields.field(POD, "spec.oops", address="", host_address="")


@pytest.mark.parametrize(
    ("reference", "value"),
    [
        ({"resource": "limits.cpu"}, "2"),
        ({"resource": "limits.cpu", "divisor": "1m"}, "1500"),
        ({"resource": "limits.memory", "divisor": "1Mi"}, "2048"),
        ({"resource": "limits.nvidia.com/gpu"}, "8"),
        ({"resource": "requests.cpu"}, "0"),
    ],
)
def test_resources_are_divided_and_rounded_up(reference: dict[str, str], value: str) -> None:
    assert fields.resource(POD, reference, "main", {"nvidia.com/gpu": "8"}) == value


NIMWAY = ["/venv/bin/nimway"]


@pytest.mark.parametrize(
    ("image", "program"),
    [
        ("ghcr.io/nimway/nimway:0.1.0", NIMWAY),
        ("nimway", NIMWAY),
        ("localhost:5000/x/nimway@sha256:abc", NIMWAY),
        ("nvcr.io/nim/meta/llama-3.1-8b-instruct:1.8.4", [*NIMWAY, "nim"]),
        ("nvcr.io/nim/nimway", [*NIMWAY, "nim"]),
    ],
)
def test_images_stand_for_programs(image: str, program: list[str]) -> None:
    assert images.entrypoint(image, NIMWAY) == program


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ("nginx", "nginx:latest"),
        ("docker.io/library/nginx:1", "docker.io/library/nginx:1"),
        ("ghcr.io/nimway/nimway-extra:1", "ghcr.io/nimway/nimway-extra:1"),
        ("localhost:5000/nginx", "localhost:5000/nginx:latest"),
    ],
)
def test_other_images_cannot_be_pulled(image: str, reference: str) -> None:
    with pytest.raises(images.UnknownImageError) as caught:
        images.entrypoint(image, NIMWAY)
    assert f'failed to pull and unpack image "{reference}"' in str(caught.value)


def test_a_command_replaces_the_entrypoint_and_arguments_follow() -> None:
    assert images.command_line([], ["operator"], NIMWAY) == [*NIMWAY, "operator"]
    assert images.command_line(["sh"], ["-c", "true"], NIMWAY) == ["sh", "-c", "true"]
