"""One watch on the API server whose events have an arrival time; tests of the event wait on it."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from nimway.sandbox.client import Client
from nimway.tasks import spawn

Manifest = dict[str, Any]
Test = Callable[[str, Manifest], bool]
"""Is this (event type, object) the one?"""


class Watch:
    """Follows one collection from the moment `start` returns."""

    def __init__(self, client: Client, path: str, **query: str) -> None:
        self._client = client
        self._path = path
        self._query = query
        self._expected: list[tuple[Test, asyncio.Future[tuple[float, Manifest]]]] = []
        self._task: asyncio.Task[None] | None = None
        self.objects: dict[tuple[str, str], Manifest] = {}
        """The latest state of every object, by namespace and name."""
        self.added: dict[tuple[str, str], float] = {}
        """When each object was first seen, on the clock of `time.perf_counter`."""

    async def start(self) -> "Watch":
        synced = asyncio.Event()
        self._task = spawn(self._run(synced), name=f"watch {self._path}")
        await synced.wait()
        return self

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def expect(self, test: Test) -> "asyncio.Future[tuple[float, Manifest]]":
        """Return a future of the arrival time and the object of the first event that passes."""
        future: asyncio.Future[tuple[float, Manifest]] = asyncio.get_running_loop().create_future()
        self._expected.append((test, future))
        return future

    async def _run(self, synced: asyncio.Event) -> None:
        async for kind, item in self._client.follow(self._path, **self._query):
            now_s = time.perf_counter()
            if kind == "SYNCED":
                self.objects = {_key(each): each for each in item["items"]}
                synced.set()
                continue
            if kind == "DELETED":
                self.objects.pop(_key(item), None)
            else:
                self.objects[_key(item)] = item
                self.added.setdefault(_key(item), now_s)
            self._tell(now_s, kind, item)

    def _tell(self, now_s: float, kind: str, item: Manifest) -> None:
        waiting = []
        for test, future in self._expected:
            if future.done():
                continue
            if test(kind, item):
                future.set_result((now_s, item))
            else:
                waiting.append((test, future))
        self._expected = waiting


async def until(test: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Ask every 20 ms until `test` holds, and return the time of that."""
    deadline_s = time.perf_counter() + timeout_s
    while not test():
        if time.perf_counter() > deadline_s:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {what}")
        await asyncio.sleep(0.02)
    return time.perf_counter()


def _key(item: Manifest) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def is_named(name: str, _: str, item: Manifest) -> bool:
    return bool(item["metadata"]["name"] == name)


def is_successor(name: str, uid: str, _: str, item: Manifest) -> bool:
    return is_named(name, "", item) and item["metadata"]["uid"] != uid


def spec_holds(text: str, _: str, item: Manifest) -> bool:
    return text in str(item["spec"])
