"""What a worker counts, and its access log: numbers and lines, no IO.

Label values come from the routing table and the allow-list alone, so that invented names add no
series. A line of the log has fixed keys and neither a prompt nor a key in it.
"""

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Protocol

from nimway.proxy.catalog import Catalog, Model
from nimway.proxy.messages import Counters
from nimway.proxy.settings import Settings
from nimway.proxy.usage import TAIL_BYTES, TOKENS_MARK, read_usage
from nimway.proxy.wire import RequestHead

# OpenTelemetry's semantic conventions for generative AI give the first four.
DURATION_BUCKETS_S = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64),
    *(1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
FIRST_TOKEN_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
OUTPUT_TOKEN_BUCKETS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2),
    *(0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)
TOKEN_BUCKETS = tuple(4**power for power in range(14))
HOLD_BUCKETS_S = (
    *(0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    *(10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0, 600.0),
)
OVERHEAD_BUCKETS_S = (1e-05, 2e-05, 5e-05, 1e-04, 2e-04, 5e-04, 0.001, 0.002, 0.005, 0.01, 0.1)
DELAY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)

_OK = 200
_ERROR = 400
_LINE_BYTES = 256
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""Values that OpenTelemetry gives `gen_ai.operation.name`; other paths name themselves."""

_LOG_HEAD = b'{"event":"request","model":%b,"path":"%b","status":%d,'
_LOG_LINE = (
    b'%b"ts_ms":%d,"request_id":"%b","method":"%b","duration_us":%d,"first_byte_us":%d,'
    b'"bytes_out":%d,"input_tokens":%d,"output_tokens":%d}\n'
)

PART_ENTRIES = 500
"""So many series are read at a time: requests are served between two parts of a scrape."""

Labels = tuple[str, ...]
Entry = tuple[Labels, list[float]]
"""The label values of one series, and its numbers."""


class Answered:
    """What is counted of an exchange; times are the loop's, 0 for what did not happen.

    `tail` is the end of an answer, or of a stream the last event that counts tokens; `events` are
    the pieces of a stream so far.
    """

    # Defaults stand at the class: an assignment each costs.
    status = 0
    started = 0.0
    first_byte_at = 0.0
    first_token_at = 0.0
    bytes_out = 0
    events = 0
    tail = b""

    def watch(self, pieces: list[bytes], now: Callable[[], float], *, stream: bool) -> None:
        """Take note of what passes: the end of an answer; of a stream, when and who counts."""
        if not stream:
            tail = pieces[-1]
            if self.tail and len(tail) < TAIL_BYTES:
                tail = self.tail[-TAIL_BYTES:] + tail
            self.tail = tail
            return
        if not self.events:
            self.first_token_at = now()
        self.events += len(pieces)
        for piece in pieces:
            if TOKENS_MARK in piece:
                self.tail = piece


class Histogram:
    """Counts by bucket, one above all of them, and the sum of the values at the end."""

    __slots__ = ("bounds", "counts")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts: list[float] = [0] * (len(bounds) + 2)

    @property
    def used(self) -> bool:
        """Whether anything was counted."""
        return any(self.counts)

    def observe(self, value: float) -> None:
        """Count `value`."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.counts[-1] += value

    def observe_all(self, values: list[float]) -> None:
        """Count `values`, and empty the list: a hundred cost as much as ten one by one."""
        if len(values) < len(self.bounds):
            for value in values:
                self.observe(value)
        else:
            values.sort()
            counts, below = self.counts, 0
            for number, bound in enumerate(self.bounds):
                upto = bisect_right(values, bound)
                counts[number] += upto - below
                below = upto
            counts[-2] += len(values) - below
            counts[-1] += sum(values)
        values.clear()


