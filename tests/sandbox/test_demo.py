"""The demo as a newcomer runs it: one command, no terminal needed."""

import os
import signal
import socket
import subprocess
import sysconfig
from pathlib import Path

import pytest

from nimway.sandbox import launcher
from nimway.sandbox.demo import SAMPLES, DemoError, chart, check_completion
from tests.support.cluster import eventually
from tests.support.ports import free_port

NIMWAY = str(Path(sysconfig.get_path("scripts")) / "nimway")


def test_chart_and_samples_are_found_beside_the_package() -> None:
    assert (chart() / "values.yaml").is_file()
    assert len(list(SAMPLES.glob("*.yaml"))) == 5


def test_a_port_in_use_is_named_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [NIMWAY, "sandbox", "demo", "--once", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: port {port} of 127.0.0.1 is in use")
    assert f"PORT={port + 1}" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("answer", ["", "bad gateway", "[]", '{"choices": [{"text": ""}]}'])
def test_an_answer_that_is_no_completion_is_a_step_that_failed(answer: str) -> None:
    with pytest.raises(DemoError, match="completion") as failed:
        check_completion(answer)
    assert failed.value.exit_code == 1


@pytest.fixture
def _own_cluster() -> None:
    if "NIMWAY_TEST_KUBECONFIG" in os.environ:
        pytest.skip("the demo starts a sandbox, and a foreign cluster is asked for")


@pytest.mark.cluster
@pytest.mark.usefixtures("_own_cluster")
def test_once_goes_from_nothing_to_answers_and_leaves_nothing() -> None:
    name = launcher.new_name("demo")
    command = [NIMWAY, "sandbox", "demo", "--once", "--name", name, "--port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"object":"text_completion"' in done.stdout.replace(" ", "")
    assert "data: [DONE]" in done.stdout
    assert "2/2" in done.stdout
    assert "ScaledToZero" in done.stdout
    assert "woken, started and answered in" in done.stdout
    assert name not in launcher.running()


@pytest.mark.cluster
@pytest.mark.usefixtures("_own_cluster")
def test_ctrl_c_ends_the_demo_and_frees_its_name(tmp_path: Path) -> None:
    name = launcher.new_name("demo")
    command = [NIMWAY, "sandbox", "demo", "--name", name, "--port", str(free_port())]
    output = tmp_path / "output"
    with output.open("w") as file, subprocess.Popen(command, stdout=file) as process:
        text = "It stays up until Ctrl-C"
        eventually(lambda: text in output.read_text() or process.poll(), text, timeout_s=100)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert name not in launcher.running()
    assert not (launcher.state_folder() / name).exists()


@pytest.mark.cluster
@pytest.mark.usefixtures("_own_cluster")
def test_a_step_that_fails_ends_with_1_and_says_which(tmp_path: Path) -> None:
    helm = tmp_path / "helm"
    helm.write_text(
        "#!/bin/sh\n[ $1 = version ] && echo v4.0.0 && exit\necho no luck >&2; exit 3\n"
    )
    helm.chmod(0o755)
    name = launcher.new_name("demo")
    done = subprocess.run(
        [NIMWAY, "sandbox", "demo", "--once", "--name", name, "--port", str(free_port())],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Error: helm failed with status 3: no luck" in done.stderr
    assert name not in launcher.running()


@pytest.mark.cluster
@pytest.mark.usefixtures("_own_cluster")
def test_a_control_plane_that_does_not_start_ends_with_1_and_says_why(tmp_path: Path) -> None:
    for program in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        (tmp_path / program).write_text("#!/bin/sh\necho no luck >&2; exit 3\n")
        (tmp_path / program).chmod(0o755)
    name = launcher.new_name("demo")
    done = subprocess.run(
        [NIMWAY, "sandbox", "demo", "--once", "--name", name, "--port", str(free_port())],
        env=os.environ | {"KUBEBUILDER_ASSETS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "ended with status 3: no luck" in done.stderr
    assert "Traceback" not in done.stderr
    assert name not in launcher.running()
