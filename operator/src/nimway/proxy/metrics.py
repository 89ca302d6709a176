"""What a worker counts, and the lines of its access log: numbers and values, no IO.

Label values come from the routing table and the allow-list alone, so that invented names add no
series. A request is counted when it ends; its line goes out with others, four times a second.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from nimway.proxy.access_log import LINE_BYTES, build_head, build_line
from nimway.proxy.catalog import Model
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
TOKEN_BUCKETS = tuple(4.0**power for power in range(14))
HOLD_BUCKETS_S = (
    *(0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    *(10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0, 600.0),
)
OVERHEAD_BUCKETS_S = (
    1e-05,
    2e-05,
    5e-05,
    1e-04,
    2e-04,
    5e-04,
    0.001,
    0.002,
    0.005,
    0.01,
    0.1,
)
DELAY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)

_CARRIAGE_RETURN: Final = 13  # above line feed, below whatever else an event may end with
_OK: Final = 200
_ERROR: Final = 400

_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""Values that OpenTelemetry gives `gen_ai.operation.name`; other paths name themselves."""

FORGET_MODELS: Final = 500
"""So many lose their series in one step, which takes a few milliseconds."""

_Key = tuple[str, str, int]
"""Model, path and status."""

_NO_KEY: Final = ("", "", -1)

Labels = tuple[str, ...]
Entry = tuple[Labels, list[float]]
"""The label values of one series, and its numbers."""


class Answered:
    """What is counted of an exchange; times are the loop's, 0 for what did not happen.

    `tail` is the end of an answer, or of a stream the last event that counts tokens; `events` are
    those of a stream so far, as its server wrote them, and `cut` is one that has not ended.
    """

    # Defaults stand at the class: an assignment each costs.
    status = 0
    started = 0.0
    first_byte_at = 0.0
    first_token_at = 0.0
    bytes_out = 0
    events = 0
    tail = b""
    cut = b""

    def watch(self, pieces: list[bytes], now: Callable[[], float], *, stream: bool) -> None:
        """Take note of what passes: the end of an answer; of a stream, when and who counts."""
        if not stream:
            tail = pieces[-1]
            if len(tail) < TAIL_BYTES and (self.tail or len(pieces) > 1):
                tail = _join_end([self.tail, *pieces])
            self.tail = tail
            return
        if not self.events:
            self.first_token_at = now()
        for piece in pieces:
            event = piece
            if self.cut:
                event = self.cut + piece
                self.cut = b""
            else:
                self.events += 1
            if piece[-1] > _CARRIAGE_RETURN:  # what ends with a line has ended
                self.cut = event[-TAIL_BYTES:]
            if event.partition(TOKENS_MARK)[1]:  # `in` tries a number first, and fails
                self.tail = event


class Histogram:
    """Counts by bucket and above all of them, and the sum of the values.

    `used`: anything was counted. A scrape asks tens of thousands of them in one go. Values of a
    kind come in runs of one bucket: the bucket of the last value is at hand, with what it got since
    it was another's turn. Compiled, a value of a run takes a twentieth of one to look up.
    """

    __slots__ = ("_above", "_at", "_bounds", "_counts", "_run", "_up_to", "total", "used")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.used = False
        self.total = 0.0
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._at = 0
        self._run = 0
        self._above = self._up_to = -math.inf

    def observe(self, value: float) -> None:
        """Count `value`."""
        if not self._above < value <= self._up_to:
            self._turn_to(value)
        self._run += 1
        self.total += value
        self.used = True

    def _turn_to(self, value: float) -> None:
        self._counts[self._at] += self._run
        self._run = 0
        bounds = self._bounds
        self._at = at = bisect_left(bounds, value)
        self._above = bounds[at - 1] if at else -math.inf
        self._up_to = bounds[at] if at < len(bounds) else math.inf

    def read(self) -> list[float]:
        """Return the counts, and the sum behind them."""
        self._counts[self._at] += self._run
        self._run = 0
        return [*self._counts, self.total]


class _Times:
    """Histograms of one model, operation and outcome."""

    def __init__(self, durations: Histogram, first_bytes: Histogram) -> None:
        self.durations = durations
        self.first_bytes = first_bytes


class _Tokens:
    """Histograms of the answers of one model and operation that succeeded."""

    def __init__(
        self, first: Histogram, pace: Histogram, taken: Histogram, given: Histogram
    ) -> None:
        self.first = first
        self.pace = pace
        self.taken = taken
        self.given = given


class _Row:
    """Requests of one model, path and status; as they come in runs, the last row is at hand.

    Those without a model have no times, those that failed no tokens.
    """

    def __init__(self, key: _Key, log_head: bytes) -> None:
        self.model, self.path, self.status = key
        self.count = 0
        self.log_head = log_head
        self.times: _Times | None = None
        self.tokens: _Tokens | None = None


