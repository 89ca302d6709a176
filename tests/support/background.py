"""An asynchronous server in a thread of its own, for tests whose client blocks."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TypeVar

import uvloop

T = TypeVar("T")

CLOSE_S = 0.05


@contextmanager
def in_background(manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Enter `manager` in the event loop of a new thread; leave it there at the end."""
    entered: Future[T] = Future()
    leaving: Future[None] = Future()

    async def hold() -> None:
        async with manager as value:
            entered.set_result(value)
            await asyncio.wrap_future(leaving)
        # What was aborted ends in later turns; uvloop refuses to close a loop before (EBUSY).
        await asyncio.sleep(CLOSE_S)

    def run() -> None:
        try:
            uvloop.run(hold())
        except BaseException as error:
            if entered.done():
                raise
            entered.set_exception(error)

    thread = threading.Thread(target=run, name="background server")
    thread.start()
    try:
        yield entered.result()
    finally:
        leaving.set_result(None)
        thread.join()
