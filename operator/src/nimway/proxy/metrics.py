"""What a worker counts, and the lines of its access log: numbers and values, no IO.

Label values come from the routing table and the allow-list alone, so that invented names add no
series. On a request's way only a tuple is kept: tokens are read, and requests counted, `BATCH` at
a time; values go into the histograms, and lines out, four times a second.
"""

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import repeat
from math import floor
from operator import mul, sub
from typing import Any, Protocol

import msgspec

from nimway.proxy.access_log import LINE_BYTES, Line, build_head, encode_lines
from nimway.proxy.catalog import Catalog, Model
from nimway.proxy.messages import Counters
from nimway.proxy.settings import Settings
from nimway.proxy.usage import TAIL_BYTES, TOKENS_MARK, read_usages
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
BATCH = 64
"""So many requests are counted at a time: 0.1 ms, where more would make others wait longer."""

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""Values that OpenTelemetry gives `gen_ai.operation.name`; other paths name themselves."""

_FORGET_MODELS = 500
PART_ENTRIES = 500
"""So many series are read at a time: requests are served between two parts of a scrape."""

_Key = tuple[str, str, int]
"""Model, path and status."""

_Stream = tuple[float, int, float]
"""Seconds to a stream's first event, number of events, seconds after the first."""

_Ended = tuple[_Key, bytes, bytes, float, float, float, int, bytes, _Stream | None]
"""A request's key, id, method, start, end, first byte, bytes out, tail of the answer, stream."""

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
    """Counts by bucket, one above all of them, and the sum of the values at the end.

    `used`: anything was counted. A scrape asks tens of thousands of them in one go.
    """

    __slots__ = ("bounds", "counts", "used")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.used = False
        self.counts: list[float] = [0] * (len(bounds) + 2)

    def observe(self, value: float) -> None:
        """Count `value`."""
        self.used = True
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
            self.used = True
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

    def __init__(self, status: int, log_head: msgspec.Raw) -> None:
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

    def take(
        self,
        durations: Iterable[float],
        waits: Iterable[float],
        tokens: tuple[Sequence[int], Sequence[int]],
        streams: Sequence[_Stream | None],
    ) -> None:
        """Take requests that ended: what is 0 did not happen."""
        self.durations += durations
        if not self.histograms:
            return
        self.first_bytes += filter(None, waits)
        if not self.answered:
            return
        taken, given = tokens
        self.taken += filter(None, taken)
        self.given += filter(None, given)
        if any(streams):
            for stream, said in zip(streams, given, strict=True):
                if stream is not None:
                    first_s, events, rest_s = stream
                    self.first_tokens.append(first_s)
                    if (said or events) > 1:
                        self.output_times.append(rest_s / ((said or events) - 1))

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
        self._lines_max = max(1, settings.access_log_buffer_bytes // LINE_BYTES)
        self._rows: dict[_Key, _Row] = {}
        self._ended: list[_Ended] = []
        self._unsettled: set[_Row] = set()
        self._series_of: dict[str, list[tuple[dict[Any, Any], Any]]] = {}  # each by its key
        self._histograms: dict[str, dict[Labels, Histogram]] = {}
        self._holds: dict[Labels, int] = {}
        self._ticked_at = 0.0
        self.delays = Histogram(DELAY_BUCKETS_S)
        self._overheads = Histogram(OVERHEAD_BUCKETS_S)
        self.overheads: list[float] = []
        self._lines: list[Line] = []
        self.on_full: Callable[[], None] = _ignore
        self.lines_dropped = 0
        self.retries = 0
        self.ejections = 0
        self.cancels = 0
        self.broken = 0

    def account(
        self, finished: Answered, model: Model | None, label: str, head: RequestHead, now: float
    ) -> None:
        """Take note of one request that ended at `now`; `fold` counts it."""
        status, started = finished.status, finished.started
        tail = finished.tail if status == _OK else b""
        if len(tail) > TAIL_BYTES:
            tail = tail[-TAIL_BYTES:]
        stream = None
        if events := finished.events:
            first = finished.first_token_at
            stream = (first - started, events, now - first)
        ended = self._ended
        ended.append(
            (
                ("" if model is None else model.name, label, status),
                head.request_id,
                head.method,
                started,
                now,
                finished.first_byte_at or started,
                finished.bytes_out,
                tail,
                stream,
            )
        )
        if len(ended) >= BATCH:
            self.fold()

    def fold(self) -> None:
        """Count the requests that ended lately, and make their lines.

        Column by column: a loop over the requests takes half as many bytecodes again.
        """
        if not self._ended:
            return
        ended, self._ended = self._ended, []
        keys, ids, methods, starts, ends, firsts, sizes, tails, streams = zip(*ended, strict=True)
        durations, waits = [*map(sub, ends, starts)], [*map(sub, firsts, starts)]
        tokens = read_usages(tails)
        rows = self._find_rows(keys)
        if rows.count(rows[0]) == len(rows):
            self._unsettled.add(rows[0])
            rows[0].take(durations, waits, tokens, streams)
        else:
            self._unsettled.update(rows)
            for row, duration_s, wait_s, taken, given, stream in zip(
                rows, durations, waits, *tokens, streams, strict=True
            ):
                row.take((duration_s,), (wait_s,), ((taken,), (given,)), (stream,))
        if not self._log_every:
            return
        lines = map(
            Line,
            [row.log_head for row in rows],
            [floor((self._epoch_s + end) * 1e3) for end in ends],
            map(bytes.decode, ids),
            map(bytes.decode, methods),
            map(floor, map(mul, durations, repeat(1e6))),
            map(floor, map(mul, waits, repeat(1e6))),
            sizes,
            *tokens,
        )
        self._lines += lines if self._log_every == 1 else filter(self._is_sampled, lines)
        if len(self._lines) >= self._lines_max:
            self.on_full()

    def _find_rows(self, keys: Sequence[_Key]) -> list[_Row]:
        rows = self._rows
        try:
            return [*map(rows.__getitem__, keys)]
        except KeyError:
            return [rows.get(key) or self._open(key) for key in keys]

    def take_lines(self) -> bytes:
        """Return the lines of the access log since the last call."""
        self.fold()
        lines, self._lines = self._lines, []
        return encode_lines(lines)

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

    def _open(self, key: _Key) -> _Row:
        name, label, status = key
        row = _Row(status, build_head(name, label, status))
        if name:
            row.join(self._find, name, label, status)
        self._rows[key] = row
        self._series_of.setdefault(name, []).append((self._rows, key))
        return row

    def _find(self, series: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
        found = self._histograms.setdefault(series, {})
        if labels not in found:
            found[labels] = Histogram(bounds)
            self._series_of.setdefault(labels[0], []).append((found, labels))
        return found[labels]

    def _is_sampled(self, line: Line) -> bool:
        del line
        self._log_skipped += 1
        if self._log_skipped < self._log_every:
            return False
        self._log_skipped = 0
        return True

    def settle(self) -> None:
        """Put what ended lately into the counters; the sweep does, and who reads them."""
        self.fold()
        rows, self._unsettled = self._unsettled, set()
        for row in rows:
            row.settle()
        self._overheads.observe_all(self.overheads)

    def forget(self, names: frozenset[str]) -> Iterator[None]:
        """Drop the series of models that are no longer in the table, in steps of a few ms."""
        self.settle()
        yield
        gone = [name for name in self._series_of if name and name not in names]
        self._holds = {key: count for key, count in self._holds.items() if key[0] in names}
        for at, name in enumerate(gone):
            for series, key in self._series_of.pop(name):
                del series[key]
            if at % _FORGET_MODELS == _FORGET_MODELS - 1:
                yield

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
