"""The operator's settings, from flags and environment, checked once at start."""

from dataclasses import dataclass

from nimway.control.desired.proxy import ProxySettings

LEASE_NAME = "nimway-operator"


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator needs to know beside the cluster's configuration.

    `namespaces` are those it watches, None for all. `trusted` are the namespaces whose NIMProxies
    may serve models of other namespaces.
    """

    namespace: str
    identity: str
    namespaces: frozenset[str] | None
    trusted: frozenset[str]
    proxy: ProxySettings
    health_port: int
    workers: int = 32
    resync_s: float = 50.0
    table_period_s: float = 0.25

    def watches(self, namespace: str) -> bool:
        """Tell whether this operator is responsible for a namespace."""
        return self.namespaces is None or namespace in self.namespaces
