"""The operator's own pages over real sockets, by a clock that the tests move."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from nimway.control.health import BLIND_S, HealthServer
from nimway.control.metrics import Metrics
from tests.support.ports import free_port

BEGAN_S = 1000.0
FORBIDDEN = "persistentvolumeclaims is forbidden: cannot list at the cluster scope"
ALIVE = (200, "ok\n")


class Operator:
    """What the pages ask of an operator, and a client that reads them."""

    def __init__(self) -> None:
        self.now_s = BEGAN_S
        self.listed_s: float | None = None
        self.failure = ""
        self.refreshed = 0
        self.port = free_port()
        self.server = HealthServer(
            Metrics(),
            clock=lambda: self.now_s,
            listed_s=lambda: self.listed_s,
            failure=lambda: self.failure,
            refresh=self._refresh,
        )

    def _refresh(self) -> None:
        self.refreshed += 1

    async def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status, await answer.text()


@pytest.fixture
async def operator() -> AsyncIterator[Operator]:
    made = Operator()
    await made.server.start(made.port)
    yield made
    await made.server.stop()


async def test_an_operator_that_never_got_a_list_is_not_alive_for_ever(operator: Operator) -> None:
    operator.failure = FORBIDDEN
    operator.now_s = BEGAN_S + BLIND_S
    assert await operator.get("/healthz") == ALIVE
    operator.now_s += 1
    status, text = await operator.get("/healthz")
    assert status == 503
    assert text == f"no complete list of the cluster for 301 s: {FORBIDDEN}\n"


async def test_blindness_counts_from_the_last_list(operator: Operator) -> None:
    operator.listed_s = BEGAN_S + 10_000
    operator.now_s = operator.listed_s + BLIND_S
    assert await operator.get("/healthz") == ALIVE
    operator.now_s += 1
    assert await operator.get("/healthz") == (
        503,
        "no complete list of the cluster for 301 s\n",
    )
    operator.listed_s = operator.now_s
    assert await operator.get("/healthz") == ALIVE


async def test_it_is_ready_from_its_first_list_on_and_tells_what_keeps_it(
    operator: Operator,
) -> None:
    unready = "the first list of the cluster is not done"
    assert await operator.get("/readyz") == (503, f"{unready}\n")
    operator.failure = FORBIDDEN
    assert await operator.get("/readyz") == (503, f"{unready}: {FORBIDDEN}\n")
    operator.listed_s = BEGAN_S
    operator.now_s = BEGAN_S + 2 * BLIND_S
    assert await operator.get("/readyz") == ALIVE, "blind is liveness's word"


async def test_gauges_are_brought_up_to_date_before_they_are_read(operator: Operator) -> None:
    status, text = await operator.get("/metrics")
    assert (status, operator.refreshed) == (200, 1)
    assert "nimway_operator_resync_age_seconds" in text
