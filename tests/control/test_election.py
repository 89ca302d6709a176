import copy
from datetime import UTC, datetime
from typing import Any

import pytest

from nimway.control.client import ApiError, ConflictError, KubeClient, NotFoundError, TransientError
from nimway.control.election import (
    LEASE_S,
    RENEW_DEADLINE_S,
    Elector,
    LeadershipLostError,
    Observed,
    may_take,
)


class VirtualTime:
    """A clock that moves when somebody sleeps; `at` runs actions when it passes their time."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.actions: list[tuple[float, Any]] = []

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.now_s += delay_s
        for due in [each for each in self.actions if each[0] <= self.now_s]:
            self.actions.remove(due)
            due[1]()

    def at(self, when_s: float, action: Any) -> None:
        self.actions.append((when_s, action))


class LeaseOnly(KubeClient):
    """One Lease in memory with the API server's rule for versions; requests can be made to fail."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.writes = 0
        self.error: ApiError | None = None

    async def request(self, method: str, path: str, **options: Any) -> Any:
        del path
        if self.error is not None:
            raise self.error
        if method == "GET":
            if self.lease is None:
                raise NotFoundError(404, "NotFound", "no lease")
            return copy.deepcopy(self.lease)
        body = options["body"]
        expected = body["metadata"].get("resourceVersion")
        current = self.lease["metadata"]["resourceVersion"] if self.lease else None
        if expected != current:
            raise ConflictError(409, "Conflict", "the lease has changed")
        self.version += 1
        self.writes += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(self.lease)


def _elector(client: LeaseOnly, time: VirtualTime, identity: str) -> Elector:
    return Elector(
        client,
        namespace="n",
        name="lease",
        identity=identity,
        clock=time.clock,
        wall=lambda: datetime(2026, 11, 1, tzinfo=UTC),
        jitter=lambda: 0.5,
        sleep=time.sleep,
    )


def _holder(client: LeaseOnly) -> str:
    assert client.lease is not None
    return str(client.lease["spec"]["holderIdentity"])


async def test_the_first_candidate_leads_at_once() -> None:
    client, time = LeaseOnly(), VirtualTime()
    elector = _elector(client, time, "a")
    await elector.acquire()
    assert elector.is_leader
    assert time.now_s == 100.0


async def test_a_rival_waits_until_the_lease_stood_still_for_its_whole_length() -> None:
    client, time = LeaseOnly(), VirtualTime()
    await _elector(client, time, "a").acquire()
    rival = _elector(client, time, "b")
    await rival.acquire()
    assert time.now_s - 100.0 >= LEASE_S
    assert _holder(client) == "b"


async def test_a_released_lease_is_taken_without_waiting() -> None:
    client, time = LeaseOnly(), VirtualTime()
    first = _elector(client, time, "a")
    await first.acquire()
    await first.release()
    assert not first.is_leader
    await _elector(client, time, "b").acquire()
    assert time.now_s == 100.0


async def test_a_leader_renews_and_stays() -> None:
    client, time = LeaseOnly(), VirtualTime()
    elector = _elector(client, time, "a")
    await elector.acquire()
    time.at(160.0, lambda: setattr(client, "error", TransientError(0, "NoAnswer", "away")))
    with pytest.raises(LeadershipLostError):
        await elector.keep()
    assert client.writes >= 10
    assert client.writes <= 1 + 60 / 4.5


async def test_whoever_cannot_renew_may_not_write_after_the_deadline() -> None:
    client, time = LeaseOnly(), VirtualTime()
    elector = _elector(client, time, "a")
    await elector.acquire()
    client.error = TransientError(0, "NoAnswer", "away")
    time.now_s += RENEW_DEADLINE_S - 0.1
    assert elector.is_leader
    time.now_s += 0.2
    assert not elector.is_leader


async def test_a_stopped_leader_wakes_up_as_nobody_and_does_not_take_the_lease_back() -> None:
    client, time = LeaseOnly(), VirtualTime()
    elector = _elector(client, time, "a")
    await elector.acquire()

    def stopped_for_90_s() -> None:
        assert client.lease is not None
        time.now_s += 90.0
        client.version += 1
        client.lease["spec"]["holderIdentity"] = "b"
        client.lease["metadata"]["resourceVersion"] = str(client.version)

    time.at(101.0, stopped_for_90_s)
    with pytest.raises(LeadershipLostError, match="b holds"):
        await elector.keep()
    assert not elector.is_leader
    assert _holder(client) == "b"


async def test_of_two_that_write_at_once_one_leads() -> None:
    client, time = LeaseOnly(), VirtualTime()
    second = _elector(client, time, "b")
    await _elector(client, time, "a").acquire()
    free_before = Observed("", "0", 0, time.now_s, LEASE_S)
    with pytest.raises(ConflictError):
        await second._write(free_before, holder="b")
    assert not second.is_leader
    assert _holder(client) == "a"


def test_a_free_or_own_lease_may_be_taken_and_anothers_when_it_ran_out() -> None:
    observed = Observed(holder="a", version="1", transitions=0, since_s=10.0, lease_s=15.0)
    assert may_take(observed, "a", 10.0)
    assert not may_take(observed, "b", 24.9)
    assert may_take(observed, "b", 25.0)
