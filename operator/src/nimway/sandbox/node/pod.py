"""One pod's life: volumes, namespaces, init containers, containers, deletion, status.

Owns the pod's address, its folder of volumes and the writing of its status. One container's life
is `container`'s.
"""

import asyncio
import contextlib
import logging
import shutil
from pathlib import Path
from typing import Any, Final

from nimway.sandbox.client import STRATEGIC_PATCH, ApiError
from nimway.sandbox.config import BRIDGE_ADDRESS
from nimway.sandbox.node import fields, status, volumes
from nimway.sandbox.node.container import Container, Housing
from nimway.sandbox.node.context import Context
from nimway.sandbox.node.environment import ConfigError
from nimway.sandbox.node.mounting import VolumeSet
from nimway.sandbox.node.nodes import ALLOCATABLE
from nimway.sandbox.node.runtime import PodRuntime, StartError
from nimway.sandbox.node.timing import now, parse, stamp
from nimway.tasks import spawn

PRETEND_ANNOTATION: Final = "sandbox.nimway.dev/pretend"
_RETRY_FIRST_S: Final = 0.05
_RETRY_MAX_S: Final = 2.0
_STATUS_RETRY_S: Final = 0.2
_GRACE_DEFAULT_S: Final = 30

_log = logging.getLogger(__name__)


