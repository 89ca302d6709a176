"""Starts and watches everything inside a sandbox, and tells the launcher how far it is.

Owns the order: certificates, bridge, etcd and API server, then (once /readyz says 200) controller
manager, scheduler and nodes, then the way in. It ends when one of the four programs ends; PID 1
then ends too, and with it the sandbox.
"""

import asyncio
import datetime as dt
import json
import logging
import os
import socket
import sys
from typing import Any, Final

from nimway.sandbox import controlplane
from nimway.sandbox.client import ApiError, Client
from nimway.sandbox.config import API_PORT, BRIDGE_ADDRESS, SandboxConfig
from nimway.sandbox.errors import SandboxError
from nimway.sandbox.forward import Forwarder
from nimway.sandbox.network import Network
from nimway.sandbox.node import nodes, storage
from nimway.sandbox.node.agent import Agent
from nimway.sandbox.node.context import Context, folders_of_programs, nimway_command
from nimway.sandbox.node.kubelet import serve_logs
from nimway.sandbox.node.mounting import MEMORY_FOLDER
from nimway.sandbox.node.runtime import Forker
from nimway.tasks import spawn

_POLL_S: Final = 0.05
_READY_DEADLINE_S: Final = 120.0

_log = logging.getLogger(__name__)


def run(config: SandboxConfig, listener: int, events: int, forker: socket.socket) -> int:
    """Run the sandbox until one of its parts ends; return the exit status."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    supervisor = Supervisor(config, events, forker)
    try:
        asyncio.run(supervisor.run(socket.socket(fileno=listener)))
    except SandboxError as error:
        _log.error("ending: %s", error)
        supervisor.say(event="failed", message=str(error))
        return 1
    return 0


class Supervisor:
    """The processes of one sandbox's control plane."""

    def __init__(self, config: SandboxConfig, events: int, forker: socket.socket) -> None:
        self._config = config
        self._events = events
        self._forker = forker
        self._programs: dict[asyncio.Task[Any], str] = {}

    def say(self, **event: Any) -> None:
        """Send one event to the launcher, which may have gone."""
        try:
            os.write(self._events, json.dumps(event).encode() + b"\n")
        except OSError:
            _log.info("launcher has gone: %s", event)

    async def run(self, listener: socket.socket) -> None:
        """Start everything, then wait for the first program to end, which is an error."""
        config = self._config
        controlplane.prepare(config, dt.datetime.now(dt.UTC))  # noqa: TID251 - the rim
        network = Network()
        await network.create_bridge()
        await self._start("etcd", controlplane.etcd(config))
        await self._start("kube-apiserver", controlplane.api_server(config))
        async with Client(config.pki) as client:
            await self._until(client.is_ready, "the API server did not become ready")
            self.say(event="step", text="API server ready")
            manager = controlplane.controller_manager(config)
            await self._start("kube-controller-manager", manager)
            await self._start("kube-scheduler", controlplane.scheduler(config))
            await self._start_nodes(client, network)
            forwarder = Forwarder(client)
            await forwarder.serve(listener, lambda: (BRIDGE_ADDRESS, API_PORT))
            spawn(forwarder.listen(config), name="forward-control")
            await self._until(
                lambda: _usable(client),
                "the controller manager did not make service accounts and nodes ready",
            )
            self.say(event="ready")
            os.close(self._events)
            await asyncio.wait(self._programs, return_when=asyncio.FIRST_COMPLETED)
            self._check_programs()

    async def _start_nodes(self, client: Client, network: Network) -> None:
        config = self._config
        version = (await client.get("/version"))["gitVersion"]
        await nodes.register(client, config, version)
        await storage.create_class(client)
        await serve_logs(config)
        MEMORY_FOLDER.mkdir()
        agent = Agent(
            Context(
                config=config,
                client=client,
                network=network,
                forker=Forker(self._forker),
                attachments=storage.Attachments(),
                nimway=nimway_command(),
                keep=folders_of_programs(),
            )
        )
        self._programs[spawn(agent.run(), name="node-agent")] = "node-agent"

    async def _start(self, name: str, command: list[str]) -> None:
        _log.info("starting: %s", " ".join(command))
        with (self._config.logs / f"{name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._programs[spawn(process.wait(), name=name)] = name

    def _check_programs(self) -> None:
        for task, name in self._programs.items():
            if task.done() and (error := task.exception()) is not None:
                raise SandboxError(f"{name} failed: {error!r} (see {self._config.logs})")
            if task.done():
                log = self._config.logs / f"{name}.log"
                tail = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise SandboxError(
                    f"{name} ended with status {task.result()}: {' '.join(tail)[:300]} (see {log})"
                )

    async def _until(self, condition: Any, failure: str) -> None:
        """Poll until the condition holds, a program ends or the deadline passes."""
        deadline = asyncio.get_running_loop().time() + _READY_DEADLINE_S
        while not await condition():
            self._check_programs()
            if asyncio.get_running_loop().time() > deadline:
                raise SandboxError(
                    f"{failure} in {_READY_DEADLINE_S:.0f} s, see {self._config.logs}"
                )
            await asyncio.sleep(_POLL_S)


async def _usable(client: Client) -> bool:
    """Tell whether pods can be created and scheduled."""
    try:
        await client.get("/api/v1/namespaces/default/serviceaccounts/default")
    except ApiError:
        return False
    listed = (await client.get("/api/v1/nodes"))["items"]
    taints = [taint for node in listed for taint in node["spec"].get("taints") or []]
    return all(taint["key"] != "node.kubernetes.io/not-ready" for taint in taints)
