"""What a worker counts, and its access log: numbers and lines, no IO.

Label values come from the routing table and the allow-list alone, so that invented names add no
series. A line of the log has fixed keys and neither a prompt nor a key in it.
"""

from bisect import bisect_left
from collections.abc import Sized
from typing import Protocol

from nimway.proxy.catalog import Catalog, Model
from nimway.proxy.messages import Counters
from nimway.proxy.settings import Settings
from nimway.proxy.wire import RequestHead

DURATION_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

_LOG_LINE = (
    b'{"event":"request","ts_ms":%d,"request_id":"%b","method":"%b","path":"%b","model":%b,'
    b'"status":%d,"duration_us":%d,"first_byte_us":%d,"bytes_out":%d}\n'
)


class Finished(Protocol):
    """What is counted of an exchange that ended."""

    @property
    def status(self) -> int:
        """Status of the answer; 499: the client left first."""

    @property
    def started(self) -> float:
        """Loop time of its head."""

    @property
    def first_byte_at(self) -> float:
        """Loop time of the answer's head, or 0."""

    @property
    def bytes_out(self) -> int:
        """Bytes of the answer's body."""


class Meters:
    """Counters of one worker since its start."""

    __slots__ = (
        "_epoch_s",
        "_log_buffer_bytes",
        "_log_every",
        "_log_skipped",
        "broken",
        "cancels",
        "durations",
        "ejections",
        "first_bytes",
        "lines",
        "requests",
        "retries",
    )

    def __init__(self, settings: Settings, epoch_s: float) -> None:
        self._epoch_s = epoch_s
        self._log_every = round(1 / settings.access_log_sample) if settings.access_log_sample else 0
        self._log_skipped = 0
        self._log_buffer_bytes = settings.access_log_buffer_bytes
        self.requests: dict[tuple[str, str, int], int] = {}
        self.durations: dict[str, list[float]] = {}
        self.first_bytes: dict[str, list[float]] = {}
        self.lines: list[bytes] = []
        self.retries = 0
        self.ejections = 0
        self.cancels = 0
        self.broken = 0

    def account(
        self, finished: Finished, model: Model | None, label: str, head: RequestHead, now: float
    ) -> None:
        """Count one request that ended at `now`, and write its line."""
        name = "" if model is None else model.name
        key = (name, label, finished.status)
        requests = self.requests
        requests[key] = requests.get(key, 0) + 1
        started = finished.started
        duration_s = now - started
        first_byte_at = finished.first_byte_at
        first_byte_s = first_byte_at - started if first_byte_at else 0.0
        if model is not None:
            _observe(self.durations, name, duration_s)
            if first_byte_at:
                _observe(self.first_bytes, name, first_byte_s)
        if self._log_every != 1 and not self._is_sampled():
            return
        self.lines.append(
            _LOG_LINE
            % (
                (self._epoch_s + now) * 1e3,
                head.request_id,
                head.method,
                label.encode(),
                b'""' if model is None else model.label,
                finished.status,
                duration_s * 1e6,
                first_byte_s * 1e6,
                finished.bytes_out,
            )
        )

    def _is_sampled(self) -> bool:
        if not self._log_every:
            return False
        self._log_skipped += 1
        if self._log_skipped < self._log_every:
            return False
        self._log_skipped = 0
        return True

    def forget(self, names: frozenset[str]) -> None:
        """Drop the series of models that are no longer in the table."""
        for series in (self.durations, self.first_bytes):
            for name in [name for name in series if name not in names]:
                del series[name]
        for key in [key for key in self.requests if key[0] and key[0] not in names]:
            del self.requests[key]


def _observe(series: dict[str, list[float]], name: str, value: float) -> None:
    """Count `value` in a histogram: one number per bucket, one above all, the sum at the end."""
    counts = series.get(name)
    if counts is None:
        counts = series[name] = [0.0] * (len(DURATION_BUCKETS_S) + 2)
    counts[bisect_left(DURATION_BUCKETS_S, value)] += 1
    counts[-1] += value


class Measured(Protocol):
    """What a worker's counters are read from."""

    @property
    def meters(self) -> Meters:
        """Counters."""

    @property
    def catalog(self) -> Catalog:
        """Models and endpoints."""

    @property
    def connections(self) -> Sized:
        """Clients' connections."""

    @property
    def upstreams(self) -> Sized:
        """Connections to model servers."""

    @property
    def bodies_bytes(self) -> int:
        """Bytes of bodies held."""


def collect(measured: Measured, number: int) -> Counters:
    """Return one worker's counters for the answer to scrape `number`."""
    meters = measured.meters
    models = measured.catalog.models.values()
    values: dict[str, list[tuple[tuple[str, ...], list[float]]]] = {
        "requests": [
            ((name, path, str(status)), [count])
            for (name, path, status), count in meters.requests.items()
        ],
        "durations": [((name,), counts) for name, counts in meters.durations.items()],
        "first_bytes": [((name,), counts) for name, counts in meters.first_bytes.items()],
        "in_flight": [((model.name,), [model.in_flight]) for model in models],
        "queued": [((model.name,), [model.queued]) for model in models],
        "demand": [((model.name,), [model.demand_total]) for model in models],
        "endpoints": [((model.name,), [len(model.endpoints)]) for model in models],
    }
    for name, value in (
        ("retries", meters.retries),
        ("ejections", meters.ejections),
        ("cancels", meters.cancels),
        ("broken", meters.broken),
        ("connections", len(measured.connections)),
        ("upstream_connections", len(measured.upstreams)),
        ("bodies_bytes", measured.bodies_bytes),
    ):
        values[name] = [((), [value])]
    return Counters(number, values)
