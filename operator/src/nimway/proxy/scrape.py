"""What a worker answers when it is scraped: all its counters, in parts of a few ms (no IO)."""

import time
from collections.abc import Iterable, Iterator, Sized
from typing import Protocol

from nimway.proxy.catalog import Catalog
from nimway.proxy.messages import Counters
from nimway.proxy.metrics import Entry, Meters

PART_ENTRIES = 500
"""So many series are read at a time: requests are served between two parts of a scrape."""


class Measured(Protocol):
    """What a worker's counters are read from."""

    @property
    def meters(self) -> Meters:
        """Counters."""

    @property
    def catalog(self) -> Catalog:
        """Models and endpoints."""

    @property
    def connections(self) -> Sized:
        """Clients' connections."""

    @property
    def upstreams(self) -> Sized:
        """Connections to model servers."""

    @property
    def bodies_bytes(self) -> int:
        """Bytes of bodies held."""


def collect(measured: Measured, number: int) -> Iterator[Counters]:
    """Yield one worker's counters for the answer to scrape `number`, in parts of a few ms each.

    Between two parts the loop may turn: what changes meanwhile is in one of them or in the next
    scrape.
    """
    values: dict[str, list[Entry]] = {}
    size = 0
    for series, entries in _read_all(measured):
        found = values.setdefault(series, [])
        for entry in entries:
            found.append(entry)
            size += 1
            if size == PART_ENTRIES:
                yield Counters(number, values, more=True)
                values = {series: (found := [])}
                size = 0
    yield Counters(number, values)


def _read_all(measured: Measured) -> Iterator[tuple[str, Iterable[Entry]]]:
    models = list(measured.catalog.models.values())
    yield from measured.meters.read()
    yield "in_flight", (((model.name,), [model.in_flight]) for model in models)
    yield "queued", (((model.name,), [model.queued]) for model in models)
    yield "held", (((m.name,), [0 if m.endpoints else m.queued]) for m in models)
    yield "demand", (((model.name,), [model.demand_total]) for model in models)
    yield "endpoints", (((model.name,), [len(model.endpoints)]) for model in models)
    used = measured.catalog.used_endpoints()
    yield "picks", (((m, e.authority.decode()), [e.picks]) for m, e in used)
    yield "endpoint_ejections", (((m, e.authority.decode()), [e.ejections]) for m, e in used)
    yield "cpu", [((), [time.process_time()])]
    yield "connections", [((), [len(measured.connections)])]
    yield "upstream_connections", [((), [len(measured.upstreams)])]
    yield "bodies_bytes", [((), [measured.bodies_bytes])]
