"""From an aiohttp request to its handler and back onto the wire, faults included.

Owns reading bodies whole, the ledger's entries, error answers and sending. What a path does is
api.py's business.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from nimway.sandbox.nim import answers, api, dialects, faults
from nimway.sandbox.nim.answers import Answer
from nimway.sandbox.nim.bodies import BodyError
from nimway.sandbox.nim.ledger import Entry, Ledger, digest
from nimway.sandbox.nim.settings import Fault

BODY_BYTES_MAX = 256 * 1024 * 1024
BODY_HASH_HEADER = "x-nimsim-body-sha256"
_MODEL_PATH = "/v1/models/"
_HEALTH_PREFIX = "/v1/health/"
_STATUS_HTTP = 400

_log = logging.getLogger("nimway.nim")

ROUTES: dict[str, tuple[str, api.Handler]] = {
    "/v1/models": ("GET", api.list_models),
    "/v1/completions": ("POST", api.completions),
    "/v1/chat/completions": ("POST", api.chat_completions),
    "/v1/embeddings": ("POST", api.embeddings),
    "/v1/ranking": ("POST", api.ranking),
    "/v1/rerank": ("POST", api.rerank),
    "/v1/classify": ("POST", api.classify),
    "/v1/responses": ("POST", dialects.responses),
    "/v1/messages": ("POST", dialects.messages),
    "/tokenize": ("POST", api.tokenize),
    "/detokenize": ("POST", api.detokenize),
    "/v1/health/live": ("GET", api.live),
    "/v1/health/ready": ("GET", api.ready),
    "/v1/metrics": ("GET", api.show_metrics),
    "/metrics": ("GET", api.show_metrics),
    "/v1/metadata": ("GET", api.show_metadata),
    "/v1/version": ("GET", api.show_version),
    "/v1/license": ("GET", api.show_license),
    "/v1/manifest": ("GET", api.show_manifest),
}
_WHILE_LOADING = frozenset(
    {"/v1/health/live", "/v1/health/ready", "/v1/metrics", "/metrics", "/v1/metadata"}
    | {"/v1/version", "/v1/license", "/v1/manifest"}
)


class Dispatcher:
    """Answers requests of one NIM, and counts those in flight: a drain waits for zero."""

    def __init__(self, nim: api.Nim, ledger: Ledger, pending: faults.Faults) -> None:
        self._nim = nim
        self._ledger = ledger
        self._faults = pending
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def wait_idle(self) -> None:
        """Return once no request is in flight."""
        await self._idle.wait()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; the client's leaving cancels this."""
        self._in_flight += 1
        self._idle.clear()
        entry = self._ledger.open(request.method, request.path, request.headers.items())
        try:
            return await self._exchange(request, entry)
        except (asyncio.CancelledError, ConnectionError):
            if entry.outcome == "open":
                entry.outcome = "cancelled"
            raise
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()
            level = logging.DEBUG if request.path.startswith(_HEALTH_PREFIX) else logging.INFO
            _log.log(level, "answered request", extra={"fields": _log_fields(entry)})

    async def _exchange(self, request: web.BaseRequest, entry: Entry) -> web.StreamResponse:
        fault = self._faults.take(request.method, request.path)
        try:
            body = await _read(request)
            entry.body_bytes, entry.body_sha256 = len(body), digest(body)
            if fault and fault.kind == "delay":
                await asyncio.sleep(fault.delay_s)
            answer = await self._answer(request, entry, body, fault)
        except BodyError as problem:
            answer = answers.error(problem, self._nim.engine.behaviour.generation)
        return await self._send(request, entry, answer, fault)

    async def _answer(
        self, request: web.BaseRequest, entry: Entry, body: bytes, fault: Fault | None
    ) -> Answer:
        path, rest = request.path, ""
        if path.startswith(_MODEL_PATH):
            path, rest = _MODEL_PATH, path.removeprefix(_MODEL_PATH)
        method, handler = ROUTES.get(path, ("", None))
        if rest:
            method, handler = "GET", api.get_model
        if handler is None:
            return answers.json_answer({"detail": "Not Found"}, 404)
        if request.method != method and (request.method, method) != ("HEAD", "GET"):
            refusal = answers.json_answer({"detail": "Method Not Allowed"}, 405)
            refusal.headers["Allow"] = method
            return refusal
        if fault and fault.kind == "status":
            return self._fault_status(fault)
        if not self._nim.engine.loaded.is_set() and path not in _WHILE_LOADING:
            raise BodyError(
                "the model is still loading", status=503, kind="ServiceUnavailableError"
            )
        return await handler(api.Call(self._nim, body, entry, rest))

    def _fault_status(self, fault: Fault) -> Answer:
        problem = BodyError("a fault was injected", status=fault.status, kind="SimulatedFault")
        answer = answers.error(problem, self._nim.engine.behaviour.generation)
        if fault.retry_after_s is not None:
            answer.headers["Retry-After"] = str(fault.retry_after_s)
        return answer

    async def _send(
        self, request: web.BaseRequest, entry: Entry, answer: Answer, fault: Fault | None
    ) -> web.StreamResponse:
        entry.status = answer.status
        headers = {"Content-Type": answer.content_type, BODY_HASH_HEADER: entry.body_sha256}
        headers |= answer.headers
        if entry.request_id:
            headers["X-Request-Id"] = entry.request_id
        if fault and fault.kind != "delay":
            entry.outcome = f"fault:{fault.kind}"
        if answer.stream is None and not (fault and _acts_on_wire(fault)):
            entry.chunks = 1
            entry.outcome = "answered" if entry.outcome == "open" else entry.outcome
            return web.Response(body=answer.body, status=answer.status, headers=headers)
        response = web.StreamResponse(status=answer.status, headers=headers)
        if answer.stream is None:
            response.content_length = len(answer.body)
        elif request.version >= (1, 1):
            response.enable_chunked_encoding()
        async with aclosing(answer.stream or faults.halves(answer.body)) as chunks:
            await self._stream(request, response, chunks, entry, fault)
        return response

    async def _stream(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        chunks: AsyncGenerator[bytes, None],
        entry: Entry,
        fault: Fault | None,
    ) -> None:
        early = self._nim.engine.behaviour.early_head and not (
            fault and fault.kind in ("reset", "garbage")
        )
        if early:
            await response.prepare(request)
        async for chunk in chunks:
            if fault:
                await _misbehave(request, fault, entry.chunks)
            if not response.prepared:
                await response.prepare(request)
            await response.write(chunk)
            entry.chunks += 1
        if fault and fault.kind in ("reset_mid_stream", "fin_mid_stream"):
            await faults.break_connection(request, fault)
        await response.write_eof()
        if entry.outcome == "open":
            entry.outcome = "answered"


