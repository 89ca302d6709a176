"""The file system that pods see: the host's, with a root of our own so that mounts leave no trace.

Owns: the sandbox's root (a tmpfs that shows each top-level entry of the host) and making a place
for a mount without creating anything on the host's disks. It must not decide what is mounted where.
"""

import os
import stat
from pathlib import Path
from typing import Final

from nimway.sandbox.namespaces import MS_NODEV, MS_NOSUID, bind, mount, pivot_root

_STAGING: Final = "/run"
"""Exists on every Linux, and the sandbox's root gets an empty one of its own anyway."""


def build_root() -> None:
    """Give this mount namespace a writable `/` that shows the host's top-level entries."""
    mount("sandbox-root", _STAGING, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for entry in os.scandir("/"):
        if entry.name not in ("proc", "run"):
            _show(entry, Path(_STAGING) / entry.name)
    for name in ("proc", "run"):
        (Path(_STAGING) / name).mkdir()
    mount_proc(f"{_STAGING}/proc")
    mount("sandbox-run", f"{_STAGING}/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    pivot_root(_STAGING)


def mount_proc(target: str) -> None:
    """Mount the PID namespace's own /proc, or where that is forbidden the one that is there."""
    try:
        mount("proc", target, "proc", MS_NOSUID | MS_NODEV)
    except PermissionError:
        # Containers mask parts of /proc and the kernel then refuses a fresh, unmasked one.
        if target != "/proc":
            bind("/proc", target)


def mount_tmpfs(target: Path, size: str | None = None) -> None:
    """Mount an empty tmpfs, world-writable as an emptyDir is."""
    data = "mode=777" + (f",size={size}" if size else "")
    mount("tmpfs", str(target), "tmpfs", MS_NOSUID | MS_NODEV, data)


def place_for_mount(target: Path, *, directory: bool) -> None:
    """Make sure that `target` exists, touching only file systems that are the sandbox's own.

    The deepest existing ancestor on the host's disks is covered by a tmpfs that shows the same
    entries; what is missing is created there.
    """
    target = Path(os.path.normpath(target))
    if target.exists():
        return
    ancestor = target.parent
    while not ancestor.exists():
        ancestor = ancestor.parent
    ancestor = ancestor.resolve()
    remaining = target.relative_to(_unresolved(target, ancestor))
    if not _is_ours(ancestor):
        _cover(ancestor)
    place = ancestor / remaining
    place.parent.mkdir(parents=True, exist_ok=True)
    if directory:
        place.mkdir(exist_ok=True)
    else:
        place.touch()


def _unresolved(target: Path, resolved: Path) -> Path:
    """Return the ancestor of `target` that resolves to `resolved` (/var/run is often a symlink)."""
    for ancestor in target.parents:
        if ancestor.exists() and ancestor.resolve() == resolved:
            return ancestor
    return resolved


def _is_ours(directory: Path) -> bool:
    """Tell whether the directory lies on a tmpfs that the sandbox mounted."""
    device = directory.stat().st_dev
    ours = {Path("/").stat().st_dev, Path("/run").stat().st_dev}
    return device in ours or (directory / _MARK).exists()


_MARK: Final = ".nimway-sandbox"


def _cover(directory: Path) -> None:
    """Cover a directory of the host with a tmpfs that shows the same entries."""
    entries = list(os.scandir(directory))
    original = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        mount("sandbox", str(directory), "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
        for entry in entries:
            _show(entry, directory / entry.name, f"/proc/self/fd/{original}/{entry.name}")
    finally:
        os.close(original)
    (directory / _MARK).touch()


def _show(entry: "os.DirEntry[str]", target: Path, source: str | None = None) -> None:
    """Show one entry of a host directory at `target`; what cannot be shown is left out."""
    try:
        if entry.is_symlink():
            target.symlink_to(Path(source or entry.path).readlink())
            return
        if stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
            target.mkdir()
        else:
            target.touch()
        bind(source or entry.path, target)
    except OSError:
        return