class Meters:
    """Counters of one worker since its start."""

    def __init__(self, settings: Settings, epoch_s: float) -> None:
        self._epoch_s = epoch_s
        self._log_every = round(1 / settings.access_log_sample) if settings.access_log_sample else 0
        self._log_skipped = 0
        self._ts_ms = 0
        self._ts = b"0"
        self._lines_max = max(1, settings.access_log_buffer_bytes // LINE_BYTES)
        self._rows: dict[_Key, _Row] = {}
        self._last = _Row(_NO_KEY, b"")
        self._series_of: dict[str, list[tuple[dict[Any, Any], Any]]] = {}  # each by its key
        self._histograms: dict[str, dict[Labels, Histogram]] = {}
        self._holds: dict[Labels, int] = {}
        self._ticked_at = 0.0
        self.delays = Histogram(DELAY_BUCKETS_S)
        self.overheads = Histogram(OVERHEAD_BUCKETS_S)
        self._lines: list[bytes] = []
        self.on_full: Callable[[], None] = _ignore
        self.lines_dropped = 0
        self.retries = 0
        self.ejections = 0
        self.cancels = 0
        self.broken = 0

    def account(
        self, finished: Answered, model: Model | None, label: str, head: RequestHead, now: float
    ) -> None:
        """Count a request that ended at `now`, and make its line."""
        status, started = finished.status, finished.started
        name = "" if model is None else model.name
        row = self._last
        if row.status != status or row.path != label or row.model != name:
            key = (name, label, status)
            self._last = row = self._rows.get(key) or self._open(key)
        row.count += 1
        duration_s = now - started
        wait_s = finished.first_byte_at - started if finished.first_byte_at else 0.0
        if (times := row.times) is not None:
            times.durations.observe(duration_s)
            if wait_s > 0.0:
                times.first_bytes.observe(wait_s)
        taken, given = read_usage(finished.tail) if status == _OK else (0, 0)
        if (tokens := row.tokens) is not None:
            if taken:
                tokens.taken.observe(float(taken))
            if given:
                tokens.given.observe(float(given))
            if finished.events:
                tokens.first.observe(finished.first_token_at - started)
                if (count := given or finished.events) > 1:
                    tokens.pace.observe((now - finished.first_token_at) / (count - 1))
        if self._log_every and self._is_sampled():
            self._lines.append(
                build_line(
                    row.log_head,
                    ts=self._print_time(now),
                    request_id=head.request_id,
                    method=head.method,
                    duration_us=int(duration_s * 1e6),
                    first_byte_us=int(wait_s * 1e6),
                    bytes_out=finished.bytes_out,
                    input_tokens=taken,
                    output_tokens=given,
                )
            )
            if len(self._lines) >= self._lines_max:
                self.on_full()

    def _print_time(self, now: float) -> bytes:
        """Return Unix milliseconds; requests of the same one share its digits."""
        ts_ms = int((self._epoch_s + now) * 1e3)
        if ts_ms != self._ts_ms:
            self._ts_ms = ts_ms
            self._ts = b"%d" % ts_ms
        return self._ts

    def take_lines(self) -> bytes:
        """Return the lines of the access log since the last call."""
        lines, self._lines = self._lines, []
        return b"".join(lines)

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
        row = self._rows[key] = _Row(key, build_head(name, label, status))
        self._series_of.setdefault(name, []).append((self._rows, key))
        if name:
            operation = _OPERATIONS.get(label) or label.rpartition("/")[2]
            error = str(status) if status >= _ERROR else ""
            row.times = _Times(
                self._find("durations", DURATION_BUCKETS_S, name, operation, error),
                self._find("first_bytes", DURATION_BUCKETS_S, name),
            )
            if status == _OK:
                row.tokens = _Tokens(
                    self._find("first_tokens", FIRST_TOKEN_BUCKETS_S, name, operation),
                    self._find("output_times", OUTPUT_TOKEN_BUCKETS_S, name, operation),
                    self._find("tokens", TOKEN_BUCKETS, name, operation, "input"),
                    self._find("tokens", TOKEN_BUCKETS, name, operation, "output"),
                )
        return row

    def _find(self, series: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
        found = self._histograms.setdefault(series, {})
        if labels not in found:
            found[labels] = Histogram(bounds)
            self._series_of.setdefault(labels[0], []).append((found, labels))
        return found[labels]

    def _is_sampled(self) -> bool:
        self._log_skipped += 1
        if self._log_skipped < self._log_every:
            return False
        self._log_skipped = 0
        return True

    def forget(self, names: frozenset[str]) -> Iterator[None]:
        """Drop the series of models that are no longer in the table, in steps."""
        gone = [name for name in self._series_of if name and name not in names]
        self._holds = {key: count for key, count in self._holds.items() if key[0] in names}
        for at, name in enumerate(gone):
            if self._last.model == name:
                self._last = _Row(_NO_KEY, b"")
            for series, key in self._series_of.pop(name):
                del series[key]
            if at % FORGET_MODELS == FORGET_MODELS - 1:
                yield

    def read(self) -> Iterator[tuple[str, Iterable[Entry]]]:
        """Return what was counted: series, and for each its label values and numbers."""
        yield "requests", self._read_requests()
        for series, found in list(self._histograms.items()):
            yield series, _read_used(found)
        yield "holds", [(labels, [count]) for labels, count in self._holds.items()]
        yield "delays", [((), self.delays.read())]
        yield "overheads", [((), self.overheads.read())]
        for name in ("retries", "ejections", "cancels", "broken", "lines_dropped"):
            yield name, [((), [getattr(self, name)])]

    def _read_requests(self) -> Iterator[Entry]:
        for (name, path, status), row in list(self._rows.items()):
            yield (name, path, str(status)), [row.count]


def _join_end(pieces: list[bytes]) -> bytes:
    """Return at least the last `TAIL_BYTES` of what the pieces make."""
    end = pieces[-1]
    at = len(pieces) - 1
    while at > 0 and len(end) < TAIL_BYTES:
        at -= 1
        end = pieces[at][-TAIL_BYTES:] + end
    return end


def _read_used(found: dict[Labels, Histogram]) -> Iterator[Entry]:
    for labels, histogram in list(found.items()):
        if histogram.used:
            yield labels, histogram.read()


def _ignore() -> None:
    """Nobody takes lines yet: they wait."""
