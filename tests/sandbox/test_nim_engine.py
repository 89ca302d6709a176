"""The simulated engine's clock, queue and prefix cache, without sockets."""

import asyncio
from collections.abc import Sequence

import pytest

from nimway.sandbox.nim import tokens
from nimway.sandbox.nim.engine import Engine, PrefixCache, QueueFullError
from nimway.sandbox.nim.settings import Behaviour
from nimway.sandbox.nim.text import stopped, vocabulary, words_for
from nimway.tasks import spawn

FREE = Behaviour(load_s=0, ttft_s=0, token_s=0)


async def test_requests_over_the_limit_wait_in_order_of_arrival() -> None:
    engine = Engine(Behaviour(concurrency_max=1))
    order: list[int] = []
    gates = [asyncio.Event() for _ in range(3)]

    async def request(number: int) -> None:
        async with engine.run([]):
            order.append(number)
            await gates[number].wait()

    tasks = [spawn(request(number), name=f"request {number}") for number in range(3)]
    await _settle()
    assert (engine.running, engine.waiting, order) == (1, 2, [0])
    for number, gate in enumerate(gates):
        gate.set()
        await tasks[number]
        await _settle()
    assert (engine.running, engine.waiting, order) == (0, 0, [0, 1, 2])


async def test_a_waiting_request_that_is_cancelled_frees_its_place_in_the_queue() -> None:
    engine = Engine(Behaviour(concurrency_max=1))
    gate = asyncio.Event()

    async def request() -> None:
        async with engine.run([]):
            await gate.wait()

    first, second, third = (spawn(request(), name="request") for _ in range(3))
    await _settle()
    second.cancel()
    await _settle()
    assert (engine.running, engine.waiting) == (1, 1)
    gate.set()
    await asyncio.gather(first, third)
    assert (engine.running, engine.waiting, engine.counters.cancelled) == (0, 0, 1)


async def test_a_request_cancelled_in_the_instant_it_is_let_in_gives_the_place_on() -> None:
    engine = Engine(Behaviour(concurrency_max=1))
    gate = asyncio.Event()

    async def request() -> None:
        async with engine.run([]):
            await gate.wait()

    first = spawn(request(), name="first")
    await _settle()
    second, third = spawn(request(), name="second"), spawn(request(), name="third")
    await _settle()
    first.cancel()
    await asyncio.sleep(0)
    second.cancel()
    await _settle()
    gate.set()
    await third
    assert engine.running == 0


async def test_a_full_queue_refuses() -> None:
    engine = Engine(Behaviour(concurrency_max=1, queue_max=0))
    async with engine.run([]):
        with pytest.raises(QueueFullError):
            engine.check_queue()
    engine.check_queue()


async def test_raising_the_limit_lets_waiting_requests_in() -> None:
    engine = Engine(Behaviour(concurrency_max=1))
    gate = asyncio.Event()

    async def request() -> None:
        async with engine.run([]):
            await gate.wait()

    tasks = [spawn(request(), name="request") for _ in range(3)]
    await _settle()
    engine.reconfigure(Behaviour(concurrency_max=0))
    await _settle()
    assert (engine.running, engine.waiting) == (3, 0)
    gate.set()
    await asyncio.gather(*tasks)


async def test_running_requests_hold_cache_and_give_it_back() -> None:
    engine = Engine(Behaviour(kv_tokens=100))
    async with engine.run([b"x"] * 20) as run:
        await run.token(0)
        assert engine.cache_usage == pytest.approx(0.21)
    assert engine.cache_usage == 0


async def test_cached_prompt_tokens_do_not_delay_the_first_token() -> None:
    engine = Engine(Behaviour(ttft_s=0, prefill_token_s=0.001))
    prompt = tokens.pieces("a prompt that is said again and again, " * 20)
    times: list[float] = []
    for _ in range(2):
        async with engine.run(prompt) as run:
            await run.token(0)
            times.append(run.first_token_s or 0.0)
    whole_blocks = len(prompt) // 16 * 16
    assert engine.counters.prefix_hits == whole_blocks
    assert times[0] >= 0.001 * len(prompt) > times[1] * 4


@pytest.mark.parametrize(
    ("second", "hits"),
    [(range(48), 48), (range(40), 32), ([*range(32), *range(100, 116)], 32), ([99, *range(47)], 0)],
)
def test_the_prefix_cache_knows_whole_leading_blocks(second: Sequence[int], hits: int) -> None:
    cache = PrefixCache()
    assert cache.admit([b"%d" % n for n in range(48)], 100) == 0
    assert cache.admit([b"%d" % n for n in second], 100) == hits


def test_the_prefix_cache_forgets_the_least_recently_used_block() -> None:
    cache = PrefixCache()
    one, two, three = ([b"%d" % n] * 16 for n in range(3))
    for prompt in (one, two, one, three):
        cache.admit(prompt, 2)
    assert cache.admit(one, 2) == 16
    assert cache.admit(two, 2) == 0


def test_each_word_of_the_vocabulary_is_one_token() -> None:
    assert [word for word in vocabulary() if len(tokens.pieces(word)) != 1] == []


def test_words_depend_on_prompt_seed_and_index_alone() -> None:
    def text(prompt: str, seed: int, index: int) -> str:
        made = words_for(tokens.pieces(prompt), seed, index, count_max=40, ignore_eos=True)
        return "".join(made[0])

    assert text("a", 0, 0) == text("a", 0, 0)
    assert len({text("a", 0, 0), text("b", 0, 0), text("a", 1, 0), text("a", 0, 1)}) == 4


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        ((" two",), (["one"], True)),
        (("wo t",), (["one", " t"], True)),
        (("one",), ([], True)),
        (("four",), (["one", " two", " three"], False)),
        ((), (["one", " two", " three"], False)),
        (("three", "two"), (["one", " "], True)),
    ],
)
def test_text_is_cut_before_the_first_stop(
    stops: tuple[str, ...], expected: tuple[list[str], bool]
) -> None:
    assert stopped(["one", " two", " three"], stops) == expected


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)
