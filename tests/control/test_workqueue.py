import asyncio
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from nimway.control.workqueue import BACKOFF_MAX_S, Lanes, Workers, WorkQueue


def _queue(jitter: float = 1.0) -> WorkQueue[str]:
    return WorkQueue(jitter=lambda: jitter)


def test_marks_of_one_key_coalesce_and_the_earliest_counts() -> None:
    queue = _queue()
    queue.mark("a", 0.0, delay_s=5.0)
    queue.mark("a", 0.0, delay_s=1.0)
    queue.mark("a", 0.0, delay_s=3.0)
    assert queue.take(0.9) is None
    assert queue.take(1.0) == "a"
    assert queue.take(10.0) is None
    queue.done("a", 10.0, ok=True)
    assert queue.take(10.0) is None


def test_a_key_runs_once_at_a_time_and_again_if_marked_meanwhile() -> None:
    queue = _queue()
    queue.mark("a", 0.0)
    assert queue.take(0.0) == "a"
    queue.mark("a", 0.0)
    assert queue.take(0.0) is None
    assert queue.next_due_s() is None
    queue.done("a", 1.0, ok=True)
    assert queue.take(1.0) == "a"


def test_keys_come_in_the_order_in_which_they_are_due() -> None:
    queue = _queue()
    queue.mark("late", 0.0, delay_s=2.0)
    queue.mark("first", 0.0)
    queue.mark("second", 0.0)
    assert [queue.take(3.0) for _ in range(4)] == ["first", "second", "late", None]


def test_a_deferred_key_runs_once_all_others_that_are_due_have_run() -> None:
    queue = _queue()
    queue.mark("behind", 0.0)
    queue.defer("behind")
    queue.mark("behind", 0.0)  # news of it do not bring it forward
    queue.mark("first", 1.0)
    queue.mark("later", 1.0, delay_s=5.0)
    assert [queue.take(2.0) for _ in range(3)] == ["first", "behind", None]
    queue.done("behind", 2.0, ok=True)
    queue.mark("behind", 2.0)
    queue.mark("second", 3.0)
    assert [queue.take(4.0) for _ in range(3)] == ["behind", "second", None]  # it was once only


def test_a_key_that_is_deferred_while_it_runs_comes_back_behind_the_others() -> None:
    queue = _queue()
    queue.mark("a", 0.0)
    assert queue.take(0.0) == "a"
    queue.defer("a")
    queue.mark("a", 0.0)
    queue.mark("b", 1.0)
    queue.done("a", 1.0, ok=True)
    assert [queue.take(1.0) for _ in range(3)] == ["b", "a", None]


def test_deferred_keys_leave_workers_free_for_others() -> None:
    queue = WorkQueue[str](jitter=lambda: 1.0, deferred_max=2)
    for key in ("a", "b", "c"):
        queue.defer(key)
        queue.mark(key, 0.0)
    assert [queue.take(0.0) for _ in range(3)] == ["a", "b", None]
    assert queue.next_due_s() is None
    queue.mark("new", 0.0)
    assert queue.take(0.0) == "new"
    queue.done("a", 1.0, ok=True)
    assert queue.next_due_s() == 0.0
    assert queue.take(1.0) == "c"


def test_a_failing_key_backs_off_exponentially_up_to_a_limit_and_success_resets() -> None:
    queue, now_s, waits = _queue(), 0.0, []
    queue.mark("a", now_s)
    for _ in range(12):
        assert queue.take(now_s) == "a"
        waits.append(queue.done("a", now_s, ok=False))
        assert queue.take(now_s + waits[-1] * 0.99) is None
        now_s += waits[-1]
    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert waits[-1] == BACKOFF_MAX_S
    assert queue.take(now_s) == "a"
    queue.done("a", now_s, ok=True)
    queue.mark("a", now_s)
    queue.take(now_s)
    assert queue.done("a", now_s, ok=False) == 0.1


def test_jitter_spreads_the_backoff_over_its_upper_half() -> None:
    queue = _queue(jitter=0.0)
    queue.mark("a", 0.0)
    queue.take(0.0)
    assert queue.done("a", 0.0, ok=False) == 0.05