class Pod:
    """A pod bound to one of our nodes; `run` returns when it has been removed."""

    def __init__(self, manifest: dict[str, Any], context: Context) -> None:
        self._manifest = manifest
        self._context = context
        self._started = stamp(now())
        self._address = context.network.take_address()
        self._runtime: PodRuntime | None = None
        self._volumes = VolumeSet(context, self.manifest, self._downward)
        self._containers: list[Container] = []
        self._inits: list[Container] = []
        self._pretending: list[status.ContainerState] = []
        self._initialized = False
        self._sandboxed = False
        self._ended = False
        self._conditions: dict[str, status.Condition] = {}
        self._dirty = asyncio.Event()
        self._deleting = asyncio.Event()
        self._gone = asyncio.Event()
        self._reported: dict[str, Any] = {}
        self._accept(manifest)

    def manifest(self) -> dict[str, Any]:
        """Return the pod as last seen."""
        return self._manifest

    def update(self, manifest: dict[str, Any]) -> None:
        """Take note of a change: a deletion request, a shorter grace period, a readiness gate."""
        previous = self._manifest
        self._manifest = manifest
        self._accept(manifest)
        if manifest["spec"].get("readinessGates"):
            self._dirty.set()
        grace = manifest["metadata"].get("deletionGracePeriodSeconds")
        before = previous["metadata"].get("deletionGracePeriodSeconds")
        if grace is not None and before is not None and grace < before:
            for container in self._containers:
                container.kill_after(grace)

    def report_again(self) -> None:
        """Write the status though it is the same: somebody else has changed it."""
        self._reported = {}
        self._dirty.set()

    def removed(self) -> None:
        """Take note that the API server no longer has the pod."""
        self._gone.set()

    def _accept(self, manifest: dict[str, Any]) -> None:
        if "deletionTimestamp" in manifest["metadata"]:
            self._deleting.set()

    async def run(self) -> None:
        """Live: start, run, end as asked, and take everything away."""
        reporting = spawn(self._report_changes(), name=f"status-{self._name}")
        living = spawn(self._live(), name=f"pod-{self._name}")
        waits = [
            spawn(event.wait(), name=f"wait-{self._name}") for event in (self._deleting, self._gone)
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not self._gone.is_set():
                await self._end_gracefully(waits[1])
        finally:
            for task in (reporting, living, *waits):
                task.cancel()
            await asyncio.gather(reporting, living, *waits, return_exceptions=True)
            await self._take_away()

    @property
    def _name(self) -> str:
        metadata = self._manifest["metadata"]
        return f"{metadata['namespace']}/{metadata['name']}"

    @property
    def _path(self) -> str:
        metadata = self._manifest["metadata"]
        return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"

    # Life

    async def _live(self) -> None:
        annotations = self._manifest["metadata"].get("annotations") or {}
        if self._context.config.pretend or annotations.get(PRETEND_ANNOTATION) == "true":
            self._pretend()
            return
        folders, runtime = await asyncio.gather(self._prepare_volumes(), self._create_runtime())
        housing = Housing(
            context=self._context,
            runtime=runtime,
            address=self._address,
            folders=folders,
            downward=self._downward,
            pod=self.manifest,
            changed=self._dirty.set,
        )
        spec = self._manifest["spec"]
        self._sandboxed = True
        self._inits = [Container(each, housing) for each in spec.get("initContainers") or []]
        self._containers = [Container(each, housing) for each in spec["containers"]]
        if not await self._initialize():
            return
        policy = spec.get("restartPolicy", "Always")
        self._volumes.begin_refreshing(self._name)
        names = [f"container-{self._name}-{each.state.name}" for each in self._containers]
        runs = [
            spawn(each.run(policy), name=name)
            for each, name in zip(self._containers, names, strict=True)
        ]
        try:
            await asyncio.gather(*runs)
        finally:
            for task in runs:
                task.cancel()
        if not self._deleting.is_set():
            self._ended = True
            self._dirty.set()

    async def _initialize(self) -> bool:
        """Run the init containers one after the other; return whether all succeeded."""
        never = self._manifest["spec"].get("restartPolicy") == "Never"
        for init in self._inits:
            if await init.run("Never" if never else "OnFailure") != 0:
                self._ended = True
                self._dirty.set()
                return False
        self._initialized = True
        return True

    async def _prepare_volumes(self) -> dict[str, Path]:
        """Make the volumes, waiting for objects that do not exist yet."""
        delay = _RETRY_FIRST_S
        said = ""
        while True:
            try:
                return await self._volumes.prepare()
            except (ConfigError, ApiError, fields.FieldError) as error:
                # The first moments of a namespace lack kube-root-ca.crt: no reason for an event.
                if str(error) != said and delay > 10 * _RETRY_FIRST_S:
                    said = str(error)
                    await self._context.tell(
                        self._manifest,
                        "Warning",
                        "FailedMount",
                        f"MountVolume.SetUp failed: {said}",
                    )
            self._dirty.set()
            await asyncio.sleep(delay)
            delay = min(_RETRY_MAX_S, 2 * delay)

    async def _create_runtime(self) -> PodRuntime:
        hostname = self._manifest["spec"].get("hostname") or self._manifest["metadata"]["name"]
        while True:
            self._runtime = PodRuntime()
            try:
                await self._runtime.create(
                    self._context.forker, self._context.network, self._address, hostname
                )
            except (StartError, OSError) as error:
                self._runtime.close()
                await self._context.tell(
                    self._manifest, "Warning", "FailedCreatePodSandBox", str(error)
                )
                await asyncio.sleep(_RETRY_MAX_S)
            else:
                return self._runtime

    def _pretend(self) -> None:
        """Be running and ready without doing anything."""
        self._sandboxed = self._initialized = True
        for spec in self._manifest["spec"]["containers"]:
            state = status.ContainerState(name=spec["name"], image=spec["image"])
            state.state = status.running(now())
            state.ready = state.started = True
            state.container_id = "sandbox://pretended"
            self._pretending.append(state)
        self._dirty.set()

    def _downward(self, container: str | None) -> volumes.Downward:
        manifest = self._manifest
        return volumes.Downward(
            field=lambda path: fields.field(
                manifest, path, address=self._address, host_address=BRIDGE_ADDRESS
            ),
            resource=lambda reference: fields.resource(manifest, reference, container, ALLOCATABLE),
        )

    # The end

    async def _end_gracefully(self, gone: "asyncio.Task[Any]") -> None:
        """Stop the containers within the grace period, report, and remove the pod from the API."""
        metadata = self._manifest["metadata"]
        grace = float(metadata.get("deletionGracePeriodSeconds", _GRACE_DEFAULT_S))
        everything = [*self._inits, *self._containers]
        stopping = asyncio.gather(*(each.stop(grace) for each in everything))
        await asyncio.wait([stopping, gone], return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            stopping.cancel()
            return
        for state in self._pretending:
            state.ready = False
            state.state = status.terminated(0, parse(self._started), now(), state.container_id)
        self._ended = True
        with contextlib.suppress(ApiError):
            await self._report()
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
        while True:
            try:
                await self._context.client.delete(self._path, options)
            except ApiError as error:
                if error.reason in ("NotFound", "Conflict"):
                    return
            else:
                return
            await asyncio.sleep(_STATUS_RETRY_S)

    async def _take_away(self) -> None:
        self._volumes.end_refreshing()
        if self._runtime is not None:
            self._runtime.close()
        self._volumes.detach()
        self._context.network.give_back(self._address)
        for folder in self._volumes.folders_to_remove():
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    # Status

    async def _report_changes(self) -> None:
        """Write the status after each change; changes during a write become one."""
        self._dirty.set()
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._report()
            except ApiError as error:
                if error.reason in ("NotFound", "Conflict"):
                    return
                _log.warning("writing status of %s: %s", self._name, error.message)
                self._dirty.set()
                await asyncio.sleep(_STATUS_RETRY_S)

    async def _report(self) -> None:
        fresh = self._status()
        if fresh == self._reported:
            return
        body = {"metadata": {"uid": self._manifest["metadata"]["uid"]}, "status": fresh}
        await self._context.client.patch(f"{self._path}/status", body, STRATEGIC_PATCH)
        self._reported = fresh

    def _status(self) -> dict[str, Any]:
        spec = self._manifest["spec"]
        containers = [each.state for each in self._containers] or self._pretending
        if not containers:
            containers = [_not_started(each) for each in spec["containers"]]
        inits = [each.state for each in self._inits]
        phase = status.phase(self._manifest, containers, inits, ending=self._ended)
        conditions = status.keep_transition_times(
            status.conditions(
                self._manifest,
                containers,
                phase,
                initialized=self._initialized or not spec.get("initContainers"),
                sandboxed=self._sandboxed and not self._ended,
            ),
            self._conditions,
            now(),
        )
        self._conditions = {each["type"]: each for each in conditions}
        if self._inits and not self._initialized:
            for state in containers:
                state.state = status.waiting("PodInitializing")
        report = {
            "phase": phase,
            "conditions": conditions,
            "containerStatuses": [each.report() for each in containers],
            "hostIP": BRIDGE_ADDRESS,
            "hostIPs": [{"ip": BRIDGE_ADDRESS}],
            "startTime": self._started,
        }
        if inits:
            report["initContainerStatuses"] = [each.report() for each in inits]
        if self._sandboxed:
            report |= {"podIP": self._address, "podIPs": [{"ip": self._address}]}
        return report


def _not_started(spec: dict[str, Any]) -> status.ContainerState:
    return status.ContainerState(
        name=spec["name"], image=spec["image"], state=status.waiting("ContainerCreating")
    )
