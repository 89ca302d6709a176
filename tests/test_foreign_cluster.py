"""How the tests reach the proxies of a cluster that is no sandbox."""

import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nimway.control.desired.proxy import build_service
from tests.control import samples
from tests.support.cluster import eventually
from tests.support.port_forward import forwarded

ROOT = Path(__file__).parents[1]
KIND = ROOT / "tests" / "data" / "kind"

KUBECTL = f"""#!{sys.executable}
import os, socket, sys

*_, verb, service, ports = sys.argv
assert (verb, service) == ("port-forward", "service/nimway-default"), sys.argv
port, _, target = ports.partition(":")
with socket.create_server(("127.0.0.1", int(port))) as server:
    print(f"Forwarding from 127.0.0.1:{{port}} -> {{target}}\\n" * 10_000, flush=True)
    asked = False
    while not asked:
        with server.accept()[0] as client:
            if asked := client.recv(1) != b"":
                client.sendall(str(os.getpid()).encode())
"""
"""Prints more than a pipe holds, answers one client and ends, as with its pod."""


def _ask(port: int) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), 1.0) as client:
            client.sendall(b"x")
            return client.recv(64).decode()
    except OSError:
        return ""


def test_a_port_forward_that_ends_is_started_again_on_its_port(tmp_path: Path) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(KUBECTL)
    kubectl.chmod(0o755)
    with forwarded(kubectl, os.environ, "nimway-system", "nimway-default", 8000) as port:
        first = eventually(lambda: _ask(port), "an answer")
        second = eventually(lambda: _ask(port), "an answer of the next")
    assert first != second
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1.0)


def test_the_node_port_of_make_kind_leads_to_the_proxies() -> None:
    cluster = yaml.safe_load((KIND / "cluster.yaml").read_text(encoding="utf-8"))
    _, address = yaml.safe_load_all((KIND / "address.yaml").read_text(encoding="utf-8"))
    ours: Any = build_service(samples.resolved_proxy())
    (wanted,) = ours["spec"]["ports"]
    (port,) = address["spec"]["ports"]
    assert address["metadata"]["namespace"] == ours["metadata"]["namespace"]
    assert address["metadata"]["name"] != ours["metadata"]["name"]
    assert address["spec"]["selector"] == ours["spec"]["selector"]
    assert port["targetPort"] == wanted["targetPort"]
    (mapping,) = cluster["nodes"][0]["extraPortMappings"]
    assert mapping["containerPort"] == port["nodePort"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"NIMWAY_TEST_BASE_URL=http://127.0.0.1:{mapping['hostPort']} " in makefile
