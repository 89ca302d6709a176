"""The Prometheus text of a proxy pod: its workers' counters added up, and the parent's own (pure).

Names follow OpenTelemetry's GenAI conventions where there is one. Owns names, help and units.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from nimway.proxy.messages import Counters
from nimway.proxy.metrics import (
    DELAY_BUCKETS_S,
    DURATION_BUCKETS_S,
    FIRST_TOKEN_BUCKETS_S,
    HOLD_BUCKETS_S,
    OUTPUT_TOKEN_BUCKETS_S,
    OVERHEAD_BUCKETS_S,
    TOKEN_BUCKETS,
)

Series = dict[tuple[str, ...], list[float]]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family; `source` is its name in `Counters`, summed over the workers."""

    name: str
    kind: str
    help: str
    source: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def is_total(self) -> bool:
        """Whether it only ever grows: it outlives the worker that counted it."""
        return self.kind != "gauge"


_MODEL = "gen_ai_request_model"
_OPERATION = "gen_ai_operation_name"
_ADDRESS = "address"  # always the last label
MODEL_LABELS = frozenset(("model", _MODEL))

METRICS = (
    Metric(
        "nimway_proxy_requests_total",
        "counter",
        "Requests that ended, by model, path and status; 499: the client left first.",
        "requests",
        ("model", "path", "status"),
    ),
    Metric(
        "gen_ai_server_request_duration_seconds",
        "histogram",
        "From the request's head to the answer's last byte.",
        "durations",
        (_MODEL, _OPERATION, "error_type"),
        DURATION_BUCKETS_S,
    ),
    Metric(
        "gen_ai_server_time_to_first_token_seconds",
        "histogram",
        "From a streamed request's head to the first event of its answer.",
        "first_tokens",
        (_MODEL, _OPERATION),
        FIRST_TOKEN_BUCKETS_S,
    ),
    Metric(
        "gen_ai_server_time_per_output_token_seconds",
        "histogram",
        "Time of a stream after its first event, by tokens after the first.",
        "output_times",
        (_MODEL, _OPERATION),
        OUTPUT_TOKEN_BUCKETS_S,
    ),
    Metric(
        "gen_ai_client_token_usage",
        "histogram",
        "Tokens of a request (input) and of its answer (output), as the answer says.",
        "tokens",
        (_MODEL, _OPERATION, "gen_ai_token_type"),
        TOKEN_BUCKETS,
    ),
    Metric(
        "nimway_proxy_first_byte_seconds",
        "histogram",
        "From the request's head to the head of the model server's answer.",
        "first_bytes",
        ("model",),
        DURATION_BUCKETS_S,
    ),
    Metric(
        "nimway_proxy_requests_in_flight",
        "gauge",
        "Requests now with a model server or on their way.",
        "in_flight",
        ("model",),
    ),
    Metric("nimway_proxy_requests_queued", "gauge", "Requests now waiting.", "queued", ("model",)),
    Metric(
        "nimway_proxy_requests_held",
        "gauge",
        "Those of them that wait for a model without a ready pod.",
        "held",
        ("model",),
    ),
    Metric(
        "nimway_proxy_hold_duration_seconds",
        "histogram",
        "How long requests waited, by what for: not_ready (no pod), busy (no place).",
        "hold_durations",
        ("model", "cause"),
        HOLD_BUCKETS_S,
    ),
    Metric(
        "nimway_proxy_holds_total",
        "counter",
        "Waits that ended, by cause and outcome; refused: the queue was full, or waiting is off.",
        "holds",
        ("model", "cause", "outcome"),
    ),
    Metric(
        "nimway_proxy_demand_total",
        "counter",
        "Requests that asked for the model, refused ones included.",
        "demand",
        ("model",),
    ),
    Metric(
        "nimway_proxy_retries_total", "counter", "Requests sent on to another endpoint.", "retries"
    ),
    Metric(
        "nimway_proxy_ejections_total", "counter", "Endpoints left out for failing.", "ejections"
    ),
    Metric("nimway_proxy_cancels_total", "counter", "Requests whose client left first.", "cancels"),
    Metric(
        "nimway_proxy_broken_answers_total",
        "counter",
        "Answers that the model server did not bring to their end.",
        "broken",
    ),
    Metric(
        "nimway_proxy_log_lines_dropped_total",
        "counter",
        "Lines of the access log that its reader did not take in time.",
        "lines_dropped",
    ),
    Metric(
        "nimway_proxy_cpu_seconds_total",
        "counter",
        "CPU time of the workers: by requests, what the proxy itself costs.",
        "cpu",
    ),
    Metric(
        "nimway_proxy_endpoint_picks_total",
        "counter",
        "Requests that chose an endpoint, by model and address; it goes with the endpoint.",
        "picks",
        ("model", "address"),
    ),
    Metric(
        "nimway_proxy_endpoint_ejections_total",
        "counter",
        "Times an endpoint was left out for failing, by model and address.",
        "endpoint_ejections",
        ("model", "address"),
    ),
    Metric(
        "nimway_proxy_overhead_seconds",
        "histogram",
        "From a request's last byte to its being sent on, where a connection was there.",
        "overheads",
        bounds=OVERHEAD_BUCKETS_S,
    ),
    Metric(
        "nimway_proxy_loop_delay_seconds",
        "histogram",
        "How late a worker's timer was, four times a second: what waiting for the loop adds.",
        "delays",
        bounds=DELAY_BUCKETS_S,
    ),
    Metric("nimway_proxy_connections", "gauge", "Clients' connections now.", "connections"),
    Metric(
        "nimway_proxy_upstream_connections",
        "gauge",
        "Connections to model servers now, idle ones included.",
        "upstream_connections",
    ),
    Metric("nimway_proxy_bodies_bytes", "gauge", "Bytes of request bodies held.", "bodies_bytes"),
    Metric("nimway_proxy_workers", "gauge", "Workers that serve.", "workers"),
    Metric("nimway_proxy_worker_restarts_total", "counter", "Workers that ended.", "restarts"),
    Metric(
        "nimway_proxy_early_endpoints_total",
        "counter",
        "Pods that answered held requests before Kubernetes called them ready.",
        "early_endpoints",
    ),
    Metric(
        "nimway_proxy_table_info", "gauge", "1, with the revision served.", "table", ("revision",)
    ),
    Metric(
        "nimway_proxy_table_age_seconds",
        "gauge",
        "Since the routing table was last read or confirmed by the API server.",
        "table_age",
    ),
    Metric("nimway_proxy_table_models", "gauge", "Models in the table.", "table_models"),
    Metric(
        "nimway_proxy_table_errors_total",
        "counter",
        "Routing tables that were refused; the last good one stays.",
        "table_errors",
    ),
    Metric(
        "nimway_proxy_watch_errors_total",
        "counter",
        "Lists and watches that failed, by resource.",
        "watch_errors",
        ("resource",),
    ),
    Metric(
        "nimway_proxy_endpoints_ready",
        "gauge",
        "Endpoints that may get requests, by model (as one worker sees them).",
        "endpoints",
        ("model",),
    ),
)