class _Row:
    """Requests of one model, path and status: found once, then counted in without a look-up.

    What ended since the last `settle` stands in lists, one value a request; a look for its bucket
    at once would cost as much as the rest of the counting. Requests without a model are counted and
    logged only. Tokens and their times are those of answers that succeeded.
    """

    __slots__ = (
        "answered",
        "count",
        "durations",
        "first_bytes",
        "first_tokens",
        "given",
        "histograms",
        "log_head",
        "output_times",
        "taken",
    )

    def __init__(self, status: int, log_head: bytes) -> None:
        self.answered = status == _OK
        self.count = 0
        self.log_head = log_head
        self.durations: list[float] = []
        self.first_bytes: list[float] = []
        self.first_tokens: list[float] = []
        self.output_times: list[float] = []
        self.taken: list[float] = []
        self.given: list[float] = []
        self.histograms: tuple[tuple[Histogram, list[float]], ...] = ()

    def join(self, find: Callable[..., Histogram], name: str, label: str, status: int) -> None:
        """Find the histograms of model, operation and outcome."""
        operation = _OPERATIONS.get(label) or label.rpartition("/")[2]
        error = str(status) if status >= _ERROR else ""
        self.histograms = (
            (find("durations", DURATION_BUCKETS_S, name, operation, error), self.durations),
            (find("first_bytes", DURATION_BUCKETS_S, name), self.first_bytes),
        )
        if self.answered:
            common = (name, operation)
            self.histograms += (
                (find("first_tokens", FIRST_TOKEN_BUCKETS_S, *common), self.first_tokens),
                (find("output_times", OUTPUT_TOKEN_BUCKETS_S, *common), self.output_times),
                (find("tokens", TOKEN_BUCKETS, *common, "input"), self.taken),
                (find("tokens", TOKEN_BUCKETS, *common, "output"), self.given),
            )

    def settle(self) -> None:
        """Put what ended into the histograms."""
        self.count += len(self.durations)
        for histogram, values in self.histograms:
            if values:
                histogram.observe_all(values)
        self.durations.clear()


