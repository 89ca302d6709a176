"""Starting pods: who is asked, how long an answer counts, and that Kubernetes' word goes first."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from nimway.proxy import readiness_probe, starting_pods
from nimway.proxy.messages import ServiceEndpoints
from nimway.proxy.readiness_probe import ReadinessProbe
from nimway.proxy.starting_pods import StartingPods
from nimway.routes import READY_PATH, Route
from tests.support.proxy import listen
from tests.support.proxy_wire import Call, run_model_server, until

ONE, TWO = ("10.0.0.1", 8000), ("10.0.0.2", 8000)
ROUTE = Route("ns", "llama", "m", ("m",), "llama", 1)


def listed(
    *addresses: tuple[str, int], ready: tuple[tuple[str, int], ...] = ()
) -> list[ServiceEndpoints]:
    """Return the Service with these starting pods."""
    return [ServiceEndpoints("ns", "llama", list(ready), list(addresses))]


@dataclass
class World:
    """Who answers, who waits, and what was handed on."""

    answering: set[tuple[str, int]] = field(default_factory=set)
    held: bool = True
    asked: list[tuple[tuple[str, int], str]] = field(default_factory=list)
    published: list[list[tuple[str, int]]] = field(default_factory=list)

    async def ask(self, address: tuple[str, int], path: str) -> bool:
        self.asked.append((address, path))
        return address in self.answering

    def publish(self, services: list[ServiceEndpoints]) -> None:
        for each in services:
            assert each.starting == [], "the workers have no use for them"
            self.published.append(each.ready)

    @property
    def serving(self) -> list[tuple[str, int]]:
        return self.published[-1]


@asynccontextmanager
async def following(world: World, *routes: Route) -> AsyncIterator[StartingPods]:
    pods = StartingPods(world.ask, lambda _: world.held, world.publish)
    pods.replace_routes(routes or (ROUTE,))
    try:
        yield pods
    finally:
        pods.stop()
        await asyncio.sleep(0)


async def test_a_pod_that_answers_serves_before_kubernetes_says_so() -> None:
    world = World()
    async with following(world) as pods:
        pods.take(listed(ONE, TWO))
        assert world.serving == []
        await until(lambda: len(world.asked) > 4)
        assert set(world.asked) == {(ONE, READY_PATH), (TWO, READY_PATH)}
        world.answering.add(TWO)
        await until(lambda: world.serving == [TWO])
        assert pods.early_total == 1
        pods.take(listed(ready=(ONE, TWO)))
        assert world.serving == [ONE, TWO]
        assert pods.early_total == 1


async def test_nobody_is_asked_while_nobody_waits() -> None:
    world = World(answering={ONE}, held=False)
    async with following(world) as pods:
        pods.take(listed(ONE))
        await asyncio.sleep(0.05)
        assert world.asked == []
        world.held = True
        pods.look()
        await until(lambda: world.serving == [ONE])


async def test_nobody_is_asked_while_another_pod_serves() -> None:
    world = World(answering={ONE})
    async with following(world) as pods:
        pods.take(listed(ONE, ready=(TWO,)))
        await asyncio.sleep(0.05)
        assert (world.asked, world.serving) == ([], [TWO])


@pytest.mark.parametrize("path", ["/healthz", ""])
async def test_a_pod_is_asked_on_its_models_path_and_not_where_it_has_none(path: str) -> None:
    world = World()
    async with following(world, replace(ROUTE, ready_path=path)) as pods:
        pods.take(listed(ONE))
        await asyncio.sleep(0.05)
        assert set(world.asked) == ({(ONE, path)} if path else set())


async def test_a_pod_that_kubernetes_takes_away_is_out_at_once() -> None:
    world = World(answering={ONE})
    async with following(world) as pods:
        pods.take(listed(ONE))
        await until(lambda: world.serving == [ONE])
        pods.take(listed())
        assert world.serving == []


async def test_a_pod_that_was_ready_in_between_is_asked_again_at_once() -> None:
    world = World(answering={ONE})
    async with following(world) as pods:
        pods.take(listed(ONE))
        await until(lambda: world.serving == [ONE])
        pods.take(listed(ready=(ONE,)))
        world.answering.clear()
        pods.take(listed(ONE))
        assert world.serving == []
        asked = len(world.asked)
        await until(
            lambda: len(world.asked) > asked, timeout_s=0.5 * starting_pods.CONFIRM_PERIOD_S
        )


async def test_a_pod_that_answers_no_more_is_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting_pods, "CONFIRM_PERIOD_S", 0.01)
    world = World(answering={ONE})
    async with following(world) as pods:
        pods.take(listed(ONE))
        await until(lambda: world.serving == [ONE])
        world.answering.clear()
        await until(lambda: world.serving == [])
        world.answering.add(ONE)
        await until(lambda: world.serving == [ONE])


async def test_where_kubernetes_disagrees_for_long_it_knows_better_until_it_has_news(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(starting_pods, "CONFIRM_PERIOD_S", 0.01)
    monkeypatch.setattr(starting_pods, "EARLY_MAX_S", 0.05)
    world = World(answering={ONE})
    async with following(world) as pods:
        pods.take(listed(ONE))
        await until(lambda: world.published == [[], [ONE], []])
        asked = len(world.asked)
        pods.look()
        await asyncio.sleep(0.05)
        assert len(world.asked) == asked
        pods.take(listed(ONE, TWO))
        await until(lambda: world.serving == [ONE])


async def test_a_pod_is_asked_ever_less_often() -> None:
    world = World()
    async with following(world) as pods:
        pods.take(listed(ONE))
        await asyncio.sleep(1.0)
        # 5 ms apart at first, 20 ms after a second: a fixed 5 ms would have been two hundred.
        assert 20 < len(world.asked) < 130


async def test_a_model_that_leaves_is_asked_no_more_and_one_that_comes_back_is() -> None:
    world = World()
    async with following(world) as pods:
        pods.take(listed(ONE))
        await until(lambda: bool(world.asked))
        pods.replace_routes(())
        await asyncio.sleep(0.05)
        asked = len(world.asked)
        await asyncio.sleep(0.05)
        assert len(world.asked) == asked
        pods.replace_routes((ROUTE,))
        await until(lambda: len(world.asked) > asked)


async def test_only_so_many_models_are_asked_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting_pods, "MODELS_MAX", 1)
    world = World()
    other = replace(ROUTE, name="other", service="other")
    async with following(world, ROUTE, other) as pods:
        pods.take([*listed(ONE), ServiceEndpoints("ns", "other", [], [TWO])])
        await until(lambda: len(world.asked) > 2)
        assert {address for address, _ in world.asked} == {ONE}
        pods.take(listed())
        await until(lambda: (TWO, READY_PATH) in world.asked)


@pytest.mark.parametrize(("status", "ready"), [(200, True), (503, False), (302, False)])
async def test_a_pods_own_answer_counts(status: int, *, ready: bool) -> None:
    async def answer(call: Call) -> None:
        await call.send(b"HTTP/1.1 %d x\r\nlocation: /\r\ncontent-length: 0\r\n\r\n" % status)

    async with (
        run_model_server(answer) as server,
        aclosing(ReadinessProbe(allow_loopback=True)) as probe,
    ):
        assert await probe.is_ready(server.address, "/ready?x=1") is ready
        assert server.calls[0].head.startswith(b"GET /ready?x=1 HTTP/1.1\r\n")


async def test_a_pod_that_is_not_there_or_says_nothing_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readiness_probe, "TIMEOUT_S", 0.1)

    async def hang(call: Call) -> None:
        await call.reader.read()

    with listen() as sock:
        closed = sock.getsockname()
    async with (
        run_model_server(hang) as server,
        aclosing(ReadinessProbe(allow_loopback=True)) as probe,
    ):
        assert not await probe.is_ready(closed, READY_PATH)
        assert not await probe.is_ready(server.address, READY_PATH)


async def test_an_address_that_gets_no_request_is_not_asked_either() -> None:
    async with (
        run_model_server() as server,
        aclosing(ReadinessProbe(allow_loopback=False)) as probe,
    ):
        assert not await probe.is_ready(server.address, READY_PATH)
        assert server.connections == 0
