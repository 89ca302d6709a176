"""What the simulated NIM does wrong on purpose, and the evidence it keeps, seen from a socket."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from nimway.sandbox.nim.settings import Fault
from nimway.tasks import spawn
from tests.support.nim import RunningNim, running_nim

LLAMA = "meta/llama-3.1-8b-instruct"
BODY = {"model": LLAMA, "prompt": "Once upon a time", "max_tokens": 8}
STREAM = {**BODY, "stream": True}


@pytest.fixture
async def nim() -> AsyncIterator[RunningNim]:
    async with running_nim(LLAMA) as running:
        yield running


@pytest.fixture
async def control(nim: RunningNim) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=nim.control_url) as client:
        yield client


async def exchange(nim: RunningNim, body: dict[str, Any], **headers: str) -> bytes:
    """Send one POST on a connection of its own; return all bytes until it ends.

    Raises ConnectionResetError with what was received as its argument, if it ends with a reset.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", nim.server.port)
    raw = json.dumps(body).encode()
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST /v1/completions HTTP/1.1\r\nHost: nim\r\nConnection: close\r\n{lines}"
    writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
    received = b""
    try:
        while chunk := await reader.read(65_536):
            received += chunk
    except ConnectionResetError:
        raise ConnectionResetError(received) from None
    finally:
        writer.close()
    return received


async def put(control: httpx.AsyncClient, *faults: dict[str, Any]) -> None:
    assert (await control.put("/faults", json=faults)).status_code == 200


async def test_a_status_fault_hits_as_often_as_it_says(
    nim: RunningNim, control: httpx.AsyncClient
) -> None:
    await put(control, {"kind": "status", "status": 503, "retry_after_s": 7, "times": 2})
    statuses = [(await exchange(nim, BODY)).split(b"\r\n", 1)[0] for _ in range(3)]
    assert [line.split()[1] for line in statuses] == [b"503", b"503", b"200"]
    assert (await control.get("/faults")).json() == []


async def test_a_status_fault_carries_its_retry_after(
    nim: RunningNim, control: httpx.AsyncClient
) -> None:
    await put(control, {"kind": "status", "retry_after_s": 7})
    assert b"\r\nRetry-After: 7\r\n" in await exchange(nim, BODY)


async def test_a_fault_with_a_path_hits_that_path_alone(
    nim: RunningNim, control: httpx.AsyncClient
) -> None:
    await put(control, {"kind": "status", "status": 500, "path": "/v1/health/live"})
    async with httpx.AsyncClient(base_url=nim.url) as http:
        assert (await http.get("/v1/health/live")).status_code == 500
        assert (await http.get("/v1/health/ready")).status_code == 200
        assert (await http.post("/v1/completions", json=BODY)).status_code == 200


