"""`nimway nim` as a process: its start, its log, and how it takes SIGTERM."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

LLAMA = "meta/llama-3.1-8b-instruct"
STREAM = {"model": LLAMA, "prompt": "x", "max_tokens": 20, "ignore_eos": True, "stream": True}
START_MAX_S = 10.0
NIM_COMMAND = (sys.executable, "-c", "from nimway.cli import main; main()", "nim")


@dataclass(slots=True)
class NimProcess:
    process: asyncio.subprocess.Process
    log: list[dict[str, Any]]
    url: str

    async def exit_code(self) -> int:
        output = await self.process.stdout.read()  # type: ignore[union-attr]
        self.log += [json.loads(line) for line in output.splitlines()]
        return await self.process.wait()


@asynccontextmanager
async def nim_process(**environ: str) -> AsyncIterator[NimProcess]:
    process = await asyncio.create_subprocess_exec(
        *NIM_COMMAND,
        stdout=asyncio.subprocess.PIPE,
        env={
            "NIM_SERVED_MODEL_NAME": LLAMA,
            "NIM_SERVER_PORT": "0",
            "NIM_JSONL_LOGGING": "1",
            "NIMSIM_HOST": "127.0.0.1",
            "NIMSIM_CONTROL_PORT": "off",
            "NIMSIM_LOAD_S": "0",
            "NIMSIM_TTFT_S": "0",
            "NIMSIM_TOKEN_S": "0.01",
            **environ,
        },
    )
    log: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(START_MAX_S):
            while not log or "port" not in log[-1]:
                line = await process.stdout.readline()  # type: ignore[union-attr]
                log.append(json.loads(line))
        yield NimProcess(process, log, f"http://127.0.0.1:{log[-1]['port']}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_it_logs_json_lines_that_never_hold_the_key() -> None:
    async with nim_process(NGC_API_KEY="nvapi-secret") as nim:
        nim.process.terminate()
        assert await nim.exit_code() == 0
    assert nim.log[0]["ngc_api_key_given"] is True
    assert all(line["simulated"] for line in nim.log)
    assert "nvapi-secret" not in json.dumps(nim.log)


async def test_its_log_tells_what_was_executed_when_the_process_is_gone() -> None:
    async with nim_process() as nim, httpx.AsyncClient(base_url=nim.url) as http:
        for request_id, model in (("one", LLAMA), ("two", "no/such-model")):
            body = {"model": model, "prompt": "x", "max_tokens": 1}
            headers = {"x-request-id": request_id}
            await http.post("/v1/completions", json=body, headers=headers)
        nim.process.terminate()
        assert await nim.exit_code() == 0
    told = {line["request_id"]: line["executed"] for line in nim.log if "executed" in line}
    assert told == {"one": True, "two": False}


async def test_it_is_live_at_once_and_ready_after_its_load_time() -> None:
    async with (
        nim_process(NIMSIM_LOAD_S="0.3") as nim,
        httpx.AsyncClient(base_url=nim.url) as http,
    ):
        assert (await http.get("/v1/health/live")).status_code == 200
        assert (await http.get("/v1/health/ready")).status_code == 503
        while (await http.get("/v1/health/ready")).status_code == 503:
            pass
        assert (await http.get("/v1/models")).json()["data"][0]["id"] == LLAMA


async def _stream_across_sigterm(
    nim: NimProcess, http: httpx.AsyncClient, lines: list[str]
) -> None:
    """Read a stream into `lines`; the first line brings SIGTERM."""
    async with http.stream("POST", "/v1/completions", json=STREAM) as answer:
        async for line in answer.aiter_lines():
            if not lines:
                nim.process.send_signal(signal.SIGTERM)
            lines.append(line)


async def test_on_sigterm_it_takes_no_more_connections_and_finishes_the_running_stream() -> None:
    async with nim_process() as nim, httpx.AsyncClient(base_url=nim.url) as http:
        lines: list[str] = []
        await _stream_across_sigterm(nim, http, lines)
        assert lines[-2] == "data: [DONE]"
        assert await nim.exit_code() == 0
        with pytest.raises(httpx.ConnectError):
            await http.get("/v1/health/live")


@pytest.mark.parametrize(
    "environ", [{"NIMSIM_SIGTERM": "cut"}, {"NIMSIM_GRACE_S": "0.02", "NIMSIM_TOKEN_S": "1"}]
)
async def test_on_sigterm_it_can_cut_the_running_stream(environ: dict[str, str]) -> None:
    async with nim_process(**environ) as nim, httpx.AsyncClient(base_url=nim.url) as http:
        lines: list[str] = []
        with pytest.raises(httpx.RemoteProtocolError):
            await _stream_across_sigterm(nim, http, lines)
        assert "data: [DONE]" not in lines
        assert await nim.exit_code() == 0


async def test_a_port_in_use_is_one_sentence_and_exit_code_2() -> None:
    async with nim_process() as nim:
        port = nim.url.rpartition(":")[2]
        second = await asyncio.create_subprocess_exec(
            *NIM_COMMAND,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"NIMSIM_HOST": "127.0.0.1", "NIM_SERVER_PORT": port},
        )
        output, errors = await second.communicate()
    assert second.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use." in errors.decode()
    assert b"Traceback" not in output + errors