def test_a_change_ends_the_backoff_but_an_echo_of_the_failed_run_does_not() -> None:
    queue = _queue()
    queue.mark("a", 0.0)
    queue.take(0.0)
    queue.mark("a", 0.0)
    queue.done("a", 0.0, ok=False)
    assert queue.take(0.05) is None
    queue.mark("a", 0.05)
    assert queue.take(0.05) == "a"


def test_a_held_key_waits_whatever_is_marked() -> None:
    queue = _queue()
    queue.mark("a", 0.0)
    assert queue.take(0.0) == "a"
    queue.hold("a", 0.25)
    queue.mark("a", 0.1)
    queue.done("a", 0.1, ok=True)
    queue.mark("a", 0.2)
    assert queue.take(0.24) is None
    assert queue.take(0.25) == "a"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 10), st.booleans()), max_size=60))
def test_every_marked_key_runs_and_none_runs_twice_at_once(
    steps: list[tuple[str, float, bool]],
) -> None:
    queue, running, now_s = _queue(), set[str](), 0.0
    pending: Counter[str] = Counter()
    for key, delay_s, finish in steps:
        queue.mark(key, now_s, delay_s=delay_s)
        pending[key] += 1
        now_s += 0.5
        taken = queue.take(now_s)
        if taken is not None:
            assert taken not in running
            running.add(taken)
            pending[taken] = 0
        if finish and running:
            queue.done(running.pop(), now_s, ok=True)
    for key in list(running):
        queue.done(key, now_s, ok=True)
    now_s += 1000.0
    while (taken := queue.take(now_s)) is not None:
        pending[taken] = 0
        queue.done(taken, now_s, ok=True)
    assert not +pending
    assert len(queue) == 0


async def test_workers_run_keys_in_parallel_up_to_their_number() -> None:
    queue: WorkQueue[str] = WorkQueue(jitter=lambda: 0.0)
    started: list[str] = []
    gate = asyncio.Event()

    async def reconcile(key: str) -> None:
        started.append(key)
        await gate.wait()

    loop = asyncio.get_running_loop()
    workers: Workers[str] = Workers(queue, reconcile, count=2, clock=loop.time)
    for key in "abc":
        workers.mark(key)
    assert started == [], "nothing runs before the start"
    workers.start()
    for _ in range(5):
        await asyncio.sleep(0)
    assert started == ["a", "b"]
    gate.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert started == ["a", "b", "c"]
    await workers.stop(1.0)


async def test_one_failing_key_does_not_stop_the_others() -> None:
    queue: WorkQueue[str] = WorkQueue(jitter=lambda: 0.0)
    done = asyncio.Event()

    async def reconcile(key: str) -> None:
        if key == "poison":
            raise RuntimeError(key)
        done.set()

    loop = asyncio.get_running_loop()
    workers: Workers[str] = Workers(queue, reconcile, count=1, clock=loop.time)
    workers.mark("poison")
    workers.mark("good")
    workers.start()
    async with asyncio.timeout(5):
        await done.wait()
    await workers.stop(1.0)


async def test_a_crowded_lane_does_not_hold_up_another() -> None:
    order: list[str] = []
    gate = asyncio.Event()

    async def reconcile(key: str) -> None:
        order.append(key)
        if key.startswith("many"):
            await gate.wait()

    def workers() -> Workers[str]:
        queue: WorkQueue[str] = WorkQueue(jitter=lambda: 0.0)
        return Workers(queue, reconcile, count=1, clock=asyncio.get_running_loop().time)

    lanes = Lanes(lambda key: key[0], {"m": workers(), "f": workers()})
    for number in range(5):
        lanes.mark(f"many-{number}")
    lanes.mark("few")
    assert lanes.depth == 6
    lanes.start()
    for _ in range(10):
        await asyncio.sleep(0)
    assert order == ["many-0", "few"]
    gate.set()
    await lanes.stop(1.0)
