"""What a sandbox is started with: one frozen value, written by the launcher, read inside.

Owns the layout of a sandbox's directory and the fixed addresses. Does no IO but its own file.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

BRIDGE_ADDRESS = "10.244.0.1"
"""The sandbox's own address on the pod network; the API server listens on it."""
POD_NETWORK_BITS = 16
API_PORT = 6443
"""The API server's port inside the sandbox."""
SERVICE_NETWORK = "10.96.0.0/16"
KUBELET_PORT = 10250


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxConfig:
    """One sandbox: its name, place and size.

    `directory` holds everything it writes. `port` is the API server's port on the host's loopback
    address. `backoff_initial_s` is the first delay before a crashed container starts again (a
    kubelet: 10 s). `eager_probes` tries a probe that has not succeeded yet more often than its
    period says, so that start-up is not rounded up to the period. `pretend` runs every pod
    without processes.
    """

    name: str
    directory: Path
    port: int
    binaries: Path
    gpu_nodes: int = 2
    gpus_per_node: int = 8
    cpu_nodes: int = 1
    backoff_initial_s: float = 10.0
    eager_probes: bool = True
    pretend: bool = False

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig, for use on the host."""
        return self.directory / "kubeconfig"

    @property
    def kubeconfig_inside(self) -> Path:
        """The same for a client inside the sandbox."""
        return self.directory / "pki" / "kubeconfig-inside"

    @property
    def pki(self) -> Path:
        """Folder of keys and certificates."""
        return self.directory / "pki"

    @property
    def logs(self) -> Path:
        """Folder of one log file for each process of the control plane."""
        return self.directory / "logs"

    @property
    def pods(self) -> Path:
        """Folder with one folder for each pod: its containers' output and its volumes."""
        return self.directory / "pods"

    @property
    def audit_log(self) -> Path:
        """The API server's audit log: one JSON event a line, level Metadata."""
        return self.logs / "audit.log"

    @property
    def control_socket(self) -> Path:
        """Where the supervisor takes requests from the host (see `forward`)."""
        return self.directory / "control.sock"

    def save(self) -> Path:
        """Write this value into the sandbox's directory, and return the file."""
        values = dataclasses.asdict(self)
        for key in ("directory", "binaries"):
            values[key] = str(values[key])
        path = self.directory / "config.json"
        path.write_text(json.dumps(values, indent=2))
        return path

    @classmethod
    def load(cls, path: Path) -> "SandboxConfig":
        """Read what `save` wrote."""
        values = json.loads(path.read_text())
        for key in ("directory", "binaries"):
            values[key] = Path(values[key])
        return cls(**values)
