"""The sandbox's keys and certificates: one authority, the servers' and the clients' identities.

Owns making them (with `cryptography`) and writing kubeconfig files. They live as long as the
sandbox's directory; nothing outside it trusts them.
"""

import base64
import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME: Final = dt.timedelta(days=365)
# A clock a little behind ours must not find a certificate from the future.
_SKEW: Final = dt.timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Identity:
    """A private key with its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def key_pem(self) -> bytes:
        """The private key, PKCS #8."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def certificate_pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def public_key_pem(self) -> bytes:
        """The public half of the key alone."""
        return self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def write(self, folder: Path, name: str) -> None:
        """Write `<name>.crt` and `<name>.key` (readable by the owner alone)."""
        (folder / f"{name}.crt").write_bytes(self.certificate_pem)
        key = folder / f"{name}.key"
        key.touch(mode=0o600)
        key.write_bytes(self.key_pem)


def new_authority(now: dt.datetime) -> Identity:
    """Make a certificate authority that may sign leaf certificates only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nimway-sandbox-ca")])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, key, now)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Identity(key, certificate)


def new_server(
    authority: Identity, common_name: str, alternatives: list[str], now: dt.datetime
) -> Identity:
    """Make a server's identity, valid for the host names and IP addresses in `alternatives`."""
    names = x509.SubjectAlternativeName([_general_name(text) for text in alternatives])
    return _new_leaf(authority, (common_name, None), now, names)


def new_client(
    authority: Identity, common_name: str, organization: str | None, now: dt.datetime
) -> Identity:
    """Make a client's identity: Kubernetes reads user from the name, group from organization."""
    return _new_leaf(authority, (common_name, organization), now, None)


def _new_leaf(
    authority: Identity,
    subject: tuple[str, str | None],
    now: dt.datetime,
    names: x509.SubjectAlternativeName | None,
) -> Identity:
    common_name, organization = subject
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    key = ec.generate_private_key(ec.SECP256R1())
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH if names is None else ExtendedKeyUsageOID.SERVER_AUTH
    issuer = authority.certificate
    key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = (
        _builder(x509.Name(attributes), key, now)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(key_id, critical=False)
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return Identity(key, builder.sign(authority.key, hashes.SHA256()))


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey, now: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def write_kubeconfig(path: Path, server: str, authority: Identity, client: Identity) -> None:
    """Write a kubeconfig with everything embedded, so that the one file is all a client needs."""
    cluster = {"server": server, "certificate-authority-data": _b64(authority.certificate_pem)}
    user = {
        "client-certificate-data": _b64(client.certificate_pem),
        "client-key-data": _b64(client.key_pem),
    }
    context = {"cluster": "sandbox", "user": "sandbox"}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "sandbox", "cluster": cluster}],
        "users": [{"name": "sandbox", "user": user}],
        "contexts": [{"name": "sandbox", "context": context}],
        "current-context": "sandbox",
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document))


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
