"""What an exchange needs of the worker it runs in; `server.py` has it."""

from typing import TYPE_CHECKING, Protocol

from nimway.proxy.catalog import Catalog, Endpoint, Model
from nimway.proxy.metrics import Meters
from nimway.proxy.retry import RetryBudget
from nimway.proxy.settings import Settings

if TYPE_CHECKING:
    from nimway.proxy.exchange import Exchange


class Host(Protocol):
    """What an exchange needs of its worker."""

    settings: Settings
    catalog: Catalog
    meters: Meters
    budget: RetryBudget
    ready: bool
    stopping: bool
    hold_until: float
    held_bytes: int
    bodies_bytes: int
    exchanges: int

    def now(self) -> float:
        """Return the loop's clock."""

    def random(self) -> float:
        """Return a random number below 1."""

    def connect(self, endpoint: Endpoint, exchange: "Exchange") -> None:
        """Open a connection; `on_connected` or `on_connect_failed` follows, never at once."""

    def changed(self, model: Model) -> None:
        """Report the model's load soon."""

    def urge(self) -> None:
        """Report at once what changed: a model without endpoints is asked for."""

    def release(self, model: Model) -> None:
        """Let requests go that wait for the model, as far as there are places."""