_NOT_SUMMED = frozenset(("endpoints",))


def add_up(reports: Iterable[Counters]) -> dict[str, Series]:
    """Add the workers' reports: counters, gauges and histograms alike are sums."""
    total: dict[str, Series] = {}
    for report in reports:
        for name, entries in report.values.items():
            series = total.setdefault(name, {})
            for labels, values in entries:
                old = series.get(labels)
                if old is None or name in _NOT_SUMMED:
                    series[labels] = list(values)
                else:
                    series[labels] = [a + b for a, b in zip(old, values, strict=True)]
    return total


def keep_totals(
    reports: Iterable[Counters], models: Container[str], addresses: Container[str] = ()
) -> Counters:
    """Return what must not be lost of workers that ended.

    That is no gauge, no model out of the table, and no endpoint but those of `addresses`.
    """
    total = add_up(reports)
    kept: dict[str, list[tuple[tuple[str, ...], list[float]]]] = {}
    for metric in METRICS:
        series = total.get(metric.source)
        if series is None or not metric.is_total:
            continue
        at = next((at for at, label in enumerate(metric.labels) if label in MODEL_LABELS), -1)
        kept[metric.source] = [
            (labels, numbers)
            for labels, numbers in series.items()
            if (at < 0 or not labels[at] or labels[at] in models)
            and (_ADDRESS not in metric.labels or labels[-1] in addresses)
        ]
    return Counters(0, kept)


def encode_text(values: dict[str, Series]) -> bytes:
    """Return the text exposition, version 0.0.4."""
    lines: list[str] = []
    for metric in METRICS:
        series = values.get(metric.source)
        if series is None:
            continue
        lines.append(f"# HELP {metric.name} {metric.help}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for labels, numbers in sorted(series.items()):
            pairs = list(zip(metric.labels, labels, strict=True))
            if metric.kind == "histogram":
                lines += _histogram(metric, pairs, numbers)
            else:
                lines.append(f"{metric.name}{_labels(pairs)} {_number(numbers[0])}")
    return ("\n".join(lines) + "\n").encode()


def _histogram(
    metric: Metric, pairs: list[tuple[str, str]], numbers: Sequence[float]
) -> Iterable[str]:
    name, count = metric.name, 0.0
    for bound, value in zip((*metric.bounds, "+Inf"), numbers[:-1], strict=True):
        count += value
        yield f"{name}_bucket{_labels([*pairs, ('le', str(bound))])} {_number(count)}"
    yield f"{name}_sum{_labels(pairs)} {_number(numbers[-1])}"
    yield f"{name}_count{_labels(pairs)} {_number(count)}"


def _labels(pairs: Sequence[tuple[str, str]]) -> str:
    if not pairs:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in pairs) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(round(value, 6))
