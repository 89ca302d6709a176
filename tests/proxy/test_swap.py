"""A large table: swapped without a pause on the serving loop, and endpoints without a walk."""

import gc
import time
from collections.abc import Iterator
from typing import TypeVar

from nimway.proxy.channel import Channel
from nimway.proxy.endpoints import NamespaceEndpoints
from nimway.proxy.messages import (
    Counters,
    Endpoints,
    Load,
    RouteEntry,
    ServiceEndpoints,
    Table,
    encode,
    split,
    to_parent,
    to_worker,
)
from nimway.proxy.metrics import Answered
from nimway.proxy.scrape import collect
from nimway.proxy.server import Server
from nimway.proxy.supervisor import Supervisor, WorkerHandle
from nimway.proxy.wire import RequestHead
from nimway.routes import Policy
from tests.proxy.test_tables import build_slice
from tests.support.proxy import TEST_SETTINGS

T = TypeVar("T")

MODELS = 10_000
PAUSE_MAX_S = 0.020


def build_routes(generation: int) -> list[RouteEntry]:
    """Routes that all differ from those of another generation."""
    return [
        RouteEntry(
            key=f"ns/model-{number}",
            model=f"org/model-{number}-instruct",
            names=(f"org/model-{number}-instruct", f"alias-{number}-{generation}"),
            namespace="ns",
            service=f"model-{number}",
            created_s=1,
            policy=Policy(timeout_total_s=generation),
        )
        for number in range(MODELS)
    ]


def take(server: Server, message: Table | Endpoints) -> list[float]:
    """Have `server` take `message` as a worker does, a step a turn; CPU seconds of each step."""
    spent = []
    gc.freeze()  # as a worker does at its start: what other tests left is not walked
    for frame in [encode(part)[4:] for part in split(message)]:
        started = time.process_time()
        part = to_worker.decode(frame)
        if isinstance(part, Table):
            for _ in server.take_table(part):
                spent.append(time.process_time() - started)
                started = time.process_time()
        elif isinstance(part, Endpoints):
            server.replace_endpoints(part.services)
        gc.freeze()  # as a worker does after a large frame
        spent.append(time.process_time() - started)
    return spent


async def test_ten_thousand_models_are_swapped_without_a_pause() -> None:
    server = Server(TEST_SETTINGS)
    services = [
        ServiceEndpoints("ns", f"model-{number}", [(f"127.0.{number >> 8}.{number & 255}", 1)])
        for number in range(MODELS)
    ]
    spent = take(server, Table("1", build_routes(1)))
    spent += take(server, Endpoints(services))
    before = server.catalog.names["org/model-7-instruct"]
    spent += take(server, Table("2", build_routes(2)))
    assert server.catalog.revision == "2"
    assert server.catalog.names["alias-7-2"] is before
    assert before.limits.timeout_total_s == 2
    assert "alias-7-1" not in server.catalog.names
    assert len(before.endpoints) == 1
    assert len(spent) > 220
    assert max(spent) < PAUSE_MAX_S, sorted(spent)[-5:]
    assert len(server.catalog.listing) > MODELS
    gc.unfreeze()


async def test_counters_of_ten_thousand_models_are_scraped_and_kept_without_a_pause() -> None:
    spent = [scrape_counters_in_use() for _ in range(3)]
    assert min(spent) < PAUSE_MAX_S, spent


def scrape_counters_in_use() -> float:
    """The longest step of a scrape, in a worker and its parent, and of what follows a swap."""
    server = Server(TEST_SETTINGS)
    take(server, Table("1", build_routes(1)))
    finished = Answered()
    finished.status, finished.started, finished.first_byte_at = 200, 1.0, 1.5
    finished.tail = b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}'
    for model in server.catalog.models.values():
        model.demand_total += 1
        server.changed(model)
        server.meters.account(finished, model, "/v1/completions", RequestHead(), 2.0)
    gc.freeze()
    worker, parent = spend(encode_counters(server)), WorkerHandle(Channel(print, print))
    decoded = [to_parent.decode(frame[4:]) for frame in worker[0]]
    parts = [part for part in decoded if isinstance(part, Counters)]
    taken = spend(parent.take_counters(part) for part in parts)
    assert taken[0] == [False] * (len(parts) - 1) + [True]
    assert parent.counters is not None
    assert len(parent.counters.values["durations"]) == MODELS
    assert len(parent.counters.values["endpoints"]) == MODELS
    left = spend(server.meters.forget(frozenset(server.catalog.names)))
    gc.unfreeze()
    return max(*worker[1], *taken[1], *left[1])


