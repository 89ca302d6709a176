"""When a probe asks, and what its answers mean."""

import asyncio
from typing import Any

import pytest

from nimway.sandbox.node.probes import ProbeState, Target, ask, port_number


def _feed(state: ProbeState, answers: str) -> list[bool | None]:
    """Feed scheduled answers (`+` or `-`) and return the verdict after each."""
    verdicts = []
    for answer in answers:
        state.record(success=answer == "+", scheduled=True)
        verdicts.append(state.verdict)
    return verdicts


@pytest.mark.parametrize(
    ("probe", "answers", "verdicts"),
    [
        ({}, "+", [True]),
        ({}, "--", [None, None]),
        ({}, "---", [None, None, False]),
        ({}, "--+", [None, None, True]),
        ({"failureThreshold": 1}, "+-+", [True, False, True]),
        ({"failureThreshold": 2}, "+--+", [True, True, False, True]),
        ({"successThreshold": 2}, "+-++", [None, None, None, True]),
    ],
)
def test_thresholds_count_answers_in_a_row(
    probe: dict[str, Any], answers: str, verdicts: list[bool | None]
) -> None:
    assert _feed(ProbeState(probe, eager=False), answers) == verdicts


def test_an_extra_try_counts_when_it_succeeds_and_not_when_it_fails() -> None:
    state = ProbeState({"failureThreshold": 1}, eager=True)
    state.record(success=False, scheduled=False)
    assert state.verdict is None
    state.record(success=True, scheduled=False)
    assert state.verdict is True


def test_extra_tries_slow_down_and_end_with_the_first_success() -> None:
    state = ProbeState({"periodSeconds": 10}, eager=True)
    tries = [state.next_try_s(9.0) for _ in range(12)]
    assert tries[0] == (0.1, False)
    assert [delay for delay, _ in tries] == sorted(delay for delay, _ in tries)
    assert tries[-1] == (1.0, False)
    assert state.next_try_s(0.5) == (0.5, True)
    state.record(success=True, scheduled=False)
    assert state.next_try_s(9.0) == (9.0, True)


def test_without_eagerness_only_the_schedule_counts() -> None:
    assert ProbeState({}, eager=False).next_try_s(9.0) == (9.0, True)


def test_defaults_and_the_one_second_minimum_are_kubernetes() -> None:
    state = ProbeState({"periodSeconds": 0}, eager=False)
    assert (state.period_s, state.timeout_s, state.initial_delay_s) == (10.0, 1.0, 0.0)


def test_ports_are_found_by_number_and_by_name() -> None:
    assert port_number(8000, {}) == 8000
    assert port_number("http", {"http": 8001}) == 8001
    with pytest.raises(ValueError, match="couldn't find port: nope"):
        port_number("nope", {"http": 8001})


async def _never(argv: list[str]) -> int:
    del argv
    await asyncio.Event().wait()
    return 0


async def _serve(answer: bytes) -> tuple[asyncio.Server, Target]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline():
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    return server, Target("127.0.0.1", {"http": port}, _never)


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", None),
        (b"HTTP/1.1 302 Found\r\n\r\n", None),
        (b"HTTP/1.1 503 No\r\n\r\n", "HTTP probe failed with statuscode: 503"),
    ],
)
async def test_http_probes_take_2xx_and_3xx_for_success(answer: bytes, failure: str | None) -> None:
    server, target = await _serve(answer)
    async with server:
        assert await ask({"httpGet": {"path": "/x", "port": "http"}}, target, 5.0) == failure


async def test_a_server_that_hangs_up_or_does_not_listen_is_a_failure() -> None:
    server, target = await _serve(b"")
    async with server:
        failure = await ask({"httpGet": {"port": "http"}}, target, 5.0)
        assert failure is not None
        assert failure.endswith(": EOF")
        assert await ask({"tcpSocket": {"port": "http"}}, target, 5.0) is None
    refused = await ask({"tcpSocket": {"port": "http"}}, target, 5.0)
    assert refused is not None
    assert "refused" in refused.lower()


async def test_a_command_that_takes_too_long_is_a_failure() -> None:
    target = Target("127.0.0.1", {}, _never)
    assert await ask({"exec": {"command": ["x"]}}, target, 0.01) == "timed out after 0.01s"
