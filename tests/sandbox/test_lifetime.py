"""Sandboxes side by side, and what is left of one that has ended, however it ended."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from nimway.sandbox import binaries, launcher
from nimway.sandbox.errors import SandboxError
from tests.support.cluster import eventually

pytestmark = pytest.mark.cluster

NIMWAY = str(Path(sysconfig.get_path("scripts")) / "nimway")


@pytest.fixture(autouse=True)
def _not_with_a_foreign_cluster() -> None:
    if "NIMWAY_TEST_KUBECONFIG" in os.environ:
        pytest.skip("tests sandboxes, and a foreign cluster is asked for")


@pytest.fixture
def sandbox() -> Iterator[launcher.Sandbox]:
    started = launcher.launch(launcher.Options(name=launcher.new_name("life")))
    yield started
    started.stop()


def _processes_of(name: str) -> list[str]:
    """Return the command lines of processes that mention the sandbox's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"/{name}/" in command:
            found.append(command)
    return found


def _mounts_of(name: str) -> list[str]:
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if name in line]


def test_two_sandboxes_run_side_by_side_and_know_nothing_of_each_other(
    sandbox: launcher.Sandbox,
) -> None:
    other = launcher.launch(launcher.Options(name=launcher.new_name("life"), gpu_nodes=1))
    try:
        sandbox.kubectl("create", "namespace", "only-here")
        assert "only-here" not in other.kubectl("get", "namespaces", "-o", "name")
        assert sandbox.port != other.port
        assert {sandbox.name, other.name} <= set(launcher.running())
    finally:
        other.stop()
    assert sandbox.is_running()
    assert not other.directory.exists()
    assert _processes_of(other.name) == []


def test_a_name_that_is_taken_and_a_port_that_is_taken_are_one_sentence(
    sandbox: launcher.Sandbox,
) -> None:
    with pytest.raises(SandboxError, match=rf"sandbox '{sandbox.name}' is already running: .*down"):
        launcher.launch(launcher.Options(name=sandbox.name))
    with pytest.raises(SandboxError, match=rf"port {sandbox.port} of 127.0.0.1 .*PORT=\d+"):
        launcher.launch(launcher.Options(name=launcher.new_name("life"), port=sandbox.port))
    assert "default" in sandbox.kubectl("get", "namespaces", "-o", "name")


def test_kill_9_of_the_launcher_leaves_no_process_and_no_mount() -> None:
    name = launcher.new_name("life")
    with subprocess.Popen(
        [NIMWAY, "sandbox", "up", "--name", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"export KUBECONFIG=")
        assert len(_processes_of(name)) >= 5
        process.send_signal(signal.SIGKILL)
    eventually(lambda: not _processes_of(name), "no process is left", timeout_s=10)
    assert _mounts_of(name) == []
    eventually(lambda: name not in launcher.running(), "its name is free", timeout_s=10)


def test_kill_9_of_the_keeper_does_not_hinder_the_next_start(sandbox: launcher.Sandbox) -> None:
    keeper = int(sandbox.directory.with_suffix(".lock").read_text())
    os.kill(keeper, signal.SIGKILL)
    again = launcher.launch(launcher.Options(name=sandbox.name, port=sandbox.port))
    try:
        assert not sandbox.is_running()
        assert "default" in again.kubectl("get", "namespaces", "-o", "name")
    finally:
        again.stop()
    assert _processes_of(sandbox.name) == []


def test_a_detached_sandbox_outlives_its_launcher_until_down() -> None:
    name = launcher.new_name("life")
    run = [NIMWAY, "sandbox"]
    subprocess.run([*run, "up", "--detach", "--name", name], check=True, capture_output=True)
    try:
        status = subprocess.run([*run, "status"], check=True, capture_output=True, text=True)
        assert f"{name}\thttps://127.0.0.1:" in status.stdout
        command = [*run, "kubectl", "--name", name, "get", "nodes", "-o", "name"]
        nodes = subprocess.run(command, check=True, capture_output=True, text=True)
        assert nodes.stdout.split() == ["node/cpu-1", "node/gpu-1", "node/gpu-2"]
    finally:
        subprocess.run([*run, "down", "--name", name], check=True, capture_output=True)
    assert _processes_of(name) == []
    missing = subprocess.run(
        [*run, "down", "--name", name], capture_output=True, text=True, check=False
    )
    assert missing.returncode == 2
    assert missing.stderr.startswith(f"Error: no sandbox '{name}' is running")


# Makes Python and the programs readable for an ordinary user in a mount namespace of its own: on
# a machine whose only Python lies in root's home, nobody else could start anything.
_AS_NOBODY = """
set -e
mount --bind {home} {outside}
mount -t tmpfs -o mode=755 none {home}
for path in {paths}; do
    mkdir -p $path
    mount --bind {outside}/${{path#{home}/}} $path
done
exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all "$@"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_an_ordinary_user_can_run_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    for tool in ("unshare", "setpriv"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    folder = tmp_path_factory.mktemp("nobody")
    outside = folder / "outside"
    outside.mkdir()
    folder.chmod(0o777)
    programs = binaries.control_plane(print)
    home = str(Path.home())
    hidden = [str(path) for path in (Path(sys.base_prefix), Path(sys.prefix), programs)]
    paths = " ".join(path for path in hidden if path.startswith(f"{home}/"))
    script = _AS_NOBODY.format(home=home, outside=outside, paths=paths)
    name = launcher.new_name("life")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "XDG_STATE_HOME": f"/tmp/nimway-{name}",  # noqa: S108 - short, and writable for nobody
        "KUBEBUILDER_ASSETS": str(programs),
    }
    check = f"""
set -e
{NIMWAY} sandbox up --detach --name {name}
trap '{NIMWAY} sandbox down --name {name}' EXIT
k() {{ {NIMWAY} sandbox kubectl --name {name} "$@"; }}
k run web --image=x/nimway --command -- python3 -m http.server 8000
k wait pod/web --for=condition=Ready --timeout=20s
id -un
"""
    command = ["unshare", "-m", "--propagation", "private", "bash", "-c", script, "bash"]
    done = subprocess.run(
        [*command, "bash", "-c", check],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    shutil.rmtree(environment["XDG_STATE_HOME"], ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pod/web condition met" in done.stdout
    assert "\nnobody\n" in done.stdout
