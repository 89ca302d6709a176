"""PX-11: an ejected pod is half open: one probe decides."""

import asyncio

from tests.proxy.test_conversations import conversation
from tests.proxy.test_faults_clients import many
from tests.proxy.vectors import BODY, MODEL
from tests.support.proxy import Served
from tests.support.proxy_wire import (
    OK,
    Call,
    Client,
    ModelServer,
    connect,
    post,
    run_model_server,
    until,
)

FAILED = b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"


async def test_an_ejected_pod_gets_one_probe_whatever_else_ends_there() -> None:
    """A request from before the ejection that ends says nothing of the probe."""
    gate = asyncio.Event()

    async def bad(call: Call) -> None:
        if len(sick.calls) in (1, 5):  # one from before, and the probe
            await gate.wait()
            await call.send(OK)
        else:
            await call.send(FAILED)

    async def good(call: Call) -> None:
        if len(well.calls) == 1:
            await gate.wait()
        await call.send(OK)

    async with (
        run_model_server(bad) as sick,
        run_model_server(good) as well,
        conversation(sick) as (proxy, client),
        many(proxy, 2) as (before, held),
    ):
        try:
            await before.send(post(BODY))
            await until(lambda: len(sick.calls) == 1)
            proxy.serve(Served(MODEL, [sick.address, well.address]))
            await held.send(post(BODY))
            await until(lambda: len(well.calls) == 1)  # now both have one under way
            async with asyncio.timeout(20):
                while not proxy.server.meters.ejections:
                    await client.ask(post(BODY))
                proxy.advance(9)
                async with connect(proxy.port) as probing:
                    await _find_probe(probing, sick, well)
                    before.writer.transport.abort()
                    await until(lambda: proxy.server.exchanges == 2)
                    assert [(await client.ask(post(BODY))).status for _ in range(20)] == [200] * 20
                    assert len(sick.calls) == 5
                    gate.set()
                    assert [(await each.read()).status for each in (held, probing)] == [200, 200]
        finally:
            gate.set()


async def _find_probe(client: Client, sick: ModelServer, well: ModelServer) -> None:
    """Ask until a request stays with the ejected pod; both pods look alike."""
    while True:
        calls = len(well.calls)
        await client.send(post(BODY))
        await until(lambda: len(sick.calls) == 5 or len(well.calls) > calls)  # noqa: B023 # awaited here
        if len(sick.calls) == 5:
            return
        await client.read()