class Meters:
    """Counters of one worker since its start."""

    def __init__(self, settings: Settings, epoch_s: float) -> None:
        self._epoch_s = epoch_s
        self._log_every = round(1 / settings.access_log_sample) if settings.access_log_sample else 0
        self._log_skipped = 0
        self._lines_max = max(1, settings.access_log_buffer_bytes // _LINE_BYTES)
        self._rows: dict[tuple[str, str, int], _Row] = {}
        self._unsettled: list[_Row] = []
        self._series_of: dict[str, list[tuple[dict[Any, Any], Any]]] = {}  # each by its key
        self._histograms: dict[str, dict[Labels, Histogram]] = {}
        self._holds: dict[Labels, int] = {}
        self._ticked_at = 0.0
        self.delays = Histogram(DELAY_BUCKETS_S)
        self._overheads = Histogram(OVERHEAD_BUCKETS_S)
        self.overheads: list[float] = []
        self.lines: list[bytes] = []
        self.on_full: Callable[[], None] = _ignore
        self.lines_dropped = 0
        self.retries = 0
        self.ejections = 0
        self.cancels = 0
        self.broken = 0

    def account(
        self, finished: Answered, model: Model | None, label: str, head: RequestHead, now: float
    ) -> None:
        """Count one request that ended at `now`, and write its line."""
        name = "" if model is None else model.name
        status = finished.status
        row = self._rows.get((name, label, status)) or self._open(model, name, label, status)
        durations = row.durations
        if not durations:
            self._unsettled.append(row)
        started = finished.started
        duration_s = now - started
        durations.append(duration_s)
        first_byte_s = 0.0
        taken = given = 0
        if finished.first_byte_at and model is not None:
            first_byte_s = finished.first_byte_at - started
            row.first_bytes.append(first_byte_s)
            if row.answered:
                if tail := finished.tail:
                    taken, given = read_usage(tail)
                    if taken:
                        row.taken.append(taken)
                    if given:
                        row.given.append(given)
                if finished.first_token_at:
                    _account_stream(finished, row, now, given)
        if self._log_every != 1 and not self._is_sampled():
            return
        lines = self.lines
        lines.append(
            _LOG_LINE
            % (
                row.log_head,
                (self._epoch_s + now) * 1e3,
                head.request_id,
                head.method,
                duration_s * 1e6,
                first_byte_s * 1e6,
                finished.bytes_out,
                taken,
                given,
            )
        )
        if len(lines) >= self._lines_max:
            self.on_full()

    def count_hold(self, name: str, cause: str, outcome: str, seconds: float) -> None:
        """Count a wait for a model that ended with `outcome`, or that was refused."""
        key = (name, cause, outcome)
        self._holds[key] = self._holds.get(key, 0) + 1
        if seconds:
            self._find("hold_durations", HOLD_BUCKETS_S, name, cause).observe(seconds)

    def tick(self, now: float, period_s: float) -> None:
        """Take note of how late the loop is with a timer of `period_s`."""
        if self._ticked_at:
            self.delays.observe(max(0.0, now - self._ticked_at - period_s))
        self._ticked_at = now

    def _open(self, model: Model | None, name: str, label: str, status: int) -> _Row:
        encoded = b'""' if model is None else model.label
        row = _Row(status, _LOG_HEAD % (encoded, label.encode(), status))
        if model is not None:
            row.join(self._find, name, label, status)
        self._rows[name, label, status] = row
        self._series_of.setdefault(name, []).append((self._rows, (name, label, status)))
        return row

    def _find(self, series: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
        found = self._histograms.setdefault(series, {})
        if labels not in found:
            found[labels] = Histogram(bounds)
            self._series_of.setdefault(labels[0], []).append((found, labels))
        return found[labels]

    def _is_sampled(self) -> bool:
        if not self._log_every:
            return False
        self._log_skipped += 1
        if self._log_skipped < self._log_every:
            return False
        self._log_skipped = 0
        return True

    def settle(self) -> None:
        """Put what ended lately into the counters; the sweep does, and who reads them."""
        rows, self._unsettled = self._unsettled, []
        for row in rows:
            row.settle()
        self._overheads.observe_all(self.overheads)

    def forget(self, names: frozenset[str]) -> None:
        """Drop the series of models that are no longer in the table."""
        self.settle()
        for name in [name for name in self._series_of if name and name not in names]:
            for series, key in self._series_of.pop(name):
                del series[key]
        self._holds = {key: count for key, count in self._holds.items() if key[0] in names}

    def read(self) -> Iterator[tuple[str, Iterable[Entry]]]:
        """Return what was counted: series, and for each its label values and numbers."""
        self.settle()
        rows = list(self._rows.items())
        yield (
            "requests",
            (((name, path, str(status)), [row.count]) for (name, path, status), row in rows),
        )
        for series, found in list(self._histograms.items()):
            items = list(found.items())
            yield series, ((labels, list(item.counts)) for labels, item in items if item.used)
        yield "holds", [(labels, [count]) for labels, count in self._holds.items()]
        yield "delays", [((), list(self.delays.counts))]
        yield "overheads", [((), list(self._overheads.counts))]
        for name in ("retries", "ejections", "cancels", "broken", "lines_dropped"):
            yield name, [((), [getattr(self, name)])]


def _account_stream(finished: Answered, row: _Row, now: float, given: int) -> None:
    """Take note of a stream's first token and of the pace of the others."""
    first_token_at = finished.first_token_at
    row.first_tokens.append(first_token_at - finished.started)
    tokens = given or finished.events
    if tokens > 1:
        row.output_times.append((now - first_token_at) / (tokens - 1))


def _ignore() -> None:
    """Nobody takes lines yet: they wait."""


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


def collect(measured: Measured, number: int) -> Iterator[Counters]:
    """Yield one worker's counters for the answer to scrape `number`, in parts of a few ms each.

    Between two parts the loop may turn: what changes meanwhile is in one of them or in the next
    scrape.
    """
    values: dict[str, list[Entry]] = {}
    size = 0
    for series, entries in _read_all(measured):
        found = values.setdefault(series, [])
        for entry in entries:
            found.append(entry)
            size += 1
            if size == PART_ENTRIES:
                yield Counters(number, values, more=True)
                values = {series: (found := [])}
                size = 0
    yield Counters(number, values)


def _read_all(measured: Measured) -> Iterator[tuple[str, Iterable[Entry]]]:
    models = list(measured.catalog.models.values())
    yield from measured.meters.read()
    yield "in_flight", (((model.name,), [model.in_flight]) for model in models)
    yield "queued", (((model.name,), [model.queued]) for model in models)
    yield "held", (((m.name,), [0 if m.endpoints else m.queued]) for m in models)
    yield "demand", (((model.name,), [model.demand_total]) for model in models)
    yield "endpoints", (((model.name,), [len(model.endpoints)]) for model in models)
    used = measured.catalog.used_endpoints()
    yield "picks", (((m, e.authority.decode()), [e.picks]) for m, e in used)
    yield "endpoint_ejections", (((m, e.authority.decode()), [e.ejections]) for m, e in used)
    yield "cpu", [((), [time.process_time()])]
    yield "connections", [((), [len(measured.connections)])]
    yield "upstream_connections", [((), [len(measured.upstreams)])]
    yield "bodies_bytes", [((), [measured.bodies_bytes])]
