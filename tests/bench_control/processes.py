"""What the kernel says of Nimway's processes: who they are, their CPU seconds and their memory."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_PLANE = {
    "etcd": "etcd",
    "API server": "kube-apiserver",
    "controllers": "kube-controller-manager",
    "scheduler": "kube-scheduler",
    "sandbox": "nimway.sandbox.keeper",
}


@dataclass(frozen=True)
class Found:
    """Process ids of one installation."""

    operators: list[int]
    parents: list[int]
    workers: list[int]
    models: list[int]
    """Simulated NIMs."""
    plane: dict[str, list[int]]
    """The control plane's programs by name; `sandbox` is what stands for all kubelets."""


def find(keeper: int) -> Found:
    """Find Nimway's processes among all that live below the sandbox's keeper."""
    lines = dict(_descendants(keeper))
    return Found(
        operators=[pid for pid, line in lines.items() if line[-1:] == ["operator"]],
        parents=[pid for pid, line in lines.items() if line[-1:] == ["proxy"]],
        workers=[pid for pid, line in lines.items() if "nimway.proxy.worker" in line],
        models=[pid for pid, line in lines.items() if line[-1:] == ["nim"]],
        plane={
            name: [
                pid for pid, line in lines.items() if mark in (line[0].rpartition("/")[2], *line)
            ]
            for name, mark in _PLANE.items()
        },
    )


def cpu_s(*pids: int) -> float:
    """CPU seconds, user and system, of these processes so far."""
    total = 0
    for pid in pids:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS_PER_S


def cpu_by_role(found: Found) -> dict[str, float]:
    """CPU seconds so far of the operator, of the proxies and of each part of the control plane."""
    roles = {"operator": found.operators, "proxies": [*found.parents, *found.workers]}
    return {role: cpu_s(*pids) for role, pids in (roles | found.plane).items()}


def memory_mb(pid: int) -> dict[str, float]:
    """Resident memory now and at its highest, and what no other process shares, in MB (10^6)."""
    status = dict(
        line.split(":", 1) for line in (_PROC / str(pid) / "status").read_text().splitlines()
    )
    rollup = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    private_kb = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))
    return {
        "rss": _mb(status["VmRSS"]),
        "peak": _mb(status["VmHWM"]),
        "private": round(private_kb * 1024 / 1e6, 1),
    }


def memory(found: Found) -> dict[str, Any]:
    """Memory of the operator, and of the largest proxy parent and worker."""
    roles = {"operator": found.operators, "parent": found.parents, "worker": found.workers}
    return {
        role: max((memory_mb(pid) for pid in pids), key=lambda each: each["rss"], default={})
        for role, pids in roles.items()
    }


def _mb(text: str) -> float:
    return round(int(text.split(maxsplit=1)[0]) * 1024 / 1e6, 1)


def _descendants(root: int) -> Iterator[tuple[int, list[str]]]:
    parents: dict[int, int] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    for pid in parents:
        above = pid
        while above in parents and above != root:
            above = parents[above]
        if above == root:
            try:
                line = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            yield pid, line.rstrip("\0").split("\0")