def _acts_on_wire(fault: Fault) -> bool:
    return fault.kind in faults.MID_STREAM or fault.kind in ("reset", "garbage")


async def _misbehave(request: web.BaseRequest, fault: Fault, sent: int) -> None:
    """Do what `fault` does before chunk number `sent` (from 0)."""
    if fault.kind in ("reset", "garbage"):
        await faults.break_connection(request, fault)
    elif fault.kind == "slow" or (fault.kind == "stall" and sent == fault.after_chunks):
        await asyncio.sleep(fault.delay_s)
    elif fault.kind in ("reset_mid_stream", "fin_mid_stream") and sent >= fault.after_chunks:
        await faults.break_connection(request, fault)


async def _read(request: web.BaseRequest) -> bytes:
    """Return the body's bytes as they came, without undoing a content coding."""
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise BodyError("the body is too large", status=413)
    return bytes(body)


def _log_fields(entry: Entry) -> dict[str, object]:
    """Return what the log keeps of a request; it outlives the pod, as the ledger does not."""
    return {
        "number": entry.number,
        "method": entry.method,
        "path": entry.path,
        "status": entry.status,
        "executed": entry.executed,
        "model": entry.model,
        "request_id": entry.request_id,
        "body_bytes": entry.body_bytes,
        "outcome": entry.outcome,
    }
