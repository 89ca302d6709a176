"""Volumes: what a pod's volumes contain (pure), and writing that as a kubelet does (atomically).

`references` says which objects are needed, `render` gives the files. Directories that are not made
of API objects (emptyDir, claims) are `directory_of`'s. emptyDir with medium Memory lives on a
tmpfs; no size limit is kept. A claim's directory is the same on every node: data survives a move
that a real single-node volume would not.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nimway.sandbox.node.environment import ConfigError, Objects, decoded, expand, not_found

Files = dict[str, tuple[bytes, int]]
"""Relative path -> (content, mode)."""

_MODE_DEFAULT = 0o644
_API_KINDS = ("configMap", "secret", "projected", "downwardAPI")


@dataclass(frozen=True, slots=True)
class Downward:
    """How to resolve the downward API for one pod."""

    field: Callable[[str], str]
    resource: Callable[[dict[str, Any]], str]


def is_rendered(volume: dict[str, Any]) -> bool:
    """Tell whether the volume is made of API objects."""
    return any(kind in volume for kind in _API_KINDS)


def sources(volume: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the volume's parts in the form of a projected volume's sources."""
    if "projected" in volume:
        return list(volume["projected"].get("sources") or [])
    if "configMap" in volume:
        return [{"configMap": volume["configMap"]}]
    if "secret" in volume:
        secret = volume["secret"]
        return [{"secret": {**secret, "name": secret["secretName"]}}]
    return [{"downwardAPI": volume["downwardAPI"]}]


def references(volume: dict[str, Any]) -> set[tuple[str, str]]:
    """Return the Secrets and ConfigMaps that the volume shows."""
    found = set()
    for source in sources(volume):
        for key, kind in (("configMap", "ConfigMap"), ("secret", "Secret")):
            if key in source:
                found.add((kind, source[key]["name"]))
    return found


def token_requests(volume: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the volume's `serviceAccountToken` sources."""
    found = [source.get("serviceAccountToken") for source in sources(volume)]
    return [source for source in found if source]


def render(
    volume: dict[str, Any],
    namespace: str,
    objects: Objects,
    tokens: dict[str, str],
    downward: Downward,
) -> Files:
    """Return the files of a volume made of API objects; `tokens` are by path.

    Raises:
        ConfigError: an object or key is missing and not optional.
    """
    kind = next(kind for kind in _API_KINDS if kind in volume)
    mode = volume[kind].get("defaultMode") or _MODE_DEFAULT
    files: Files = {}
    for source in sources(volume):
        if "serviceAccountToken" in source:
            path = source["serviceAccountToken"]["path"]
            files[path] = (tokens[path].encode(), mode)
        elif "downwardAPI" in source:
            files |= _downward_files(source["downwardAPI"], downward, mode)
        elif "configMap" in source:
            files |= _object_files("ConfigMap", source["configMap"], namespace, objects, mode)
        elif "secret" in source:
            files |= _object_files("Secret", source["secret"], namespace, objects, mode)
    return files


def _downward_files(source: dict[str, Any], downward: Downward, mode: int) -> Files:
    files: Files = {}
    for item in source.get("items") or []:
        if "fieldRef" in item:
            text = downward.field(item["fieldRef"]["fieldPath"])
        else:
            text = downward.resource(item["resourceFieldRef"])
        files[item["path"]] = (text.encode(), item.get("mode") or mode)
    return files


def _object_files(
    kind: str, source: dict[str, Any], namespace: str, objects: Objects, mode: int
) -> Files:
    item = objects.get((kind, source["name"]))
    if item is None:
        if source.get("optional"):
            return {}
        raise ConfigError(not_found(kind, namespace, source["name"]))
    content = decoded(kind, item)
    if not source.get("items"):
        return {key: (data, mode) for key, data in content.items()}
    files: Files = {}
    for wanted in source["items"]:
        if wanted["key"] in content:
            files[wanted["path"]] = (content[wanted["key"]], wanted.get("mode") or mode)
        elif not source.get("optional"):
            raise ConfigError(f"references non-existent {kind.lower()} key: {wanted['key']}")
    return files


def write(folder: Path, files: Files) -> None:
    """Replace the volume's content at once: `..data` is a symlink that moves to a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    current = folder / "..data"
    if current.exists() and _content(current) == files:
        return
    fresh = Path(tempfile.mkdtemp(prefix="..", dir=folder))
    fresh.chmod(0o755)
    for path, (data, mode) in files.items():
        target = fresh / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(mode)
    previous = current.readlink() if current.is_symlink() else None
    moving = folder / "..data_tmp"
    moving.symlink_to(fresh.name)
    moving.replace(current)
    shown = {Path(path).parts[0] for path in files}
    for name in shown:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data") / name)
    for entry in folder.iterdir():
        if not entry.name.startswith("..") and entry.name not in shown:
            entry.unlink()
    if previous is not None:
        shutil.rmtree(folder / previous, ignore_errors=True)


def _content(folder: Path) -> Files:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mode & 0o777)
        for path in folder.rglob("*")
        if path.is_file()
    }


def mounts(
    container: dict[str, Any], folders: dict[str, Path], environment: dict[str, str]
) -> list[dict[str, Any]]:
    """Return the container's mounts, outer targets first: source, target, read_only.

    A `subPath` that does not exist yet is made as a directory, as a kubelet does.
    """
    found = []
    for mount in container.get("volumeMounts") or []:
        source = folders[mount["name"]]
        sub_path = mount.get("subPath") or expand(mount.get("subPathExpr") or "", environment)
        if sub_path:
            source = Path(os.path.normpath(source / sub_path))
            if not source.is_relative_to(folders[mount["name"]]):
                raise ConfigError(f"subPath {sub_path} leads out of the volume")
            if not source.exists():
                source.mkdir(parents=True)
        target = os.path.normpath(mount["mountPath"])
        read_only = bool(mount.get("readOnly"))
        found.append({"source": str(source), "target": target, "read_only": read_only})
    return sorted(found, key=lambda mount: str(mount["target"]))
