import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from nimway.control.backchannel import BackChannel
from nimway.control.desired.drain import PROGRAM, grace_period_s, lifecycle
from nimway.state import ProxyState, encode

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


@asynccontextmanager
async def _server(handle: Serve) -> AsyncIterator[int]:
    server = await asyncio.start_server(handle, "127.0.0.1", 0)  # type: ignore[arg-type]
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def _state(revision: str) -> ProxyState:
    return ProxyState(revision=revision, ready=True, draining=False)


async def test_reports_arrive_line_by_line_and_a_break_is_told_and_repaired() -> None:
    heard: asyncio.Queue[str | None] = asyncio.Queue()
    served = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        await reader.readuntil(b"\r\n\r\n")
        line = encode(_state(f"r{served}"))
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + line[:5])
        await writer.drain()
        writer.write(line[5:])
        await writer.drain()
        writer.close()

    def report(proxy: str, uid: str, state: ProxyState | None) -> None:
        assert (proxy, uid) == ("n/p", "uid")
        heard.put_nowait(state.revision if state else None)

    async with _server(handle) as port, asyncio.timeout(5):
        channel = BackChannel(report, port=port)
        channel.follow("n/p", {"uid": "127.0.0.1"})
        assert [await heard.get() for _ in range(3)] == ["r1", None, "r2"]
        channel.follow("n/p", {})
        await channel.close()


async def test_another_proxys_pods_are_left_alone() -> None:
    connected, closed = asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        connected.set()
        await reader.read()
        writer.close()
        closed.set()

    async with _server(handle) as port, asyncio.timeout(5):
        channel = BackChannel(lambda *_: None, port=port)
        channel.follow("n/p", {"uid": "127.0.0.1"})
        await connected.wait()
        channel.follow("n/other", {})
        assert list(channel._tasks) == ["uid"]
        await channel.close()
        await closed.wait()


def _telling(texts: Sequence[str], asked: list[str]) -> Serve:
    """Answer each question for metrics with the next of `texts`, and then with the last one.

    No text is an error.
    """

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        text = texts[min(len(asked), len(texts) - 1)]
        asked.append(text)
        status = "200 OK" if text else "503 Service Unavailable"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
        await writer.drain()
        writer.close()

    return handle


async def _drain(port: int, seconds: int, **environment: str) -> int:
    """Run the program against a model's port and return its exit code."""
    url = f"http://127.0.0.1:{port}/v1/metrics"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, url, str(seconds), "0", env=os.environ | environment
    )
    return await asyncio.wait_for(process.wait(), 20)


@pytest.mark.parametrize("prefix", ["", "vllm:"])
async def test_the_drain_waits_for_the_models_requests(prefix: str) -> None:
    texts = [
        f"# TYPE {prefix}num_requests_running gauge\n"
        f'{prefix}num_requests_running{{model_name="a}}b"}} {running}.0\n'
        f"{prefix}num_requests_waiting 0\n"
        for running in (2, 1, 0)
    ]
    asked: list[str] = []
    async with _server(_telling(texts, asked)) as port:
        assert await _drain(port, 30) == 0
    assert len(asked) == 4


async def test_the_drain_asks_its_own_container_whatever_proxy_the_user_has_set() -> None:
    busy, idle = "num_requests_running 1\n", "num_requests_running 0\n"
    nobody = "http://127.0.0.1:1"
    names = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
    proxies = dict.fromkeys(names, nobody) | {"NO_PROXY": "", "no_proxy": ""}
    asked: list[str] = []
    async with _server(_telling([busy, idle], asked)) as port:
        assert await _drain(port, 30, **proxies) == 0
    assert asked == [busy, idle, idle]


async def test_the_drain_goes_on_where_a_busy_server_fails_to_answer() -> None:
    busy, idle = "num_requests_running 1\n", "num_requests_running 0\n"
    asked: list[str] = []
    texts = [busy, "", "", "", "", busy, "", idle]
    async with _server(_telling(texts, asked)) as port:
        assert await _drain(port, 30) == 0
    assert asked == [*texts, idle]


async def test_the_drain_ends_with_its_time_even_if_requests_run() -> None:
    async with _server(_telling(["num_requests_running 1\n"], [])) as port:
        assert await _drain(port, 1) == 0


def test_an_unreachable_metrics_page_ends_the_drain_so_that_the_kubelet_goes_on() -> None:
    command = [sys.executable, "-c", PROGRAM, "http://127.0.0.1:1/v1/metrics", "30", "0"]
    assert subprocess.run(command, check=False, capture_output=True, timeout=20).returncode != 0


def test_the_drain_is_one_argv_without_a_shell() -> None:
    hook = lifecycle("Metrics", 600, 8000)
    assert hook is not None
    command = hook["preStop"]["exec"]["command"]
    assert command[:2] == ["python3", "-c"]
    assert "$(" not in PROGRAM
    assert lifecycle("Metrics", 0, 8000) is None
    assert lifecycle("Sleep", 60, 8000) == {"preStop": {"sleep": {"seconds": 60}}}
    assert grace_period_s(600) == 630
