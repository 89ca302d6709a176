"""A queue of keys that need a reconcile.

Owns when a key is due: marks of one key coalesce, a key is worked on by one worker at a time, a
failed key comes back after an exponential backoff with jitter, a held key not before its time, a
deferred key after all others. It has no clock and no tasks of its own: time comes in as an argument
(seconds of a monotonic clock), so every rule here is tested without waiting. `Workers` drives it.
"""

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable, Hashable, Iterator
from typing import Generic, TypeVar

from nimway.tasks import spawn

K = TypeVar("K", bound=Hashable)

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 30.0
_BACKOFF_DOUBLINGS_MAX = 16

DEFERRED_MAX = 8
"""Deferred keys that run at a time: the API server gives Services their addresses one by one."""

_log = logging.getLogger(__name__)


class WorkQueue(Generic[K]):
    """Keys with the time each is due. `jitter` returns numbers in [0, 1).

    Of deferred keys at most `deferred_max` run at a time, so that others find a free worker.
    """

    def __init__(self, jitter: Callable[[], float], *, deferred_max: int = DEFERRED_MAX) -> None:
        self._jitter = jitter
        self._deferred_max = deferred_max
        self._due: dict[K, float] = {}
        self._first = _Heap[K]()
        self._last = _Heap[K]()
        self._deferred: set[K] = set()
        self._running_last: set[K] = set()
        self._running: set[K] = set()
        self._failures: dict[K, int] = {}
        self._held: dict[K, float] = {}

    def __len__(self) -> int:
        return len(self._due) + len(self._running - self._due.keys())

    @property
    def depth(self) -> int:
        """Keys that wait, due or not."""
        return len(self._due)

    def mark(self, key: K, now_s: float, *, delay_s: float = 0.0) -> None:
        """Ask for a reconcile of `key` in `delay_s`, or earlier if it is already asked for."""
        due_s = max(now_s + delay_s, self._held.get(key, now_s))
        known = self._due.get(key)
        if known is None or due_s < known:
            self._schedule(key, due_s)

    def hold(self, key: K, until_s: float) -> None:
        """Let `key` not run before `until_s`, whatever is marked."""
        self._held[key] = until_s

    def defer(self, key: K) -> None:
        """Let `key` run, once, only when no other key is due, whatever is marked."""
        self._deferred.add(key)
        if key in self._due:
            self._schedule(key, self._due[key])

    def take(self, now_s: float) -> K | None:
        """Return a key that is due and make it running, or None."""
        for heap in self._open():
            due_s = self._next_of(heap)
            if due_s is not None and due_s <= now_s:
                break
        else:
            return None
        key = heap.pop()
        del self._due[key]
        if key in self._deferred:
            self._deferred.discard(key)
            self._running_last.add(key)
        if self._held.get(key, now_s) <= now_s:
            self._held.pop(key, None)
        self._running.add(key)
        return key

    def done(self, key: K, now_s: float, *, ok: bool) -> float:
        """End the run of `key`; if not `ok` it runs again after the backoff, which is returned."""
        self._running.discard(key)
        self._running_last.discard(key)
        backoff_s = 0.0
        if ok:
            self._failures.pop(key, None)
        else:
            failures = self._failures.get(key, 0)
            self._failures[key] = failures + 1
            backoff_s = self._backoff(failures)
            # Marks of this run may be echoes of its own writes: they wait as well.
            self._due[key] = now_s + backoff_s
        due_s = self._due.get(key)
        if due_s is not None:
            # Marks that came during the run wait outside the heap; a hold may have come as well.
            self._schedule(key, max(due_s, self._held.get(key, due_s)))
        return backoff_s

    def next_due_s(self) -> float | None:
        """Return when the next key becomes due; None if nothing waits that could run."""
        due = [due_s for heap in self._open() if (due_s := self._next_of(heap)) is not None]
        return min(due, default=None)

    def _backoff(self, failures: int) -> float:
        doubled = BACKOFF_FIRST_S * 2 ** min(failures, _BACKOFF_DOUBLINGS_MAX)
        return float(min(doubled, BACKOFF_MAX_S) * (0.5 + self._jitter() / 2))

    def _schedule(self, key: K, due_s: float) -> None:
        self._due[key] = due_s
        if key not in self._running:
            (self._last if key in self._deferred else self._first).push(due_s, key)

    def _open(self) -> Iterator["_Heap[K]"]:
        """Yield the heaps that keys may be taken from, in their order."""
        yield self._first
        if len(self._running_last) < self._deferred_max:
            yield self._last

    def _next_of(self, heap: "_Heap[K]") -> float | None:
        """Return when the first key of a heap is due; entries that are out of date are dropped."""
        is_last = heap is self._last
        while heap.entries:
            due_s, _, key = heap.entries[0]
            valid = self._due.get(key) == due_s and key not in self._running
            if valid and (key in self._deferred) is is_last:
                return due_s
            heap.pop()
        return None


