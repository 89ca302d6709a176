"""One container's life: configure, start, probe, restart with back-off, stop.

Owns the container's `ContainerState` and tells the pod each time it changes. What a pod's parts
have in common (volumes, address, deletion) is `pod`'s.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nimway.sandbox.client import ApiError
from nimway.sandbox.node import environment, images, probes, status, volumes
from nimway.sandbox.node.context import Context, image_environment
from nimway.sandbox.node.fields import FieldError
from nimway.sandbox.node.runtime import PodRuntime, Program, StartError
from nimway.sandbox.node.timing import BackOff, now
from nimway.tasks import spawn

_CONFIG_RETRY_S: Final = 1.0
_EXIT_CANNOT_START: Final = 128
_AFTER_PRE_STOP_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Housing:
    """What the pod gives each of its containers; `pod` returns the pod as last seen."""

    context: Context
    runtime: PodRuntime
    address: str
    folders: dict[str, Path]
    downward: Callable[[str], volumes.Downward]
    pod: Callable[[], dict[str, Any]]
    changed: Callable[[], None]


class Container:
    """One container of a pod; `run` returns when it will not start again."""

    def __init__(self, spec: dict[str, Any], housing: Housing) -> None:
        self._spec = spec
        self._housing = housing
        self._stopping = False
        self._running = False
        self._environment: dict[str, str] = {}
        self._probing: list[asyncio.Task[None]] = []
        self._kill_timer: asyncio.TimerHandle | None = None
        self.state = status.ContainerState(
            name=spec["name"],
            image=spec["image"],
            state=status.waiting("ContainerCreating"),
        )

    async def run(self, policy: str) -> int:
        """Run until the restart policy has no further start; return the last exit code."""
        backoff = BackOff(self._housing.context.config.backoff_initial_s)
        loop = asyncio.get_running_loop()
        while True:
            program = await self._program()
            began = loop.time()
            code = await self._run_once(program)
            if self._stopping or policy == "Never" or (policy == "OnFailure" and code == 0):
                return code
            await self._back_off(backoff.next_delay_s(loop.time() - began))
            self.state.restart_count += 1

    async def _back_off(self, delay_s: float) -> None:
        self.state.last_state = self.state.state
        if delay_s == 0:
            return
        metadata = self._housing.pod()["metadata"]
        whose = f"{metadata['name']}_{metadata['namespace']}({metadata['uid']})"
        text = f"back-off {delay_s:g}s restarting failed container={self.state.name} pod={whose}"
        self._set(status.waiting("CrashLoopBackOff", text))
        await self._tell("Warning", "BackOff", text)
        await asyncio.sleep(delay_s)

    # Before the start

    async def _program(self) -> Program:
        """Find out what to run, waiting for what is missing."""
        entrypoint = await self._pull()
        while True:
            try:
                return await self._configure(entrypoint)
            except (environment.ConfigError, FieldError) as error:
                self._set(status.waiting("CreateContainerConfigError", str(error)))
                await self._tell("Warning", "Failed", f"Error: {error}")
            except ApiError as error:
                self._set(status.waiting("CreateContainerConfigError", error.message))
            await asyncio.sleep(_CONFIG_RETRY_S)

    async def _pull(self) -> list[str]:
        """Return the program behind the image; for an unknown image try for ever, as a kubelet."""
        image = self._spec["image"]
        backoff = BackOff(self._housing.context.config.backoff_initial_s)
        backoff.next_delay_s(0)
        while True:
            try:
                return images.entrypoint(image, self._housing.context.nimway)
            except images.UnknownImageError as error:
                self._set(status.waiting("ErrImagePull", str(error)))
                await self._tell("Warning", "Failed", f'Failed to pull image "{image}": {error}')
                await asyncio.sleep(_CONFIG_RETRY_S)
                text = f'Back-off pulling image "{image}": ErrImagePull: {error}'
                self._set(status.waiting("ImagePullBackOff", text))
                await asyncio.sleep(backoff.next_delay_s(0))

    async def _configure(self, entrypoint: list[str]) -> Program:
        housing, spec, pod = self._housing, self._spec, self._housing.pod()
        namespace = pod["metadata"]["namespace"]
        objects = {
            (kind, name): await housing.context.find(kind, namespace, name)
            for kind, name in environment.references(spec)
        }
        downward = housing.downward(spec["name"])
        values = environment.build(
            spec,
            namespace,
            objects,
            base=image_environment(pod["spec"].get("hostname") or pod["metadata"]["name"]),
            field=downward.field,
            resource=downward.resource,
        )
        self._environment = values
        argv = images.command_line(spec.get("command") or [], spec.get("args") or [], entrypoint)
        log = self.log_folder / f"{self.state.restart_count}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        return Program(
            argv=[environment.expand(word, values) for word in argv],
            environment=values,
            directory=spec.get("workingDir") or "/",
            log=str(log),
            mounts=volumes.mounts(spec, housing.folders, values),
            keep=housing.context.keep,
        )

    @property
    def log_folder(self) -> Path:
        """One file for each run: `0.log`, `1.log`, ..."""
        return log_folder(self._housing.context.config.pods, self._housing.pod(), self.state.name)

    # While it runs

    async def _run_once(self, program: Program) -> int:
        started = now()
        name = self.state.name
        self.state.container_id = f"sandbox://{os.urandom(16).hex()}"
        try:
            await self._housing.runtime.start(name, program)
        except StartError as error:
            ended = status.terminated(
                _EXIT_CANNOT_START, started, now(), self.state.container_id, "StartError"
            )
            ended["terminated"]["message"] = str(error)
            await self._tell("Warning", "Failed", f"Error: {error}")
            self._set(ended)
            return _EXIT_CANNOT_START
        self._running = True
        self._begin_probing()
        self._set(status.running(started))
        code = await self._housing.runtime.exited(name)
        self._running = False
        self._end_probing()
        self._cancel_kill()
        self.state.ready = self.state.started = False
        self._set(status.terminated(code, started, now(), self.state.container_id))
        return code

    def _begin_probing(self) -> None:
        self.state.started = not self._spec.get("startupProbe")
        self.state.ready = self.state.started and not self._spec.get("readinessProbe")
        if self.state.started:
            self._begin_late_probes()
        else:
            self._probing.append(self._spawn_probe("startupProbe", self._on_startup))

    def _begin_late_probes(self) -> None:
        if self._spec.get("readinessProbe"):
            self._probing.append(self._spawn_probe("readinessProbe", self._on_readiness))
        if self._spec.get("livenessProbe"):
            self._probing.append(self._spawn_probe("livenessProbe", self._on_liveness))

    def _spawn_probe(self, kind: str, verdict: Callable[[bool, str], bool]) -> "asyncio.Task[None]":
        return spawn(self._probe(self._spec[kind], verdict), name=f"{kind}-{self.state.name}")

    def _end_probing(self) -> None:
        for task in self._probing:
            task.cancel()
        self._probing.clear()

    async def _probe(self, probe: dict[str, Any], verdict: Callable[[bool, str], bool]) -> None:
        """Ask on schedule and hand on each verdict until `verdict` says that it is done."""
        loop = asyncio.get_running_loop()
        state = probes.ProbeState(probe, eager=self._housing.context.config.eager_probes)
        target = self._probe_target()
        await asyncio.sleep(state.initial_delay_s)
        due = loop.time()
        scheduled = True
        while True:
            failure = await probes.ask(probe, target, state.timeout_s)
            state.record(success=failure is None, scheduled=scheduled)
            if state.verdict is not None and verdict(state.verdict, failure or ""):
                return
            if scheduled:
                due = max(due + state.period_s, loop.time())
            delay, scheduled = state.next_try_s(max(0.0, due - loop.time()))
            await asyncio.sleep(delay)

    def _on_startup(self, success: bool, failure: str) -> bool:  # noqa: FBT001 - a callback's value
        if not success:
            self._kill_unhealthy("Startup", failure)
            return True
        self.state.started = True
        self.state.ready = not self._spec.get("readinessProbe")
        self._begin_late_probes()
        self._housing.changed()
        return True

    def _on_readiness(self, success: bool, failure: str) -> bool:  # noqa: FBT001 - as above
        del failure
        if success != self.state.ready:
            self.state.ready = success
            self._housing.changed()
        return False

    def _on_liveness(self, success: bool, failure: str) -> bool:  # noqa: FBT001 - as above
        if success or self._stopping:
            return self._stopping
        self._kill_unhealthy("Liveness", failure)
        return True

    def _kill_unhealthy(self, kind: str, failure: str) -> None:
        if self._stopping:
            return
        grace = float(self._housing.pod()["spec"].get("terminationGracePeriodSeconds") or 30)
        probe = self._spec.get(f"{kind.lower()}Probe", {})
        grace = float(probe.get("terminationGracePeriodSeconds") or grace)
        spawn(
            self._tell("Warning", "Unhealthy", f"{kind} probe failed: {failure}"),
            name=f"event-{self.state.name}",
        )
        spawn(self._stop_process(grace), name=f"unhealthy-{self.state.name}")

    # The end

    async def stop(self, grace_s: float) -> None:
        """Stop it for good: preStop, SIGTERM, and SIGKILL when `grace_s` seconds are over."""
        self._stopping = True
        if self._running:
            await self._stop_process(grace_s)

    async def _stop_process(self, grace_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        if hook := self._spec.get("lifecycle", {}).get("preStop"):
            await self._pre_stop(hook, max(grace_s, 0.0))
            deadline = max(deadline, loop.time() + min(_AFTER_PRE_STOP_S, grace_s))
        if not self._running:
            return
        self._housing.runtime.signal(self.state.name, signal.SIGTERM)
        self.kill_after(deadline - loop.time())
        await self._housing.runtime.exited(self.state.name)

    def kill_after(self, seconds: float) -> None:
        """Send SIGKILL after so many seconds, unless it ended by then; replaces an earlier call."""
        self._cancel_kill()
        if self._running:
            self._kill_timer = asyncio.get_running_loop().call_later(
                max(0.0, seconds),
                self._housing.runtime.signal,
                self.state.name,
                signal.SIGKILL,
            )

    def _cancel_kill(self) -> None:
        if self._kill_timer is not None:
            self._kill_timer.cancel()
            self._kill_timer = None

    async def _pre_stop(self, hook: dict[str, Any], timeout_s: float) -> None:
        """Run the hook; that it fails does not keep the container from being stopped."""
        if "sleep" in hook:
            await asyncio.sleep(min(float(hook["sleep"]["seconds"]), timeout_s))
            return
        failure = await probes.ask(hook, self._probe_target(), timeout_s)
        if failure is not None:
            await self._tell("Warning", "FailedPreStopHook", f"PreStopHook failed: {failure}")

    def _probe_target(self) -> probes.Target:
        ports = [port for port in self._spec.get("ports") or [] if "name" in port]
        named = {port["name"]: port["containerPort"] for port in ports}
        return probes.Target(self._housing.address, named, self._execute)

    async def _execute(self, argv: list[str]) -> int:
        try:
            return await self._housing.runtime.execute(self.state.name, argv, self._environment)
        except StartError as error:
            raise ValueError(f"command could not start: {error}") from error

    def _set(self, state: dict[str, Any]) -> None:
        self.state.state = state
        self._housing.changed()

    async def _tell(self, kind: str, reason: str, message: str) -> None:
        await self._housing.context.tell(self._housing.pod(), kind, reason, message)


def log_folder(pods: Path, pod: dict[str, Any], container: str) -> Path:
    """Return the folder with a container's output."""
    metadata = pod["metadata"]
    name = f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"
    return pods / name / "logs" / container
