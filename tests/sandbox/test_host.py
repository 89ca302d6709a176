"""What a sandbox says on a machine that cannot run one, and where it looks for its parts."""

import errno
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from nimway.sandbox import binaries, launcher, namespaces, toolchain
from nimway.sandbox.errors import HostError, SandboxError

NIMWAY = str(Path(sysconfig.get_path("scripts")) / "nimway")


def test_macos_is_told_about_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(HostError, match=r"needs Linux .*make kind"):
        launcher.check_host()


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "max_user_namespaces"), (errno.EPERM, "sudo"), (errno.EACCES, "sudo")],
)
def test_a_kernel_that_refuses_is_explained_with_a_way_out(number: int, advice: str) -> None:
    text = namespaces.why_not_allowed(OSError(number, os.strerror(number)))
    assert os.strerror(number) in text
    assert advice in text
    assert "make kind" in text
    assert "\n" not in text


@pytest.mark.cluster
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take rights away like this")
def test_without_user_namespaces_it_ends_with_one_sentence_and_2() -> None:
    for tool in ("unshare", "setpriv"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    script = (
        "echo 0 > /proc/sys/user/max_user_namespaces && "
        f"exec setpriv --bounding-set=-all --inh-caps=-all {NIMWAY} sandbox up --name no-rights"
    )
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("Error: the sandbox cannot start")
    assert "make kind" in line


def test_kubebuilder_assets_come_first_and_must_be_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    for name in ("etcd", "kube-apiserver", "kube-scheduler"):
        (tmp_path / name).touch()
    with pytest.raises(SandboxError, match=r"lacks kube-controller-manager: unset it"):
        binaries.control_plane(print)
    (tmp_path / "kube-controller-manager").touch()
    assert binaries.control_plane(print) == tmp_path


def test_the_cache_is_keyed_by_version_and_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = toolchain.cache_folder() / binaries._cache_name()
    assert folder.name.startswith(f"controlplane-{binaries.kubernetes_version()}-")
    folder.mkdir()
    for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"):
        (folder / name).touch()
    assert binaries.control_plane(print) == folder


@pytest.mark.parametrize(("version", "taken"), [("v3.18.0", True), ("v4.1.0", True), ("v2", False)])
def test_a_helm_on_path_is_taken_if_it_is_3_or_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, *, taken: bool
) -> None:
    helm = tmp_path / "bin" / "helm"
    helm.parent.mkdir()
    helm.write_text(f"#!/bin/sh\necho {version}\n")
    helm.chmod(0o755)
    cached = tmp_path / "nimway" / "helm" / "helm"
    cached.parent.mkdir(parents=True)
    cached.touch()
    monkeypatch.setenv("PATH", str(helm.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert toolchain.helm(print) == (helm if taken else cached)


@pytest.mark.parametrize("name", ["", "Upper", "-a", "a" * 41, "a/b", "a.b"])
def test_a_name_that_is_no_label_is_refused(name: str) -> None:
    with pytest.raises(SandboxError, match="sandbox name"):
        launcher.launch(launcher.Options(name=name))


def test_commands_on_a_sandbox_that_does_not_run_say_how_to_start_it() -> None:
    command = [NIMWAY, "sandbox", "kubectl", "--name", "nobody-there", "get", "pods"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "Error: no sandbox 'nobody-there' is running: start it with "
        "`nimway sandbox up --name nobody-there`\n"
    )
