"""How one model's requests are treated: its policy from the table over the proxy's own settings.

Owns what follows from a `Policy` alone (pure): waits, tries, which APIs, and this worker's share of
limits: a model's own count over all pods of the proxy, the proxy's default at each of its pods.
What is done with them is `exchange.py`'s business.
"""

from dataclasses import dataclass

from nimway.proxy.settings import Settings
from nimway.routes import LEAST_REQUESTS, Policy


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for one model in one worker; times in seconds.

    `concurrency` is how many requests one endpoint gets at a time from this worker, 0 for any
    number; `queue_requests` how many may wait for that. `apis` is empty where all are allowed.
    `plain` says that a request needs no look at concurrency, APIs or strategy.
    """

    timeout_connect_s: float
    timeout_first_byte_s: float
    timeout_idle_s: float
    timeout_total_s: float
    retries: int
    strategy: str
    apis: frozenset[str]
    concurrency: int
    queue_requests: int
    queue_wait_s: float
    plain: bool


def resolve(policy: Policy, settings: Settings, *, pods: int, workers: int) -> Limits:
    """Return the limits of a model in one of `workers` workers of one of the proxy's `pods` pods.

    Pods are counted only once some model has a limit of its own. So the default must not depend on
    their number: one model's limit would change how many requests of all others may wait.
    """
    if policy.queue_requests_max is None:
        queue_requests = share(settings.queue_requests_max, workers)
    else:
        queue_requests = share(policy.queue_requests_max, pods * workers)
    return Limits(
        timeout_connect_s=_given(policy.timeout_connect_s, settings.timeout_connect_s),
        timeout_first_byte_s=_given(policy.timeout_first_byte_s, settings.timeout_first_byte_s),
        timeout_idle_s=_given(policy.timeout_idle_s, settings.timeout_idle_s),
        timeout_total_s=_given(policy.timeout_total_s, settings.timeout_total_s),
        retries=policy.retries,
        strategy=policy.strategy,
        apis=frozenset(policy.apis),
        concurrency=share(policy.max_concurrency or 0, pods * workers),
        queue_requests=queue_requests,
        queue_wait_s=_given(policy.queue_wait_max_s, settings.queue_wait_max_s),
        plain=not policy.max_concurrency and policy.strategy == LEAST_REQUESTS and not policy.apis,
    )


def share(limit: int, workers: int) -> int:
    """Return one worker's part of `limit`: rounded down, at least 1, but 0 of 0.

    No state is shared: up to `workers - 1` places of the limit stay unused, and a limit below the
    number of workers is exceeded, as each has at least one.
    """
    return max(1, limit // workers) if limit else 0


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
