"""The one place where asyncio tasks are started.

asyncio keeps only a weak reference to a running task and reports an exception that nobody awaited
when the garbage collector happens to come by. `spawn` keeps the reference, names the task and logs
a failure at once.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)
_running: set[asyncio.Task[Any]] = set()


def spawn(coroutine: Coroutine[Any, Any, T], *, name: str) -> "asyncio.Task[T]":
    """Run `coroutine` as a task of the running loop, and log it if it fails."""
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _running.add(task)
    task.add_done_callback(_finished)
    return task


def _finished(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("task failed: %s", task.get_name(), exc_info=error)
