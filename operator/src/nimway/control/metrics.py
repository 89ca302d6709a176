"""The operator's own metrics, in a registry of their own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_MODEL = ("namespace", "nimmodel")


class Metrics:
    """All metric families; names follow Prometheus' conventions, units last."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.writes = Counter(
            "nimway_operator_writes",
            "Requests that changed an object, by kind and verb.",
            ["kind", "verb"],
            registry=self.registry,
        )
        self.reconciles = Histogram(
            "nimway_operator_reconcile_duration_seconds",
            "Time of one reconcile, by kind.",
            ["kind"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
            registry=self.registry,
        )
        self.failures = Counter(
            "nimway_operator_reconcile_failures",
            "Reconciles that failed and come back after a backoff, by kind.",
            ["kind"],
            registry=self.registry,
        )
        self.events = Counter(
            "nimway_operator_events",
            "Transitions of conditions to tell as Events, by type and what became of them.",
            ["type", "outcome"],
            registry=self.registry,
        )
        self.queue = Gauge("nimway_operator_queue_depth", "Keys that wait.", registry=self.registry)
        self.leader = Gauge(
            "nimway_operator_leader", "1 while this process leads.", registry=self.registry
        )
        self.resync_age = Gauge(
            "nimway_operator_resync_age_seconds",
            "Time since all objects were last listed.",
            registry=self.registry,
        )
        self.watch_age = Gauge(
            "nimway_operator_watch_event_age_seconds",
            "Time since the last watch event of any kind.",
            registry=self.registry,
        )
        self.objects = Gauge(
            "nimway_operator_objects", "Objects in the store.", registry=self.registry
        )
        self.routes = Gauge(
            "nimway_operator_routes",
            "Models in a proxy's routing table.",
            ["namespace", "proxy"],
            registry=self.registry,
        )
        self._add_autoscaling()

    def _add_autoscaling(self) -> None:
        self.wakes = Counter(
            "nimway_operator_wakes",
            "Times a sleeping model was woken.",
            _MODEL,
            registry=self.registry,
        )
        self.cold_start = Histogram(
            "nimway_operator_cold_start_seconds",
            "From waking a model to its first available pod.",
            _MODEL,
            buckets=(1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600),
            registry=self.registry,
        )
        self.desired = Gauge(
            "nimway_operator_replicas_desired",
            "Replicas that the autoscaler wants.",
            _MODEL,
            registry=self.registry,
        )
        self.ready = Gauge(
            "nimway_operator_replicas_ready",
            "Ready replicas of a model with autoscaling.",
            _MODEL,
            registry=self.registry,
        )