@pytest.mark.parametrize("body", [BODY, STREAM])
async def test_a_reset_before_the_head_sends_nothing_but_runs_the_request(
    nim: RunningNim, control: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    await put(control, {"kind": "reset", "times": 1})
    with pytest.raises(ConnectionResetError) as caught:
        await exchange(nim, body, **{"X-Request-Id": "one"})
    assert caught.value.args == (b"",)
    counts = (await control.get("/executions")).json()["by_request_id"]["one"]
    assert counts == {"received": 1, "executed": 1, "answered": 0, "cancelled": 0}


@pytest.mark.parametrize("body", [BODY, STREAM])
async def test_garbage_is_no_http(
    nim: RunningNim, control: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    await put(control, {"kind": "garbage"})
    assert (await exchange(nim, body)).startswith(b"HTTP/1.1 2OO")


async def test_a_reset_mid_stream_comes_after_some_chunks(
    nim: RunningNim, control: httpx.AsyncClient
) -> None:
    await put(control, {"kind": "reset_mid_stream", "after_chunks": 3})
    with pytest.raises(ConnectionResetError):
        await exchange(nim, STREAM)
    assert (await control.get("/last")).json()["chunks"] == 3


async def test_a_fin_mid_stream_ends_without_the_last_chunk(
    nim: RunningNim, control: httpx.AsyncClient
) -> None:
    await put(control, {"kind": "fin_mid_stream", "after_chunks": 3})
    raw = await exchange(nim, STREAM)
    assert raw.count(b"data: ") == 3
    assert b"Transfer-Encoding: chunked" in raw
    assert not raw.endswith(b"0\r\n\r\n")


async def test_a_fin_mid_stream_can_come_after_the_last_event(
    nim: RunningNim, control: httpx.AsyncClient
) -> None:
    await put(control, {"kind": "fin_mid_stream", "after_chunks": 1000})
    raw = await exchange(nim, STREAM)
    assert b"data: [DONE]" in raw
    assert not raw.endswith(b"0\r\n\r\n")


async def test_a_fin_in_a_json_answer_leaves_it_shorter_than_its_length(
    nim: RunningNim, control: httpx.AsyncClient
) -> None:
    await put(control, {"kind": "fin_mid_stream", "after_chunks": 2})
    head, _, body = (await exchange(nim, BODY)).partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    assert 0 < len(body) < length


async def test_a_stall_goes_on_when_its_time_is_over(
    nim: RunningNim, control: httpx.AsyncClient
) -> None:
    await put(control, {"kind": "stall", "delay_s": 0.05, "times": 1})
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    stalled = await exchange(nim, STREAM)
    assert loop.time() - started_s >= 0.05
    assert stalled.endswith(b"0\r\n\r\n")


async def test_slow_and_delay_take_their_time_and_change_no_byte(
    nim: RunningNim, control: httpx.AsyncClient
) -> None:
    plain = (await exchange(nim, BODY)).partition(b"\r\n\r\n")[2]
    loop = asyncio.get_running_loop()
    for kind in ("delay", "slow"):
        await put(control, {"kind": kind, "delay_s": 0.02, "times": 1})
        started_s = loop.time()
        body = (await exchange(nim, BODY)).partition(b"\r\n\r\n")[2]
        assert loop.time() - started_s >= 0.02
        assert json.loads(body)["choices"] == json.loads(plain)["choices"]


async def test_refuse_closes_the_port_until_it_is_taken_back(
    nim: RunningNim, control: httpx.AsyncClient
) -> None:
    await put(control, {"kind": "refuse"})
    with pytest.raises(ConnectionRefusedError):
        await exchange(nim, BODY)
    await control.delete("/faults")
    assert (await exchange(nim, BODY)).startswith(b"HTTP/1.1 200")


async def test_a_nim_can_start_refusing() -> None:
    async with running_nim(LLAMA, faults=[Fault(kind="refuse")]) as nim:
        with pytest.raises(ConnectionRefusedError):
            await exchange(nim, BODY)
        async with httpx.AsyncClient(base_url=nim.control_url) as control:
            await control.delete("/faults")
        assert (await exchange(nim, BODY)).startswith(b"HTTP/1.1 200")


async def test_the_hash_of_the_body_is_of_the_bytes_as_they_came(
    nim: RunningNim, control: httpx.AsyncClient
) -> None:
    raw = b'{"prompt" : "caf\\u00e9 \xc3\xa9",\n "model":"%s" }\n' % LLAMA.encode()
    async with httpx.AsyncClient(base_url=nim.url) as http:
        answer = await http.post(
            "/v1/completions", content=raw, headers={"Authorization": "Bearer secret"}
        )
    wanted = hashlib.sha256(raw).hexdigest()
    assert answer.headers["x-nimsim-body-sha256"] == wanted
    last = await control.get("/last")
    assert last.json()["body_sha256"] == wanted
    assert last.json()["model"] == LLAMA
    assert "secret" not in last.text
    assert ["Authorization", "(hidden)"] in last.json()["headers"]


async def test_a_compressed_body_is_hashed_as_it_came_and_refused(nim: RunningNim) -> None:
    raw = b"\x1f\x8b no gzip at all"
    async with httpx.AsyncClient(base_url=nim.url) as http:
        answer = await http.post(
            "/v1/completions", content=raw, headers={"Content-Encoding": "gzip"}
        )
    assert answer.status_code == 400
    assert answer.headers["x-nimsim-body-sha256"] == hashlib.sha256(raw).hexdigest()


async def test_executions_are_counted_by_request_id(
    nim: RunningNim, control: httpx.AsyncClient
) -> None:
    for name in ("a", "b", "a"):
        await exchange(nim, BODY, **{"x-request-id": name})
    await exchange(nim, {**BODY, "model": "nope"}, **{"x-request-id": "c"})
    counts = (await control.get("/executions")).json()
    assert {name: c["executed"] for name, c in counts["by_request_id"].items()} == {
        "a": 2,
        "b": 1,
        "c": 0,
    }
    assert (counts["received"], counts["executed"]) == (4, 3)
    await control.delete("/requests")
    assert (await control.get("/executions")).json()["received"] == 0


async def test_the_request_id_comes_back(nim: RunningNim) -> None:
    assert b"X-Request-Id: mine" in await exchange(nim, BODY, **{"x-request-id": "mine"})


async def test_a_client_that_leaves_cancels_its_request(
    nim: RunningNim, control: httpx.AsyncClient
) -> None:
    await control.patch("/settings", json={"ttft_s": 60})
    request = spawn(exchange(nim, BODY), name="request")
    await _until(control, running=1)
    request.cancel()
    await _until(control, running=0)
    engine = (await control.get("/engine")).json()
    assert (engine["cancelled"], engine["finished"]) == (1, 0)
    assert (await control.get("/last")).json()["outcome"] == "cancelled"


async def test_requests_over_the_limit_show_as_waiting(
    nim: RunningNim, control: httpx.AsyncClient
) -> None:
    await control.patch("/settings", json={"ttft_s": 60, "concurrency_max": 1, "queue_max": 1})
    requests = [spawn(exchange(nim, BODY), name="request") for _ in range(2)]
    await _until(control, running=1, waiting=1)
    async with httpx.AsyncClient(base_url=nim.url) as http:
        assert (
            'waiting{model_name="meta/llama-3.1-8b-instruct"} 1.0'
            in (await http.get("/v1/metrics")).text
        )
        assert (await http.post("/v1/completions", json=BODY)).status_code == 503
    for request in requests:
        request.cancel()
    await _until(control, running=0, waiting=0)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/settings", {"ttft_s": -1}),
        ("PATCH", "/settings", {"tttf_s": 1}),
        ("PATCH", "/settings", []),
        ("PUT", "/faults", {"kind": "reset"}),
        ("POST", "/faults", {"kind": "explode"}),
        ("GET", "/requests?limit=x", None),
    ],
)
async def test_wrong_input_on_the_control_path_is_one_sentence(
    control: httpx.AsyncClient, method: str, path: str, body: Any
) -> None:
    answer = await control.request(method, path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


async def test_a_reload_makes_it_not_ready_for_its_load_time(
    nim: RunningNim, control: httpx.AsyncClient
) -> None:
    async with httpx.AsyncClient(base_url=nim.url) as http:
        await control.patch("/settings", json={"load_s": 60})
        assert (await http.get("/v1/health/ready")).status_code == 200
        await control.post("/reload")
        assert (await http.get("/v1/health/ready")).status_code == 503
        assert (await http.get("/v1/health/live")).status_code == 200
        assert (await http.post("/v1/completions", json=BODY)).status_code == 503
        await control.patch("/settings", json={"load_s": 0})
        await control.post("/reload")
        assert (await http.get("/v1/health/ready")).status_code == 200


async def _until(control: httpx.AsyncClient, **wanted: int) -> None:
    """Ask the engine again and again; the test's own timeout ends it."""
    while True:
        engine = (await control.get("/engine")).json()
        if wanted.items() <= engine.items():
            return