def swap_with_counters_in_use() -> float:
    """The longest step of a swap where every model changed and had a request since the last one."""
    server = Server(TEST_SETTINGS)
    take(server, Table("1", build_routes(1)))
    finished = Answered()
    finished.status, finished.started, finished.first_byte_at = 200, 1.0, 1.5
    for model in server.catalog.models.values():
        server.meters.account(finished, model, "/v1/completions", RequestHead(), 2.0)
    longest = max(take(server, Table("2", build_routes(2))))
    assert "alias-7-2" in server.catalog.names
    longest = max(longest, *take(server, Table("3", build_routes(3)[: MODELS // 2])))
    requests = next(list(found) for name, found in server.meters.read() if name == "requests")
    assert len(requests) == MODELS // 2
    gc.unfreeze()
    return longest


async def test_a_table_is_swapped_without_a_pause_where_all_counters_are_in_use() -> None:
    spent = [swap_with_counters_in_use() for _ in range(3)]
    assert min(spent) < PAUSE_MAX_S, spent


def encode_counters(server: Server) -> Iterator[bytes]:
    return (encode(part) for part in collect(server, 1))


def spend(steps: Iterator[T]) -> tuple[list[T], list[float]]:
    """Take `steps` one by one; return them and the CPU seconds of each."""
    taken: list[T] = []
    spent: list[float] = []
    while True:
        started = time.process_time()
        try:
            taken.append(next(steps))
        except StopIteration:
            return taken, spent
        spent.append(time.process_time() - started)


def test_the_load_is_added_up_as_it_changes_and_asking_costs_nothing() -> None:
    supervisor = Supervisor(TEST_SETTINGS, count=2, host="127.0.0.1", port=1)
    supervisor.replace_table(Table("1", build_routes(1)))
    first, second = (WorkerHandle(Channel(print, print)) for _ in range(2))
    supervisor._handles = {first, second}
    supervisor._handle(first, encode(Load({"ns/model-1": (2, 1, 5), "ns/gone": (1, 1, 1)}))[4:])
    supervisor._handle(second, encode(Load({"ns/model-1": (1, 0, 3)}))[4:])
    supervisor._handle(first, encode(Load({"ns/model-1": (1, 0, 6)}))[4:])
    assert supervisor.load() == {"ns/model-1": (2, 0, 9)}
    supervisor._forget(second)
    assert supervisor.load() == {"ns/model-1": (1, 0, 9)}
    assert supervisor.load()["ns/model-2"] == (0, 0, 0)
    supervisor.replace_table(Table("2", []))
    assert supervisor.load() == {}
    supervisor.replace_table(Table("1", build_routes(1)))
    supervisor._handle(first, encode(Load({"ns/model-1": (1, 0, 1)}))[4:])
    assert supervisor.load() == {"ns/model-1": (1, 0, 10)}


def test_a_table_that_is_not_complete_changes_nothing() -> None:
    server_routes = build_routes(1)[:450]
    parts = list(split(Table("1", server_routes)))
    assert [part.more for part in parts if isinstance(part, Table)] == [True, True, False]
    assert [len(part.routes) for part in parts if isinstance(part, Table)] == [200, 200, 50]
    assert list(split(Table("1", []))) == [Table("1", [])]


async def test_the_old_table_serves_until_the_last_part_is_here() -> None:
    server = Server(TEST_SETTINGS)
    for part in split(Table("1", build_routes(1)[:300])):
        assert isinstance(part, Table)
        spend(server.take_table(part))
    first, last = split(Table("2", build_routes(2)[:300]))
    assert isinstance(first, Table)
    assert isinstance(last, Table)
    spend(server.take_table(first))
    server.replace_endpoints([ServiceEndpoints("ns", "model-0", [("127.0.0.1", 1)])])
    assert server.catalog.revision == "1"
    assert "alias-0-1" in server.catalog.names
    spend(server.take_table(last))
    assert "alias-0-1" not in server.catalog.names
    assert len(server.catalog.names["alias-0-2"].endpoints) == 1


def test_an_event_costs_the_same_in_a_large_namespace() -> None:
    endpoints = NamespaceEndpoints("ns")
    slices = [build_slice(f"s{number}", f"m{number}", ("10.0.0.1", {})) for number in range(5000)]
    started = time.process_time()
    assert len(endpoints.replace(slices)) == 5000
    for number in range(1000):
        changed = endpoints.update(
            build_slice(f"s{number}", f"m{number}", ("10.0.0.2", {})), deleted=False
        )
        assert len(changed) == 1
    assert time.process_time() - started < 2.0
