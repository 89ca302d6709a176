"""Probes: when to ask, what the answers mean (`ProbeState`, pure), and asking (`ask`).

As a kubelet does, HTTP and TCP probes come from outside of the pod to its address. `eager` is the
sandbox's one deviation: a probe that has not succeeded yet is asked more often than its period, so
that start-up is not rounded up to it; failures of these extra tries do not count.
"""

import asyncio
import contextlib
import os
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

_EAGER_FIRST_S: Final = 0.1
_EAGER_GROWTH: Final = 1.3
_EAGER_MAX_S: Final = 1.0
_HEAD_BYTES: Final = 4096
_SUCCESS: Final = range(200, 400)

Exec = Callable[[list[str]], Awaitable[int]]


class ProbeState:
    """Counts answers against a probe's thresholds and says when to ask next."""

    def __init__(self, probe: dict[str, Any], *, eager: bool) -> None:
        self.initial_delay_s = float(probe.get("initialDelaySeconds") or 0)
        self.period_s = max(1.0, float(probe.get("periodSeconds") or 10))
        self.timeout_s = max(1.0, float(probe.get("timeoutSeconds") or 1))
        self._success_threshold = int(probe.get("successThreshold") or 1)
        self._failure_threshold = int(probe.get("failureThreshold") or 3)
        self._eager = eager
        self._eager_s = _EAGER_FIRST_S
        self._streak = 0
        self._last: bool | None = None
        self.verdict: bool | None = None
        """True or False once a threshold was reached, None before."""

    def record(self, *, success: bool, scheduled: bool) -> None:
        """Count an answer; an extra try (not `scheduled`) counts only when it succeeds."""
        if not success and not scheduled:
            return
        self._streak = self._streak + 1 if success == self._last else 1
        self._last = success
        threshold = self._success_threshold if success else self._failure_threshold
        if self._streak >= threshold:
            self.verdict = success

    def next_try_s(self, until_scheduled_s: float) -> tuple[float, bool]:
        """Return (seconds to the next try, whether that is the scheduled one)."""
        if not self._eager or self.verdict is not None or self._last:
            return until_scheduled_s, True
        extra = self._eager_s
        self._eager_s = min(_EAGER_MAX_S, self._eager_s * _EAGER_GROWTH)
        return (extra, False) if extra < until_scheduled_s else (until_scheduled_s, True)


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to ask: the pod's address, its container's named ports, and a way to run a command."""

    address: str
    ports: dict[str, int]
    run: Exec


async def ask(probe: dict[str, Any], target: Target, timeout_s: float) -> str | None:
    """Ask once; return None for success, else why it failed in a kubelet's words."""
    try:
        async with asyncio.timeout(timeout_s):
            if "exec" in probe:
                code = await target.run(probe["exec"]["command"])
                return None if code == 0 else f"command exited with status {code}"
            if "tcpSocket" in probe:
                await _ask_tcp(probe["tcpSocket"], target)
                return None
            if "httpGet" in probe:
                return await _ask_http(probe["httpGet"], target)
    except TimeoutError:
        return f"timed out after {timeout_s:g}s"
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        return f"dial tcp {target.address}: connect: {reason}"
    except ValueError as error:
        return str(error)
    return "this kind of probe is not supported by the sandbox"


def port_number(port: str | int, ports: dict[str, int]) -> int:
    """Return the number of a port given by number or by name."""
    if isinstance(port, int):
        return port
    if port in ports:
        return ports[port]
    if port.isdigit():
        return int(port)
    raise ValueError(f"couldn't find port: {port}")


async def _ask_tcp(action: dict[str, Any], target: Target) -> None:
    host = action.get("host") or target.address
    _, writer = await asyncio.open_connection(host, port_number(action["port"], target.ports))
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _ask_http(action: dict[str, Any], target: Target) -> str | None:
    port = port_number(action["port"], target.ports)
    host = action.get("host") or target.address
    headers = {"Host": f"{host}:{port}", "User-Agent": "kube-probe/1.36", "Accept": "*/*"}
    headers |= {each["name"]: each["value"] for each in action.get("httpHeaders") or []}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    secure = _unverified() if action.get("scheme") == "HTTPS" else None
    reader, writer = await asyncio.open_connection(host, port, ssl=secure)
    try:
        path = action.get("path") or "/"
        writer.write(f"GET {path} HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode())
        line = await reader.readuntil(b"\r\n")
        status = int(line.split(b" ", 2)[1])
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readexactly(_HEAD_BYTES)
    except asyncio.IncompleteReadError:
        return f"Get http://{host}:{port}{path}: EOF"
    finally:
        writer.transport.abort()
    if status in _SUCCESS:
        return None
    return f"HTTP probe failed with statuscode: {status}"


def _unverified() -> ssl.SSLContext:
    """Kubelets do not verify the certificate of a probed pod."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
