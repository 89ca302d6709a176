"""Leader election over a Lease: at most one operator writes.

Owns the Lease and the answer to "may I write now?". That answer fails closed: it is no as soon as
the last renewal began longer ago than `RENEW_DEADLINE_S` on the monotonic clock, whatever the
process was doing meanwhile, so a leader that was stopped for a minute wakes up as nobody. A rival
takes over only after it has seen the Lease unchanged for `LEASE_S`, by its own clock: wall clocks
are written into the Lease for people, and compared by nobody.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from nimway.control.client import ApiError, ConflictError, KubeClient, NotFoundError
from nimway.control.clock import micro_timestamp
from nimway.control.kinds import LEASE, Manifest

LEASE_S = 15.0
RENEW_DEADLINE_S = 10.0
RENEW_PERIOD_S = 5.0
RETRY_PERIOD_S = 2.0
REQUEST_TIMEOUT_S = 3.0

_log = logging.getLogger(__name__)


class LeadershipLostError(Exception):
    """This process led, and may not write any more; it has to exit."""


@dataclass(frozen=True, slots=True)
class Observed:
    """The Lease as it was first seen in this state, at `since_s` of the monotonic clock."""

    holder: str
    version: str
    transitions: int
    since_s: float
    lease_s: float


class Elector:
    """One candidate. `clock` is monotonic seconds, `wall` the time to show in the Lease."""

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        clock: Callable[[], float],
        wall: Callable[[], datetime],
        jitter: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock
        self._wall = wall
        self._jitter = jitter
        self._sleep = sleep
        self._observed: Observed | None = None
        self._renewed_s: float | None = None

    @property
    def is_leader(self) -> bool:
        """Whether this process may write now."""
        renewed_s = self._renewed_s
        return renewed_s is not None and self._clock() - renewed_s < RENEW_DEADLINE_S

    async def acquire(self) -> None:
        """Return once this process leads."""
        while not await self._attempt():
            await self._sleep(RETRY_PERIOD_S * (0.75 + self._jitter() / 2))

    async def keep(self) -> None:
        """Renew for ever.

        Raises:
            LeadershipLostError: another holds the Lease, or it could not be renewed in time.
        """
        while True:
            await self._sleep(RENEW_PERIOD_S * (0.9 + self._jitter() / 5))
            while not await self._attempt():
                if not self.is_leader or self._rival() is not None:
                    self._renewed_s = None
                    raise LeadershipLostError(f"{self._rival() or 'nobody'} holds the lease now")
                await self._sleep(RETRY_PERIOD_S / 2 * (0.75 + self._jitter() / 2))

    async def release(self) -> None:
        """Give the Lease up, so that a successor need not wait for it to run out."""
        led = self.is_leader
        self._renewed_s = None
        if led and self._observed is not None:
            try:
                await self._write(self._observed, holder="")
            except ApiError as error:
                _log.warning("releasing the lease failed: error=%s", error)

    def _rival(self) -> str | None:
        holder = self._observed.holder if self._observed else ""
        return holder if holder and holder != self._identity else None

    async def _attempt(self) -> bool:
        began_s = self._clock()
        try:
            if self._observed is None or self._observed.holder != self._identity:
                await self._look()
            if not self._is_free(self._clock()):
                return False
            await self._write(self._observed, holder=self._identity)
        except ConflictError:
            # Somebody wrote it since: look again, and believe what is there.
            self._observed = None
            try:
                await self._look()
            except ApiError as error:
                _log.warning("reading the lease failed: error=%s", error)
            return False
        except ApiError as error:
            _log.warning("renewing the lease failed: error=%s", error)
            return False
        if self._renewed_s is None:
            _log.info("leading: identity=%s", self._identity)
        self._renewed_s = began_s
        return True

    async def _look(self) -> None:
        try:
            lease = await self._client.request(
                "GET", LEASE.path(self._namespace, self._name), timeout_s=REQUEST_TIMEOUT_S
            )
        except NotFoundError:
            self._observed = None
            return
        seen = observe(lease, self._clock())
        if self._observed is None or seen.version != self._observed.version:
            self._observed = seen

    def _is_free(self, now_s: float) -> bool:
        return self._observed is None or may_take(self._observed, self._identity, now_s)

    async def _write(self, observed: Observed | None, *, holder: str) -> None:
        now = micro_timestamp(self._wall())
        changes_hands = observed is None or observed.holder != holder
        transitions = 0 if observed is None else observed.transitions + int(changes_hands)
        lease: Manifest = {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": int(LEASE_S),
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }
        if observed is None:
            method, path = "POST", LEASE.path(self._namespace)
        else:
            method, path = "PUT", LEASE.path(self._namespace, self._name)
            lease["metadata"]["resourceVersion"] = observed.version
        written = await self._client.request(method, path, body=lease, timeout_s=REQUEST_TIMEOUT_S)
        self._observed = observe(written, self._clock())


def observe(lease: Manifest, now_s: float) -> Observed:
    """Read a Lease that was seen for the first time at `now_s`."""
    spec = lease.get("spec", {})
    return Observed(
        holder=spec.get("holderIdentity") or "",
        version=lease["metadata"]["resourceVersion"],
        transitions=spec.get("leaseTransitions") or 0,
        since_s=now_s,
        lease_s=float(spec.get("leaseDurationSeconds") or LEASE_S),
    )


def may_take(observed: Observed, identity: str, now_s: float) -> bool:
    """Tell whether `identity` may write itself into the Lease: it is free, its own, or run out."""
    if observed.holder in {"", identity}:
        return True
    return now_s - observed.since_s >= observed.lease_s
