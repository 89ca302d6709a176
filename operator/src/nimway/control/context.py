"""What the reconcilers share: one bundle of parts, built once by the runtime."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from nimway.control.apply import Applier
from nimway.control.backchannel import BackChannel
from nimway.control.book import RouteBook
from nimway.control.client import KubeClient
from nimway.control.kinds import MODEL, PROXY, Ref
from nimway.control.load import LoadBook
from nimway.control.metrics import Metrics
from nimway.control.optional import OptionalKind
from nimway.control.report import Reporter
from nimway.control.settings import Settings
from nimway.control.store import Store
from nimway.control.workqueue import Lanes

STATUS_DELAY_S = 0.3
"""How long reports of progress wait for more of them: fewer writes, still far below 2 s."""

READY_DELAY_S = 0.05
"""How long the news waits that pods became ready, or ceased to be: that is what users wait for."""


@dataclass(frozen=True, slots=True)
class Context:
    """Parts by role; `clock` is monotonic seconds, `wall` for what outlives the process."""

    settings: Settings
    client: KubeClient
    store: Store
    book: RouteBook
    loads: LoadBook
    applier: Applier
    reporter: Reporter
    channel: BackChannel
    workers: Lanes[Ref]
    metrics: Metrics
    monitors: OptionalKind
    clock: Callable[[], float]
    wall: Callable[[], datetime]

    def mark_models(self, keys: set[str]) -> None:
        """Have the status of these models, given as `namespace/name`, looked at soon."""
        for key in keys:
            namespace, _, name = key.partition("/")
            self.workers.mark(Ref(MODEL.kind, namespace, name), delay_s=STATUS_DELAY_S)

    def mark_proxies(self) -> None:
        """Have the routing tables of all NIMProxies decided again."""
        for ref in self.store.refs(PROXY):
            self.workers.mark(ref)

    def proxy_keys(self) -> list[str]:
        """Return `namespace/name` of every NIMProxy that exists."""
        return [f"{ref.namespace}/{ref.name}" for ref in self.store.refs(PROXY)]