class _Heap(Generic[K]):
    """Keys in the order of their times, and of their arrival where these are equal."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, int, K]] = []
        self._sequence = 0

    def push(self, due_s: float, key: K) -> None:
        self._sequence += 1
        heapq.heappush(self.entries, (due_s, self._sequence, key))

    def pop(self) -> K:
        return heapq.heappop(self.entries)[2]


class Workers(Generic[K]):
    """Runs `reconcile(key)` for due keys, at most `count` at a time.

    `reconcile` raises to be called again after a backoff. Nothing runs before `start`.
    """

    def __init__(
        self,
        queue: WorkQueue[K],
        reconcile: Callable[[K], Awaitable[None]],
        *,
        count: int,
        clock: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._reconcile = reconcile
        self._count = count
        self._clock = clock
        self._wake = asyncio.Event()
        self._active: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None

    @property
    def depth(self) -> int:
        """Keys that wait, due or not."""
        return self._queue.depth

    def mark(self, key: K, *, delay_s: float = 0.0) -> None:
        """Ask for a reconcile of `key`."""
        self._queue.mark(key, self._clock(), delay_s=delay_s)
        self._wake.set()

    def hold(self, key: K, delay_s: float) -> None:
        """Let `key` not run again for `delay_s`."""
        self._queue.hold(key, self._clock() + delay_s)

    def defer(self, key: K) -> None:
        """Let `key` run, once, only when no other is due."""
        self._queue.defer(key)

    def start(self) -> None:
        """Begin to run what is due."""
        self._loop = spawn(self._run(), name="work queue")

    async def stop(self, timeout_s: float) -> None:
        """Start nothing more, give what runs `timeout_s` to finish, then cancel it."""
        if self._loop is not None:
            self._loop.cancel()
        if self._active:
            _, unfinished = await asyncio.wait(self._active, timeout=timeout_s)
            for task in unfinished:
                task.cancel()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            while len(self._active) < self._count:
                key = self._queue.take(self._clock())
                if key is None:
                    break
                task = spawn(self._work(key), name=f"reconcile {key}")
                self._active.add(task)
                task.add_done_callback(self._finished)
            due_s = self._queue.next_due_s() if len(self._active) < self._count else None
            try:
                async with asyncio.timeout(None if due_s is None else due_s - self._clock()):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._active.discard(task)
        self._wake.set()

    async def _work(self, key: K) -> None:
        ok = False
        try:
            await self._reconcile(key)
            ok = True
        except Exception as error:  # noqa: BLE001 - whatever fails, this key alone backs off
            # The reconciler has told the user; this is for us.
            _log.warning("reconcile failed: key=%s error=%r", key, error, exc_info=_bug(error))
        finally:
            self._queue.done(key, self._clock(), ok=ok)


class Lanes(Generic[K]):
    """Several queues side by side, so that many keys of one kind do not hold up another's few.

    `lane` names the workers of a key.
    """

    def __init__(self, lane: Callable[[K], str], workers: dict[str, Workers[K]]) -> None:
        self._lane = lane
        self._workers = workers

    def mark(self, key: K, *, delay_s: float = 0.0) -> None:
        """Ask for a reconcile of `key`."""
        self._workers[self._lane(key)].mark(key, delay_s=delay_s)

    def hold(self, key: K, delay_s: float) -> None:
        """Let `key` not run again for `delay_s`."""
        self._workers[self._lane(key)].hold(key, delay_s)

    def defer(self, key: K) -> None:
        """Let `key` run, once, only when no other of its lane is due."""
        self._workers[self._lane(key)].defer(key)

    @property
    def depth(self) -> int:
        """Keys that wait, due or not."""
        return sum(each.depth for each in self._workers.values())

    def start(self) -> None:
        """Begin to run what is due."""
        for each in self._workers.values():
            each.start()

    async def stop(self, timeout_s: float) -> None:
        """Stop all lanes at once."""
        await asyncio.gather(*(each.stop(timeout_s) for each in self._workers.values()))


def _bug(error: Exception) -> bool:
    """Tell whether the error is none of those that the operator's modules define."""
    return not type(error).__module__.startswith("nimway.")
