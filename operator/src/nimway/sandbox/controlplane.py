"""The control plane's four programs: their flags, certificates and order of start.

Owns the command lines and nothing else; `supervisor` starts and watches the processes.
"""

import datetime as dt
from pathlib import Path
from typing import Final

from nimway.sandbox import certificates
from nimway.sandbox.config import (
    API_PORT,
    BRIDGE_ADDRESS,
    POD_NETWORK_BITS,
    SERVICE_NETWORK,
    SandboxConfig,
)

_ETCD: Final = "http://127.0.0.1:2379"
_ETCD_PEER: Final = "http://127.0.0.1:2380"
# The defaults (20 to 50 requests a second) are what a burst of objects would wait for.
_CLIENT_RATE: Final = ["--kube-api-qps=500", "--kube-api-burst=1000"]
# The default is 15 s, for clusters with thousands of autoscalers.
_AUTOSCALER_PERIOD: Final = "--horizontal-pod-autoscaler-sync-period=2s"

_AUDIT_POLICY: Final = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
"""


def prepare(config: SandboxConfig, now: dt.datetime) -> None:
    """Write certificates, kubeconfig files and the audit policy into the sandbox's directory."""
    pki = config.pki
    pki.mkdir(mode=0o700, exist_ok=True)
    config.logs.mkdir(exist_ok=True)
    config.pods.mkdir(exist_ok=True)
    authority = certificates.new_authority(now)
    (pki / "ca.crt").write_bytes(authority.certificate_pem)
    service_ip = SERVICE_NETWORK.removesuffix(".0/16") + ".1"
    names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    names += ["kubernetes.default.svc.cluster.local", "127.0.0.1", BRIDGE_ADDRESS, service_ip]
    certificates.new_server(authority, "kube-apiserver", names, now).write(pki, "apiserver")
    certificates.new_server(authority, "kubelet", [BRIDGE_ADDRESS], now).write(pki, "kubelet")
    signer = certificates.new_client(authority, "service-accounts", None, now)
    signer.write(pki, "service-accounts")
    (pki / "service-accounts.pub").write_bytes(signer.public_key_pem)
    kubelet_client = certificates.new_client(authority, "kube-apiserver", None, now)
    kubelet_client.write(pki, "apiserver-kubelet")
    inside = f"https://{BRIDGE_ADDRESS}:{API_PORT}"
    for name in ("kube-controller-manager", "kube-scheduler"):
        client = certificates.new_client(authority, f"system:{name}", None, now)
        certificates.write_kubeconfig(pki / f"{name}.kubeconfig", inside, authority, client)
    agent = certificates.new_client(authority, "sandbox-node-agent", "system:masters", now)
    agent.write(pki, "agent")
    admin = certificates.new_client(authority, "sandbox-admin", "system:masters", now)
    certificates.write_kubeconfig(config.kubeconfig_inside, inside, authority, admin)
    outside = f"https://127.0.0.1:{config.port}"
    certificates.write_kubeconfig(config.kubeconfig, outside, authority, admin)
    (pki / "audit-policy.yaml").write_text(_AUDIT_POLICY)


def etcd(config: SandboxConfig) -> list[str]:
    """Return etcd's command line; it need not survive a crash of the machine."""
    return [
        str(config.binaries / "etcd"),
        f"--data-dir={config.directory / 'etcd'}",
        f"--listen-client-urls={_ETCD}",
        f"--advertise-client-urls={_ETCD}",
        f"--listen-peer-urls={_ETCD_PEER}",
        f"--initial-advertise-peer-urls={_ETCD_PEER}",
        f"--initial-cluster=default={_ETCD_PEER}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def api_server(config: SandboxConfig) -> list[str]:
    """Return kube-apiserver's command line."""
    pki = config.pki
    return [
        str(config.binaries / "kube-apiserver"),
        f"--etcd-servers={_ETCD}",
        "--bind-address=0.0.0.0",
        f"--advertise-address={BRIDGE_ADDRESS}",
        f"--secure-port={API_PORT}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        f"--kubelet-client-certificate={pki / 'apiserver-kubelet.crt'}",
        f"--kubelet-client-key={pki / 'apiserver-kubelet.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-signing-key-file={pki / 'service-accounts.key'}",
        f"--service-account-key-file={pki / 'service-accounts.pub'}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged=true",
        f"--audit-policy-file={pki / 'audit-policy.yaml'}",
        f"--audit-log-path={config.audit_log}",
        # Whoever reads on from where it was must find it there; by default it is cut at 100 MB.
        "--audit-log-maxsize=1000",
        "--audit-log-maxbackup=1",
        "--profiling=false",
    ]


def controller_manager(config: SandboxConfig) -> list[str]:
    """Return kube-controller-manager's command line."""
    pki = config.pki
    return [
        str(config.binaries / "kube-controller-manager"),
        *_clients(pki / "kube-controller-manager.kubeconfig"),
        f"--root-ca-file={pki / 'ca.crt'}",
        f"--service-account-private-key-file={pki / 'service-accounts.key'}",
        "--use-service-account-credentials",
        f"--cluster-cidr={BRIDGE_ADDRESS}/{POD_NETWORK_BITS}",
        _AUTOSCALER_PERIOD,
    ]


def scheduler(config: SandboxConfig) -> list[str]:
    """Return kube-scheduler's command line."""
    return [
        str(config.binaries / "kube-scheduler"),
        *_clients(config.pki / "kube-scheduler.kubeconfig"),
    ]


def _clients(kubeconfig: Path) -> list[str]:
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--authentication-skip-lookup=true",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        *_CLIENT_RATE,
    ]
