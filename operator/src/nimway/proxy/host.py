"""What an exchange needs of the worker it runs in; `server.py` has it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from nimway.proxy.catalog import Catalog, Endpoint, Model
from nimway.proxy.metrics import Meters
from nimway.proxy.retry import RetryBudget
from nimway.proxy.settings import Settings

if TYPE_CHECKING:
    from nimway.proxy.exchange import Exchange


class Host(ABC):
    """What an exchange needs of its worker; no protocol, so that compiled its parts are fields."""

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

    now: Callable[[], float]
    """The loop's clock."""

    random: Callable[[], float]
    """A random number below 1."""

    connect: "Callable[[Endpoint, Exchange], None]"
    """Open a connection; `on_connected` or `on_connect_failed` follows, never at once."""

    @abstractmethod
    def changed(self, model: Model) -> None:
        """Report the model's load soon."""

    @abstractmethod
    def urge(self) -> None:
        """Report at once what changed: a model without endpoints is asked for."""

    @abstractmethod
    def release(self, model: Model) -> None:
        """Let requests go that wait for the model, as far as there are places."""
