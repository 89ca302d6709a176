"""The control path: a simulated NIM's own small HTTP API for tests, on a port of its own.

Owns changing the behaviour and the faults at run time, and showing what was received. A real NIM
has nothing like it, and the proxy never forwards to it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Protocol

import msgspec
from aiohttp import web

from nimway.sandbox.nim.engine import Engine
from nimway.sandbox.nim.faults import Faults
from nimway.sandbox.nim.ledger import Ledger
from nimway.sandbox.nim.settings import Behaviour, Fault, SettingsError, checked

HELP = """\
The control path of a simulated NIM (no real NIM has one).

GET    /settings    how it behaves now
PATCH  /settings    change some of it: {"ttft_s": 0.5, "token_s": 0.01, "concurrency_max": 2}
POST   /reload      not ready, then ready again after load_s
GET    /faults      faults in force
PUT    /faults      replace them all: [{"kind": "status", "status": 500, "times": 1}]
POST   /faults      add one
DELETE /faults      none any more
GET    /executions  how often each x-request-id was received, executed, answered, cancelled
GET    /requests    the newest requests; ?limit=100
GET    /last        the newest request: headers, sha256 of its body, what became of it
DELETE /requests    forget them
GET    /engine      requests running and waiting now
"""
_LIMIT_DEFAULT = 100


class Target(Protocol):
    """What the control path controls."""

    engine: Engine
    ledger: Ledger
    faults: Faults

    def reload(self) -> None:
        """Load the model again."""

    async def apply_faults(self) -> None:
        """Open or close the listener as the faults want it."""


def build_app(target: Target) -> web.Application:
    """Return the control path of `target`."""
    app = web.Application(middlewares=[_one_sentence])
    control = _Control(target)
    app.add_routes(
        [
            web.get("/", control.show_help),
            web.get("/settings", control.show_settings),
            web.patch("/settings", control.change_settings),
            web.post("/reload", control.reload),
            web.get("/faults", control.show_faults),
            web.put("/faults", control.replace_faults),
            web.post("/faults", control.add_fault),
            web.delete("/faults", control.clear_faults),
            web.get("/executions", control.show_executions),
            web.get("/requests", control.show_requests),
            web.delete("/requests", control.clear_requests),
            web.get("/last", control.show_last),
            web.get("/engine", control.show_engine),
        ]
    )
    return app


class _Control:
    """The handlers."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def show_help(self, request: web.Request) -> web.Response:
        del request
        return web.Response(text=HELP)

    async def show_settings(self, request: web.Request) -> web.Response:
        del request
        return _json(self._target.engine.behaviour)

    async def change_settings(self, request: web.Request) -> web.Response:
        raw = await request.read()
        changes = _decoded(raw, dict[str, Any])
        current = msgspec.structs.asdict(self._target.engine.behaviour)
        self._target.engine.reconfigure(checked(current | changes, Behaviour))
        return _json(self._target.engine.behaviour)

    async def reload(self, request: web.Request) -> web.Response:
        del request
        self._target.reload()
        return web.Response(status=202)

    async def show_faults(self, request: web.Request) -> web.Response:
        del request
        return _json(list(self._target.faults))

    async def replace_faults(self, request: web.Request) -> web.Response:
        self._target.faults.replace(_decoded(await request.read(), list[Fault]))
        return await self._faults_changed()

    async def add_fault(self, request: web.Request) -> web.Response:
        added = _decoded(await request.read(), Fault)
        self._target.faults.replace([*self._target.faults, added])
        return await self._faults_changed()

    async def clear_faults(self, request: web.Request) -> web.Response:
        del request
        self._target.faults.replace([])
        return await self._faults_changed()

    async def _faults_changed(self) -> web.Response:
        await self._target.apply_faults()
        return _json(list(self._target.faults))

    async def show_executions(self, request: web.Request) -> web.Response:
        del request
        return _json(self._target.ledger.executions())

    async def show_requests(self, request: web.Request) -> web.Response:
        text = request.query.get("limit", str(_LIMIT_DEFAULT))
        if not text.isdecimal():
            raise SettingsError("limit: not a number.")
        entries = list(self._target.ledger.entries)
        return _json([asdict(entry) for entry in entries[max(0, len(entries) - int(text)) :]])

    async def clear_requests(self, request: web.Request) -> web.Response:
        del request
        self._target.ledger.clear()
        return web.Response(status=204)

    async def show_last(self, request: web.Request) -> web.Response:
        del request
        return _json(self._target.ledger.last())

    async def show_engine(self, request: web.Request) -> web.Response:
        del request
        engine = self._target.engine
        return _json(
            {
                "loaded": engine.loaded.is_set(),
                "running": engine.running,
                "waiting": engine.waiting,
                "finished": engine.counters.finished,
                "cancelled": engine.counters.cancelled,
                "cache_usage": engine.cache_usage,
            }
        )


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _decoded(raw: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise SettingsError(str(error)) from None


@web.middleware
async def _one_sentence(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer wrong input with 400 and the sentence that says what is wrong."""
    try:
        return await handler(request)
    except SettingsError as error:
        return web.json_response({"error": str(error)}, status=400)
