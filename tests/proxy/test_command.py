"""`nimway proxy` on the command line: what keeps it from starting is one sentence."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ports import free_port


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    """An API server where nobody listens: it is asked only after the start."""
    named = {"name": "nowhere"}
    content = {
        "clusters": [named | {"cluster": {"server": f"http://127.0.0.1:{free_port()}"}}],
        "users": [named | {"user": {}}],
        "contexts": [named | {"context": {"cluster": "nowhere", "user": "nowhere"}}],
        "current-context": "nowhere",
    }
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("taken", ["port", "admin-port"])
def test_a_port_in_use_is_named(kubeconfig: Path, taken: str) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as other:
        ports = {"port": free_port(), "admin-port": free_port()}
        ports[taken] = other.getsockname()[1]
        assert _fail_to_start(kubeconfig, ports) == _in_use(ports[taken])


def test_the_same_port_twice_is_refused(kubeconfig: Path) -> None:
    port = free_port()
    assert _fail_to_start(kubeconfig, {"port": port, "admin-port": port}) == _in_use(port)


def test_an_address_of_another_machine_is_named(kubeconfig: Path) -> None:
    ports = {"port": free_port(), "admin-port": free_port()}
    said = _fail_to_start(kubeconfig, ports, host="192.0.2.1")
    expected = f"cannot listen on 192.0.2.1:{ports['admin-port']}: Cannot assign requested address"
    assert said == f"Error: the proxy cannot start: {expected}"


def test_a_kubeconfig_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text("nothing")
    said = _fail_to_start(file, {"port": free_port()})
    assert said.startswith("Error: the proxy cannot start: no Kubernetes configuration: ")
    assert "\n" not in said


def _in_use(port: int) -> str:
    return (
        f"Error: the proxy cannot start: cannot listen on 127.0.0.1:{port}: Address already in use"
    )


def _fail_to_start(kubeconfig: Path, ports: dict[str, int], host: str = "127.0.0.1") -> str:
    """Return what a proxy that ends with code 2 wrote."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "nimway", "proxy", "--kubeconfig", str(kubeconfig)),
            *("--host", host),
            *(part for name, port in ports.items() for part in (f"--{name}", str(port))),
        ],
        env=os.environ | {"POD_NAMESPACE": "a", "NIMWAY_ROUTES_CONFIGMAP": "a"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    return done.stderr.strip()
