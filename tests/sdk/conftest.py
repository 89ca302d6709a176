"""Where the client libraries' tests send their requests: to a simulated NIM, and to the proxy."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from nimway.routes import Policy
from tests.sdk.names import EMBEDDER, LLAMA, NOT_READY, Inference
from tests.support.background import in_background
from tests.support.nim import running_nim
from tests.support.proxy import Served, run_proxy


@asynccontextmanager
async def serving_directly() -> AsyncIterator[Inference]:
    """One NIM that answers to both names."""
    async with running_nim(LLAMA, EMBEDDER) as nim:
        yield Inference(nim.url, [LLAMA, EMBEDDER], [nim])


@asynccontextmanager
async def serving_proxied() -> AsyncIterator[Inference]:
    """The proxy, before two replicas of one model, one of another, and none of a third."""
    async with (
        running_nim(LLAMA) as one,
        running_nim(LLAMA) as other,
        running_nim(EMBEDDER) as embedder,
        run_proxy(
            Served(LLAMA, [("127.0.0.1", nim.server.port) for nim in (one, other)]),
            Served(EMBEDDER, [("127.0.0.1", embedder.server.port)]),
            Served(NOT_READY, policy=Policy(queue_wait_max_s=2)),
        ) as proxy,
    ):
        yield Inference(proxy.base_url, [LLAMA, NOT_READY, EMBEDDER], [one, other])


@pytest.fixture(
    scope="session", params=[serving_directly, serving_proxied], ids=["direct", "proxied"]
)
def inference(request: pytest.FixtureRequest) -> Iterator[Inference]:
    """The address that a user would put into an SDK, without a path."""
    with in_background(request.param()) as serving:
        yield serving


@pytest.fixture
def proxied() -> Iterator[Inference]:
    """As `inference` behind the proxy, for one test alone, which may break its NIMs."""
    with in_background(serving_proxied()) as serving:
        yield serving
