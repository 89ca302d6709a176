"""One simulated NIM with its sockets: start, load, refuse, drain, stop.

Owns the listeners and their order. Tests start it in their own event loop; the command runs it as a
process of its own.
"""

import asyncio
import logging
import os
import socket
import time
from pathlib import Path

from aiohttp import web

from nimway.sandbox.nim.api import Nim
from nimway.sandbox.nim.control import build_app
from nimway.sandbox.nim.dispatch import Dispatcher
from nimway.sandbox.nim.engine import Engine
from nimway.sandbox.nim.faults import Faults
from nimway.sandbox.nim.ledger import Ledger
from nimway.sandbox.nim.models import Models
from nimway.sandbox.nim.settings import Settings
from nimway.tasks import spawn

_BACKLOG = 1024
_CLEANUP_S = 1.0

_log = logging.getLogger("nimway.nim")


class ListenError(Exception):
    """A port cannot be bound; the text names it."""


class NimServer:
    """A simulated NIM that listens. Create it inside a running event loop.

    `port` and `control_port` are the real ones once it has started (0 asks for any free one);
    `control_port` is None where there is no control path.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.port = settings.port
        self.control_port: int | None = None
        self.engine = Engine(settings.behaviour)
        self.ledger = Ledger()
        self.faults = Faults(settings.faults)
        started_s = int(time.time())  # noqa: TID251 - the API reports calendar time
        nim = Nim(settings, self.engine, Models(settings), started_s)
        self._dispatcher = Dispatcher(nim, self.ledger, self.faults)
        self._runner: web.ServerRunner | None = None
        self._control: web.AppRunner | None = None
        self._site: web.SockSite | None = None
        self._loading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the ports and begin to load.

        Raises:
            ListenError: a port cannot be bound.
        """
        server = web.Server(
            self._dispatcher.handle,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=self.settings.keepalive_s,
            max_line_size=65_536,
            max_field_size=65_536,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=_CLEANUP_S)
        await self._runner.setup()
        sock = _bound(self.settings.host, self.settings.port)
        self.port = sock.getsockname()[1]
        if self.faults.refusing:
            sock.close()
        else:
            await self._listen(sock)
        await self._start_control()
        self.reload()

    async def stop(self) -> None:
        """Refuse new connections; finish or cut what runs, as the behaviour says; close all."""
        _log.info("stopping", extra={"fields": {"sigterm": self.engine.behaviour.sigterm}})
        if self._loading is not None:
            self._loading.cancel()
        await self._unlisten()
        if self._runner is not None and self._runner.server is not None:
            self._runner.server.pre_shutdown()
            if self.engine.behaviour.sigterm == "finish":
                await self._finish(self.engine.behaviour.grace_s)
            for connection in self._runner.server.connections:
                connection.force_close()
            await self._runner.cleanup()
        if self._control is not None:
            await self._control.cleanup()

    def reload(self) -> None:
        """Be not ready, and ready again after `load_s`."""
        if self._loading is not None:
            self._loading.cancel()
        self.engine.loaded.clear()
        load_s = self.engine.behaviour.load_s
        if load_s == 0:
            self.engine.loaded.set()
        else:
            self._loading = spawn(self._load(load_s), name="loading the simulated model")

    async def apply_faults(self) -> None:
        """Open or close the listener as the faults want it."""
        if self.faults.refusing:
            await self._unlisten()
        elif self._site is None:
            await self._listen(_bound(self.settings.host, self.port))

    async def _load(self, load_s: float) -> None:
        _log.info("loading the simulated model", extra={"fields": {"load_s": load_s}})
        await asyncio.sleep(load_s)
        self.engine.loaded.set()
        _log.info("ready")

    async def _finish(self, grace_s: float) -> None:
        try:
            async with asyncio.timeout(grace_s):
                await self._dispatcher.wait_idle()
        except TimeoutError:
            _log.warning("grace is over, cutting", extra={"fields": {"grace_s": grace_s}})

    async def _listen(self, sock: socket.socket) -> None:
        if self._runner is None:
            raise RuntimeError("not started")
        self._site = web.SockSite(self._runner, sock, backlog=_BACKLOG)
        await self._site.start()

    async def _unlisten(self) -> None:
        if self._site is not None:
            site, self._site = self._site, None
            await site.stop()

    async def _start_control(self) -> None:
        wanted = self.settings.control_port
        if wanted is None:
            return
        try:
            sock = _bound(self.settings.host, wanted)
        except ListenError as error:
            if self.settings.control_port_required:
                raise
            _log.warning("no control path: %s", error)
            return
        self.control_port = sock.getsockname()[1]
        self._control = web.AppRunner(build_app(self), access_log=None, shutdown_timeout=0.1)
        await self._control.setup()
        await web.SockSite(self._control, sock, backlog=_BACKLOG).start()


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise ListenError(f"{host} is no address to listen on: {error.strerror}.") from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}."
        ) from None
    sock.setblocking(False)
    return sock


def check_cache(settings: Settings) -> None:
    """Say so if the cache folder cannot be written, as a real NIM would fail there."""
    path = settings.cache_path
    if path and not (Path(path).is_dir() and os.access(path, os.W_OK)):
        _log.warning("the cache is no writable folder", extra={"fields": {"NIM_CACHE_PATH": path}})
