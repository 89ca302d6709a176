"""The simulated engine: places, a queue, a clock and a prefix cache instead of a GPU.

Owns which request runs, which waits, when each token is due, and the counts that /v1/metrics shows.
It knows no HTTP and writes no text. A request that is cancelled frees its place at once.
"""

import asyncio
import itertools
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from nimway.sandbox.nim.settings import Behaviour

BLOCK_TOKENS = 16
_TOKENS_PER_YIELD = 32
BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0)


class QueueFullError(Exception):
    """No place runs and no place to wait is left."""


@dataclass(slots=True)
class Histogram:
    """Counts per upper bound of `BUCKETS_S` (one more for +Inf), and their sum in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    sum_s: float = 0.0

    def observe(self, value_s: float) -> None:
        """Count one observation."""
        self.sum_s += value_s
        place = next((i for i, bound in enumerate(BUCKETS_S) if value_s <= bound), len(BUCKETS_S))
        self.counts[place] += 1


@dataclass(slots=True)
class Counters:
    """Totals since the start."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    ttft: Histogram = field(default_factory=Histogram)
    latency: Histogram = field(default_factory=Histogram)


class PrefixCache:
    """Remembers the leading blocks of prompts, the least recently used forgotten first."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def admit(self, prompt: Sequence[bytes], blocks_max: int) -> int:
        """Return how many leading tokens of `prompt` were known, and remember all of it."""
        if blocks_max == 0:
            return 0
        chain, hits, unbroken = 0, 0, True
        for start in range(0, len(prompt) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            chain = hash((chain, tuple(prompt[start : start + BLOCK_TOKENS])))
            unbroken = unbroken and chain in self._blocks
            hits += unbroken
            self._blocks[chain] = None
            self._blocks.move_to_end(chain)
        while len(self._blocks) > blocks_max:
            self._blocks.popitem(last=False)
        return hits * BLOCK_TOKENS


class Run:
    """One request that has a place: its clock, and the tokens it holds in the cache."""

    def __init__(self, behaviour: Behaviour, prompt_tokens: int, cached_tokens: int) -> None:
        self._loop = asyncio.get_running_loop()
        self.started_s = self._loop.time()
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = cached_tokens
        self.generated_tokens = 0
        self.first_token_s: float | None = None
        uncached = prompt_tokens - cached_tokens
        self._first_due_s = self.started_s + behaviour.ttft_s + behaviour.prefill_token_s * uncached
        self._token_s = behaviour.token_s

    async def token(self, index: int) -> None:
        """Wait until token `index` (from 0) is due. Tokens keep to the clock, not to each other."""
        wait_s = self._first_due_s + index * self._token_s - self._loop.time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        elif index % _TOKENS_PER_YIELD == 0:
            await asyncio.sleep(0)
        if self.first_token_s is None:
            self.first_token_s = self._loop.time() - self.started_s
        self.generated_tokens = max(self.generated_tokens, index + 1)


class Engine:
    """The places, the queue before them, and what became of the requests.

    `behaviour` may be replaced at any time; running requests keep their clock.
    """

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.counters = Counters()
        self.loaded = asyncio.Event()
        self._prefixes = PrefixCache()
        self._runs: set[Run] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._places_taken = 0

    @property
    def running(self) -> int:
        """Requests that have a place."""
        return self._places_taken

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def cache_usage(self) -> float:
        """Share of the key-value cache that running requests hold, 0 to 1."""
        held = sum(run.prompt_tokens + run.generated_tokens for run in self._runs)
        return min(1.0, held / self.behaviour.kv_tokens)

    def reconfigure(self, behaviour: Behaviour) -> None:
        """Behave differently from now on; a higher limit lets waiting requests in."""
        self.behaviour = behaviour
        self._let_in()

    def check_queue(self) -> None:
        """Raise QueueFullError if a request that came now could neither run nor wait."""
        if self._full() and len(self._waiting) >= self.behaviour.queue_max:
            raise QueueFullError

    @asynccontextmanager
    async def run(self, prompt: Sequence[bytes]) -> AsyncIterator[Run]:
        """Hold a place for one request, after waiting for it in order of arrival."""
        self.check_queue()
        await self._place()
        loop = asyncio.get_running_loop()
        cached = self._prefixes.admit(prompt, self.behaviour.prefix_cache_blocks)
        run = Run(self.behaviour, len(prompt), cached)
        self._runs.add(run)
        self.counters.prompt_tokens += len(prompt)
        self.counters.prefix_queries += len(prompt)
        self.counters.prefix_hits += cached
        try:
            yield run
            self.counters.finished += 1
            self.counters.latency.observe(loop.time() - run.started_s)
        except (asyncio.CancelledError, GeneratorExit):
            self.counters.cancelled += 1
            raise
        finally:
            self.counters.generation_tokens += run.generated_tokens
            if run.first_token_s is not None:
                self.counters.ttft.observe(run.first_token_s)
            self._runs.discard(run)
            self._places_taken -= 1
            self._let_in()

    def _full(self) -> bool:
        limit = self.behaviour.concurrency_max
        return limit > 0 and self._places_taken >= limit

    async def _place(self) -> None:
        if not self._full() and not self._waiting:
            self._places_taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was let in and cancelled before it woke
                self._places_taken -= 1
                self._let_in()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            self.counters.cancelled += 1
            raise

    def _let_in(self) -> None:
        """Give free places to those that wait; a place is taken here, not when they wake."""
        while self._waiting and not self._full():
            turn = self._waiting.popleft()
            if not turn.cancelled():
                self._places_taken += 1
                turn.set_result(None)


def cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """Return the buckets as Prometheus wants them: upper bound and count up to it."""
    bounds = [*(str(bound) for bound in BUCKETS_S), "+Inf"]
    return [
        (bound, float(total))
        for bound, total in zip(bounds, itertools.accumulate(histogram.counts), strict=True)
    ]
