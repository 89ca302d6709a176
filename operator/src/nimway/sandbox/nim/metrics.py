"""The engine's numbers in Prometheus' text format, under the names of NIM 1.x or 2.x.

Owns names and help texts; the numbers are the engine's.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest

from nimway.sandbox.nim.engine import Engine, cumulative

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Snapshot:
    """The families of one scrape."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def exposition(engine: Engine, model: str) -> bytes:
    """Return all metrics, labelled with `model`."""
    registry = CollectorRegistry(auto_describe=False)
    prefix = "vllm:" if engine.behaviour.generation > 1 else ""
    registry.register(_Snapshot(_families(engine, model, prefix)))
    return generate_latest(registry)


def _families(engine: Engine, model: str, prefix: str) -> Iterable[Metric]:
    counters, behaviour = engine.counters, engine.behaviour
    gauges = {
        "num_requests_running": ("Requests running now.", engine.running),
        "num_requests_waiting": ("Requests waiting for a place.", engine.waiting),
        "num_request_max": ("Requests that may run at once.", behaviour.concurrency_max),
        "gpu_cache_usage_perc": ("Share of the simulated cache in use.", engine.cache_usage),
    }
    if prefix:
        gauges["kv_cache_usage_perc"] = gauges["gpu_cache_usage_perc"]
    for name, (text, value) in gauges.items():
        gauge = GaugeMetricFamily(prefix + name, text, labels=["model_name"])
        gauge.add_metric([model], value)
        yield gauge
    totals = {
        "prompt_tokens": ("Prompt tokens read.", counters.prompt_tokens),
        "generation_tokens": ("Tokens written.", counters.generation_tokens),
        "prefix_cache_queries": ("Prompt tokens looked up.", counters.prefix_queries),
        "prefix_cache_hits": ("Prompt tokens found.", counters.prefix_hits),
        "request_success" if prefix else "request_finish": (
            "Requests that ran to their end.",
            counters.finished,
        ),
        "request_failure": ("Requests whose client left.", counters.cancelled),
    }
    for name, (text, value) in totals.items():
        counter = CounterMetricFamily(prefix + name, text, labels=["model_name"])
        counter.add_metric([model], value)
        yield counter
    histograms = {
        "time_to_first_token_seconds": ("Time to the first token.", counters.ttft),
        "e2e_request_latency_seconds": ("Time of a whole request.", counters.latency),
    }
    for name, (text, observed) in histograms.items():
        histogram = HistogramMetricFamily(prefix + name, text, labels=["model_name"])
        histogram.add_metric([model], cumulative(observed), observed.sum_s)
        yield histogram
