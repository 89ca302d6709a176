"""The agent's end of a pod's first process: starting, running, signalling.

Owns one socket for each pod (see `podinit` for the messages). It must not decide anything.
"""

import asyncio
import contextlib
import json
import os
import socket
from dataclasses import dataclass
from typing import Any

from nimway.sandbox.config import POD_NETWORK_BITS
from nimway.sandbox.network import Network
from nimway.sandbox.podinit import MESSAGE_BYTES_MAX


class StartError(Exception):
    """A process could not be started; the text says why."""


class Forker:
    """Asks PID 1 of the sandbox for a new pod."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def fork_pod(self, theirs: socket.socket) -> None:
        """Have PID 1 fork the first process of a pod, which will talk on `theirs`."""
        socket.send_fds(self._channel, [b"pod"], [theirs.fileno()])


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run in a container: see `volumes.mounts` for `mounts`."""

    argv: list[str]
    environment: dict[str, str]
    directory: str
    log: str
    mounts: list[dict[str, Any]]
    keep: list[str]


class PodRuntime:
    """One pod's namespaces and processes."""

    def __init__(self) -> None:
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._channel = ours
        self._answers: dict[str, asyncio.Future[Any]] = {}
        self._exits: dict[str, asyncio.Future[int]] = {}
        self._serial = 0

    async def create(self, forker: Forker, network: Network, address: str, hostname: str) -> None:
        """Fork the pod's first process and connect it to the pod network.

        Raises:
            StartError: the namespaces or the network could not be made.
        """
        loop = asyncio.get_running_loop()
        self._answers["namespace"] = loop.create_future()
        self._answers["network"] = loop.create_future()
        loop.add_reader(self._channel.fileno(), self._readable)
        forker.fork_pod(self._theirs)
        self._theirs.close()
        namespace = await self._answers["namespace"]
        try:
            await network.connect(namespace)
        finally:
            os.close(namespace)
        self._send(op="network", address=address, bits=POD_NETWORK_BITS, hostname=hostname)
        await self._answers["network"]

    async def start(self, name: str, program: Program) -> None:
        """Start a container's process; `exited` then waits for its end.

        Raises:
            StartError: a mount failed or the program does not exist.
        """
        await self._run(
            name,
            op="start",
            argv=program.argv,
            env=program.environment,
            cwd=program.directory,
            log=program.log,
            mounts=program.mounts,
            keep=program.keep,
        )

    async def execute(self, container: str, argv: list[str], environment: dict[str, str]) -> int:
        """Run a command in a running container and return its exit code.

        Raises:
            StartError: the container does not run or the program does not exist.
        """
        self._serial += 1
        name = f"exec-{self._serial}"
        await self._run(name, op="exec", container=container, argv=argv, env=environment)
        try:
            return await self.exited(name)
        except asyncio.CancelledError:
            self.signal(name, 9)
            raise

    async def exited(self, name: str) -> int:
        """Wait for a process that was started and return its exit code (128 + n for signal n)."""
        return await asyncio.shield(self._exits[name])

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a container's process."""
        with contextlib.suppress(OSError):
            self._send(op="signal", id=name, signal=number)

    def close(self) -> None:
        """End every process of the pod."""
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        self._channel.close()
        self._fail("the pod has been removed")

    async def _run(self, name: str, **request: Any) -> None:
        loop = asyncio.get_running_loop()
        answer = self._answers[f"started-{name}"] = loop.create_future()
        self._exits[name] = loop.create_future()
        try:
            self._send(id=name, **request)
        except OSError as error:
            raise StartError(str(error)) from error
        if (error_text := await answer) is not None:
            raise StartError(error_text)

    def _send(self, **request: Any) -> None:
        self._channel.send(json.dumps(request).encode())

    def _readable(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._channel, MESSAGE_BYTES_MAX, 1)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if not data:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._fail("the pod's first process has ended")
            return
        message = json.loads(data)
        match message["event"]:
            case "namespace":
                self._resolve("namespace", descriptors[0])
            case "network":
                self._resolve("network", None)
            case "started":
                self._resolve(f"started-{message['id']}", message["error"])
            case "exited":
                self._exits[message["id"]].set_result(message["code"])

    def _resolve(self, key: str, value: Any) -> None:
        future = self._answers.pop(key)
        if not future.done():
            future.set_result(value)

    def _fail(self, text: str) -> None:
        """Let nobody wait for answers that will not come."""
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(StartError(text))
                answer.exception()
        for exit_ in self._exits.values():
            if not exit_.done():
                exit_.set_result(137)
