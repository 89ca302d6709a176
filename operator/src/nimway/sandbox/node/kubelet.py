"""The part of a kubelet's HTTPS interface behind `kubectl logs`.

Owns `GET /containerLogs/...` with `follow`, `tailLines` and `previous`; timestamps and `since` are
left out because the files have none. The API server alone can reach it.
"""

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Final

from aiohttp import web

from nimway.sandbox.config import BRIDGE_ADDRESS, KUBELET_PORT, SandboxConfig

_POLL_S: Final = 0.2
_CHUNK_BYTES: Final = 64 * 1024


async def serve_logs(config: SandboxConfig) -> None:
    """Start serving the logs of every pod of the sandbox."""
    application = web.Application()
    handler = _Logs(config.pods)
    path = "/containerLogs/{namespace}/{pod}/{container}"
    application.router.add_get(path, handler.answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(config.pki / "kubelet.crt", config.pki / "kubelet.key")
    await web.TCPSite(runner, BRIDGE_ADDRESS, KUBELET_PORT, ssl_context=context).start()


class _Logs:
    def __init__(self, pods: Path) -> None:
        self._pods = pods

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Stream a container's latest (or previous) log file."""
        where = request.match_info
        files = log_files(self._pods, where["namespace"], where["pod"], where["container"])
        previous = request.query.get("previous") == "true"
        if len(files) < 1 + previous:
            kind = "previous terminated " if previous else ""
            return web.Response(
                status=404, text=f"{kind}container {where['container']!r} has no log yet"
            )
        response = web.StreamResponse()
        response.content_type = "text/plain"
        await response.prepare(request)
        path = files[-1 - previous]
        offset = _tail_offset(path, request.query.get("tailLines"))
        follow = request.query.get("follow") == "true"
        with contextlib.suppress(ConnectionError):
            await _copy(path, offset, response, follow=follow)
        return response


def log_files(pods: Path, namespace: str, pod: str, container: str) -> list[Path]:
    """Return a container's log files, oldest run first; of pods of one name the latest one's."""
    folders = sorted(
        pods.glob(f"{namespace}_{pod}_*/logs/{container}"), key=lambda path: path.stat().st_mtime
    )
    return sorted(folders[-1].glob("*.log"), key=lambda path: int(path.stem)) if folders else []


def _tail_offset(path: Path, lines: str | None) -> int:
    if lines is None:
        return 0
    content = path.read_bytes()
    kept = content.splitlines(keepends=True)[-int(lines) :] if int(lines) else []
    return len(content) - sum(len(line) for line in kept)


async def _copy(path: Path, offset: int, response: web.StreamResponse, *, follow: bool) -> None:
    with path.open("rb") as file:
        file.seek(offset)
        while True:
            if data := file.read(_CHUNK_BYTES):
                await response.write(data)
            elif follow:
                await asyncio.sleep(_POLL_S)
            else:
                return
