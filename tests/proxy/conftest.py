"""The proxy's tests run on uvloop, as the proxy does."""

import asyncio
from collections.abc import Callable, Mapping

import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that a worker runs on."""
    return {"uvloop": uvloop.new_event_loop}
