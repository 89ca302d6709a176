"""A pod's status as a kubelet reports it. Pure."""

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

from nimway.sandbox.node.timing import stamp

Condition = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class ContainerState:
    """What is known of one container; `state` and `last_state` are in the API's form."""

    name: str
    image: str
    state: dict[str, Any] = field(default_factory=dict)
    last_state: dict[str, Any] = field(default_factory=dict)
    restart_count: int = 0
    ready: bool = False
    started: bool = False
    container_id: str = ""

    def report(self) -> dict[str, Any]:
        """Return the entry of `status.containerStatuses`."""
        return {
            "name": self.name,
            "image": self.image,
            "imageID": f"sandbox://{self.image}" if self.container_id else "",
            "containerID": self.container_id,
            "state": self.state,
            "lastState": self.last_state,
            "restartCount": self.restart_count,
            "ready": self.ready,
            "started": self.started,
        }


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    """Return the state of a container that does not run yet."""
    return {"waiting": {"reason": reason} | ({"message": message} if message else {})}


def running(started: dt.datetime) -> dict[str, Any]:
    """Return the state of a container that runs."""
    return {"running": {"startedAt": stamp(started)}}


def terminated(
    code: int, started: dt.datetime, finished: dt.datetime, container_id: str, reason: str = ""
) -> dict[str, Any]:
    """Return the state of a container that has ended."""
    return {
        "terminated": {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "startedAt": stamp(started),
            "finishedAt": stamp(finished),
            "containerID": container_id,
        }
    }


def phase(
    pod: dict[str, Any],
    containers: list[ContainerState],
    inits: list[ContainerState],
    *,
    ending: bool,
) -> str:
    """Return the pod's phase; `ending` says that nothing will be started again."""
    policy = pod["spec"].get("restartPolicy", "Always")
    for init in inits:
        if (code := _exit_code(init)) != 0 and not ending:
            failed = code is not None and policy == "Never"
            return "Failed" if failed else "Pending"
    codes = [_exit_code(each) for each in containers]
    if any(
        code is None and "running" not in each.state
        for code, each in zip(codes, containers, strict=True)
    ):
        # A container that never ran keeps the pod pending, whatever its neighbours do.
        return "Failed" if ending else "Pending"
    if any("running" in each.state for each in containers):
        return "Running"
    if ending:
        return "Failed" if any(codes) else "Succeeded"
    if policy == "Always":
        return "Running"
    if not any(codes):
        return "Succeeded"
    return "Failed" if policy == "Never" else "Running"


def _exit_code(container: ContainerState) -> int | None:
    """Return the exit code of the latest run, None before its end or if it never ran."""
    ended = container.state.get("terminated")
    if ended is None and "running" not in container.state:
        ended = container.last_state.get("terminated")
    return None if ended is None else int(ended["exitCode"])


def conditions(
    pod: dict[str, Any],
    containers: list[ContainerState],
    pod_phase: str,
    *,
    initialized: bool,
    sandboxed: bool,
) -> list[Condition]:
    """Return the conditions that a kubelet owns, without transition times."""
    unready = [each.name for each in containers if not each.ready]
    finished = pod_phase in ("Succeeded", "Failed")
    made = [_condition("PodReadyToStartContainers", sandboxed)]
    if initialized:
        made.append(_condition("Initialized", True))
    else:
        names = [each["name"] for each in pod["spec"].get("initContainers", [])]
        text = f"containers with incomplete status: [{' '.join(names)}]"
        made.append(_condition("Initialized", False, "ContainersNotInitialized", text))
    if finished:
        reason, text = "PodCompleted" if pod_phase == "Succeeded" else "PodFailed", ""
    else:
        reason, text = (
            "ContainersNotReady",
            f"containers with unready status: [{' '.join(unready)}]",
        )
    containers_ready = not unready and not finished
    failed = () if containers_ready else (reason, text)
    made.append(_condition("ContainersReady", containers_ready, *failed))
    gates = _failed_gates(pod)
    if containers_ready and gates:
        text = f"corresponding condition of pod readiness gate {gates[0]!r} is not true"
        made.append(_condition("Ready", False, "ReadinessGatesNotReady", text))
    else:
        made.append(_condition("Ready", containers_ready, *failed))
    return made


def _condition(kind: str, holds: bool, reason: str = "", message: str = "") -> Condition:  # noqa: FBT001 - the value itself
    made = {"type": kind, "status": "True" if holds else "False"}
    # Empty texts take back what an earlier report said: the patch would leave them otherwise.
    return made | {"reason": reason or None, "message": message or None}


def _failed_gates(pod: dict[str, Any]) -> list[str]:
    current = pod.get("status", {}).get("conditions") or []
    true = {each["type"] for each in current if each["status"] == "True"}
    gates = pod["spec"].get("readinessGates") or []
    return [gate["conditionType"] for gate in gates if gate["conditionType"] not in true]


def keep_transition_times(
    fresh: list[Condition], previous: dict[str, Condition], moment: dt.datetime
) -> list[Condition]:
    """Give each condition its `lastTransitionTime`: the old one unless its status changed."""
    made = []
    for condition in fresh:
        old = previous.get(condition["type"])
        same = old is not None and old["status"] == condition["status"]
        since = old["lastTransitionTime"] if old is not None and same else stamp(moment)
        made.append(condition | {"lastTransitionTime": since})
    return made
