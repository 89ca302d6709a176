"""Volumes made of API objects, and their mounts."""

import base64
from pathlib import Path
from typing import Any

import pytest

from nimway.sandbox.node import volumes
from nimway.sandbox.node.environment import ConfigError

DOWNWARD = volumes.Downward(field=lambda path: f"<{path}>", resource=lambda each: each["resource"])
OBJECTS = {
    ("ConfigMap", "c"): {"data": {"a": "1", "b": "2"}, "binaryData": {"raw": "AAE="}},
    ("Secret", "s"): {"data": {"k": base64.b64encode(b"v").decode()}},
}


def _render(volume: dict[str, Any]) -> volumes.Files:
    return volumes.render(volume, "ns", OBJECTS, {"token": "t"}, DOWNWARD)


def test_a_config_map_shows_every_key_and_a_secret_with_its_mode() -> None:
    assert _render({"configMap": {"name": "c"}}) == {
        "a": (b"1", 0o644),
        "b": (b"2", 0o644),
        "raw": (b"\0\1", 0o644),
    }
    secret = {"secret": {"secretName": "s", "defaultMode": 0o400}}
    assert _render(secret) == {"k": (b"v", 0o400)}


def test_items_choose_keys_paths_and_modes() -> None:
    items = [{"key": "a", "path": "deep/x", "mode": 0o600}]
    assert _render({"configMap": {"name": "c", "items": items}}) == {"deep/x": (b"1", 0o600)}
    with pytest.raises(ConfigError, match="references non-existent configmap key: z"):
        _render({"configMap": {"name": "c", "items": [{"key": "z", "path": "z"}]}})


def test_a_projected_volume_joins_token_config_map_and_downward_api() -> None:
    sources = [
        {"serviceAccountToken": {"path": "token"}},
        {"configMap": {"name": "c", "items": [{"key": "a", "path": "ca.crt"}]}},
        {
            "downwardAPI": {
                "items": [
                    {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}},
                    {"path": "cpu", "resourceFieldRef": {"resource": "limits.cpu"}},
                ]
            }
        },
    ]
    files = _render({"projected": {"sources": sources, "defaultMode": 0o444}})
    assert {path: data for path, (data, _) in files.items()} == {
        "token": b"t",
        "ca.crt": b"1",
        "namespace": b"<metadata.namespace>",
        "cpu": b"limits.cpu",
    }
    assert {mode for _, mode in files.values()} == {0o444}


def test_a_missing_object_is_an_error_unless_it_is_optional() -> None:
    with pytest.raises(ConfigError, match='secret "gone" not found'):
        _render({"secret": {"secretName": "gone"}})
    assert _render({"secret": {"secretName": "gone", "optional": True}}) == {}


def test_references_name_what_has_to_be_fetched() -> None:
    volume = {"projected": {"sources": [{"secret": {"name": "s"}}, {"configMap": {"name": "c"}}]}}
    assert volumes.references(volume) == {("Secret", "s"), ("ConfigMap", "c")}


def test_an_update_replaces_all_files_at_once_and_removes_what_is_gone(tmp_path: Path) -> None:
    volumes.write(tmp_path, {"a": (b"1", 0o644), "deep/x": (b"2", 0o600)})
    first = (tmp_path / "..data").readlink()
    assert (tmp_path / "a").read_bytes() == b"1"
    assert (tmp_path / "deep" / "x").stat().st_mode & 0o777 == 0o600
    volumes.write(tmp_path, {"a": (b"1", 0o644), "deep/x": (b"2", 0o600)})
    assert (tmp_path / "..data").readlink() == first
    volumes.write(tmp_path, {"a": (b"3", 0o644)})
    assert (tmp_path / "a").read_bytes() == b"3"
    visible = [path.name for path in tmp_path.iterdir() if not path.name.startswith("..")]
    assert visible == ["a"]
    assert not (tmp_path / first).exists()


def test_mounts_come_outer_first_and_stay_inside_their_volume(tmp_path: Path) -> None:
    folders = {"v": tmp_path}
    container = {
        "volumeMounts": [
            {"name": "v", "mountPath": "/data/inner", "subPathExpr": "$(POD)/x", "readOnly": True},
            {"name": "v", "mountPath": "/data/"},
        ]
    }
    found = volumes.mounts(container, folders, {"POD": "p"})
    assert found == [
        {"source": str(tmp_path), "target": "/data", "read_only": False},
        {"source": str(tmp_path / "p/x"), "target": "/data/inner", "read_only": True},
    ]
    assert (tmp_path / "p" / "x").is_dir()
    outside = {"volumeMounts": [{"name": "v", "mountPath": "/d", "subPath": "../../etc"}]}
    with pytest.raises(ConfigError, match="leads out of the volume"):
        volumes.mounts(outside, folders, {})
