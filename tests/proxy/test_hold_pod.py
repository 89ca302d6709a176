"""A whole proxy pod that ends, one way or the other, while it holds requests: nobody hangs."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from nimway import routes
from tests.support.cluster import Cluster, eventually
from tests.support.proxy_pod import Pod, Start, build_table, write_table

pytestmark = pytest.mark.cluster

WAITERS = 12


@contextmanager
def holding(
    cluster: Cluster, namespace: str, start_pod: Start
) -> Iterator[tuple[Pod, list[Future[httpx.Response]]]]:
    """A pod that holds requests for a model without endpoints, as its report says, too."""
    write_table(cluster, namespace, routes.encode(build_table(namespace, "asleep")))
    pod = start_pod(workers=2)
    eventually(pod.is_ready, "ready")
    url = f"http://127.0.0.1:{pod.port}/v1/completions"
    with ThreadPoolExecutor(WAITERS) as pool:
        asked = [
            pool.submit(httpx.post, url, json={"model": "asleep"}, timeout=30)
            for _ in range(WAITERS)
        ]
        key = f"{namespace}/asleep"
        eventually(lambda: pod.state().models[key].queued == WAITERS, "all are held")
        assert pod.state().models[key].demand_total == WAITERS
        assert pod.metric("nimway_proxy_requests_held", '{model="asleep"}') == WAITERS
        yield pod, asked


def assert_sent_elsewhere(asked: list[Future[httpx.Response]]) -> None:
    for each in asked:
        answer = each.result(10)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
        assert int(answer.headers["retry-after"]) <= 5
        assert answer.headers["x-should-retry"] == "true"


def test_sigterm_answers_all_who_wait(cluster: Cluster, namespace: str, start_pod: Start) -> None:
    with holding(cluster, namespace, start_pod) as (pod, asked):
        start = time.monotonic()
        pod.process.send_signal(signal.SIGTERM)
        assert_sent_elsewhere(asked)
        assert pod.process.wait(10) == 0
        assert time.monotonic() - start < 5


def test_a_killed_parent_leaves_nobody_hanging(
    cluster: Cluster, namespace: str, start_pod: Start
) -> None:
    with holding(cluster, namespace, start_pod) as (pod, asked):
        pod.process.kill()
        assert_sent_elsewhere(asked)
