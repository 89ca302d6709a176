"""The sandbox's certificates, read back and used."""

import datetime as dt
import ipaddress
import socket
import ssl
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from nimway.sandbox import certificates, controlplane
from nimway.sandbox.config import SandboxConfig

NOW = dt.datetime.now(dt.UTC)  # noqa: TID251 - TLS libraries compare with the wall clock


@pytest.fixture
def config(tmp_path: Path) -> SandboxConfig:
    made = SandboxConfig(name="n", directory=tmp_path, port=1234, binaries=tmp_path / "bin")
    controlplane.prepare(made, NOW)
    return made


def test_the_api_servers_certificate_is_valid_from_inside_and_from_the_host(
    config: SandboxConfig,
) -> None:
    certificate = x509.load_pem_x509_certificate((config.pki / "apiserver.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = names.get_values_for_type(x509.IPAddress)
    expected = ("127.0.0.1", "10.244.0.1", "10.96.0.1")
    assert set(addresses) == {ipaddress.ip_address(each) for each in expected}
    assert "kubernetes.default.svc" in names.get_values_for_type(x509.DNSName)


def test_private_keys_and_kubeconfigs_are_the_owners_alone(config: SandboxConfig) -> None:
    secret = [*config.pki.glob("*.key"), *config.pki.glob("*kubeconfig*"), config.kubeconfig]
    assert len(secret) >= 8
    assert {path.stat().st_mode & 0o777 for path in secret} == {0o600}


def test_the_administrators_kubeconfig_points_to_the_hosts_port(config: SandboxConfig) -> None:
    document = yaml.safe_load(config.kubeconfig.read_text())
    assert document["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:1234"


def test_kubernetes_reads_user_and_group_from_a_clients_subject() -> None:
    authority = certificates.new_authority(NOW)
    client = certificates.new_client(authority, "me", "system:masters", NOW).certificate
    [user] = client.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    [group] = client.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    assert (user.value, group.value) == ("me", "system:masters")


def test_a_strict_client_accepts_the_chain(config: SandboxConfig) -> None:
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(config.pki / "apiserver.crt", config.pki / "apiserver.key")
    asking = ssl.create_default_context(cafile=str(config.pki / "ca.crt"))
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asking.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    server = serving.wrap_bio(outgoing, incoming, server_side=True)
    done = False
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
                done = side is client or done
            except ssl.SSLWantReadError:
                continue
    assert done
    assert client.getpeercert() is not None


def test_command_lines_name_every_file_inside_the_sandboxs_folder(config: SandboxConfig) -> None:
    for command in (controlplane.api_server(config), controlplane.controller_manager(config)):
        files = [word.partition("=")[2] for word in command if "-file=" in word]
        assert files
        assert all(Path(name).is_file() for name in files), command
    for command in (controlplane.controller_manager(config), controlplane.scheduler(config)):
        assert {"--kube-api-qps=500", "--kube-api-burst=1000"} <= set(command)


def test_the_config_survives_its_file(config: SandboxConfig) -> None:
    assert SandboxConfig.load(config.save()) == config


def test_a_taken_port_is_an_error_that_names_it() -> None:
    from nimway.sandbox import launcher  # noqa: PLC0415 - the one test of it here
    from nimway.sandbox.errors import SandboxError  # noqa: PLC0415 - as above

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SandboxError, match=rf"port {port} of 127.0.0.1 is in use.*PORT="):
            launcher.listen_on_loopback(port)
