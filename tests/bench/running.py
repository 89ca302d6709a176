"""Processes of a benchmark: started on their CPU, read through /proc, ended by their number.

Owns where things run (contenders on one CPU, load and model server on another), CPU time, memory
and connections of a process tree. It knows no contender and no scenario.
"""

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PROC = Path("/proc")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
ESTABLISHED = "01"
START_MAX_S = 120.0
INSTANT_MAX_NS = 1_000_000
INSTANT_TRIES = 20


class BenchError(Exception):
    """Something the person at the terminal can act on; a contender's failure names it."""


@dataclass(frozen=True, slots=True)
class Cpus:
    """`proxy` runs contenders with one worker, `load` clients and model server, `pair` two."""

    proxy: int
    load: int
    pair: tuple[int, int]


def choose_cpus() -> Cpus:
    """Take the CPUs this process may use.

    Raises:
        BenchError: fewer than two; load and contender on one CPU measure each other.
    """
    free = sorted(os.sched_getaffinity(0))
    if len(free) < 2:
        raise BenchError("the benchmark needs two CPUs: one for the proxy, one for its load")
    second = free[2] if len(free) > 2 else free[1]
    return Cpus(proxy=free[0], load=free[1], pair=(free[0], second))


@dataclass(frozen=True)
class Launch:
    """How to start one program: `folder` holds its configuration and gets `output.log`."""

    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str] | None = None


@contextlib.contextmanager
def started(launch: Launch, cpus: Sequence[int]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program on `cpus` for the length of the block."""
    pinned = ["taskset", "--cpu-list", ",".join(map(str, cpus)), *launch.command]
    environment = {**os.environ, **(launch.environment or {})}
    with (launch.folder / "output.log").open("wb") as log:
        process = subprocess.Popen(
            pinned,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=launch.folder,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end, then make its tree end."""
    tree = process_tree(process.pid)
    process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in tree[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def process_tree(root: int) -> list[int]:
    """`root` and all its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    tree = [root]
    for pid in tree:
        tree.extend(children.get(pid, []))
    return tree


@dataclass(frozen=True, slots=True)
class Instant:
    """What was read at one moment: Unix time, a tree's CPU time, the model server's answers."""

    unix_ns: int
    cpu_s: float
    answered: int


def take_instant(tree: Sequence[int], counter: Path) -> Instant:
    """Read all three at one moment: again where this process had to wait in between."""
    for _ in range(INSTANT_TRIES):
        began_ns = time.time_ns()
        cpu, answered = cpu_s(tree), int.from_bytes(counter.read_bytes()[:8], sys.byteorder)
        if time.time_ns() - began_ns < INSTANT_MAX_NS:
            break
    return Instant(began_ns, cpu, answered)


def cpu_s(tree: Sequence[int]) -> float:
    """User and system time of all threads, ended ones included, in seconds.

    The kernel's CPU clock of each process (clock_getcpuclockid(3)): the sum that /proc/PID/stat
    gives as utime + stime, but in nanoseconds instead of ticks of 10 ms.
    """
    cpuclock_sched = 2
    return sum(time.clock_gettime_ns((~pid << 3) | cpuclock_sched) for pid in tree) / 1e9


class OtherWork:
    """Measures, for the length of a block, what part of our CPUs other processes took.

    No contender may start or end inside the block.
    """

    def __init__(self, cpus: Cpus) -> None:
        self._cpus = {f"cpu{number}" for number in (cpus.proxy, cpus.load)}
        self.share = 0.0

    def __enter__(self) -> Self:
        self._began = (time.monotonic(), self._busy_s(), _own_s())
        return self

    def __exit__(self, *_: object) -> None:
        began_s, busy_s, own_s = self._began
        elapsed_s = (time.monotonic() - began_s) * len(self._cpus)
        other_s = self._busy_s() - busy_s - (_own_s() - own_s)
        self.share = min(1.0, max(0.0, other_s / elapsed_s))

    def _busy_s(self) -> float:
        """All CPU time spent on our CPUs, time that the hypervisor took included (proc(5))."""
        ticks = 0
        for line in (PROC / "stat").read_text().splitlines():
            name, *fields = line.split()
            if name in self._cpus:
                user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
                ticks += user + nice + system + irq + softirq + steal
        return ticks / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    """CPU time of this process, of the children it has waited for, and of all that still run."""
    times = os.times()
    waited_s = times.children_user + times.children_system
    return cpu_s(process_tree(os.getpid())) + waited_s


def resident_bytes(tree: Sequence[int]) -> list[int]:
    """Resident set of each process of the tree, shared pages counted in each."""
    return [int((PROC / str(pid) / "statm").read_text().split()[1]) * PAGE_BYTES for pid in tree]


def connections(tree: Sequence[int], port: int) -> list[int]:
    """Established connections to `port` that each process of the tree holds."""
    inodes = set()
    for line in (PROC / "net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == ESTABLISHED and int(fields[1].partition(":")[2], 16) == port:
            inodes.add(f"socket:[{fields[9]}]")
    return [len(inodes & _descriptors(pid)) for pid in tree]


def _descriptors(pid: int) -> set[str]:
    targets = set()
    for link in (PROC / str(pid) / "fd").iterdir():
        with contextlib.suppress(OSError):
            targets.add(str(link.readlink()))
    return targets


def request(port: int, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    """One request over a connection of its own: status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def wait_until_serving(process: subprocess.Popen[bytes], port: int, body: str, log: Path) -> None:
    """Wait until a completion through `port` is answered with 200.

    Raises:
        BenchError: the process ended or does not serve in time; its last output is quoted.
    """
    end = time.monotonic() + START_MAX_S
    said: object = "nothing"
    while time.monotonic() < end and process.poll() is None:
        try:
            said = request(port, "POST", "/v1/chat/completions", body)
        except (OSError, http.client.HTTPException) as error:
            said = error
        else:
            if said[0] == http.client.OK:
                return
        time.sleep(0.05)
    tail = log.read_text(errors="replace")[-400:]
    raise BenchError(f"{log.parent.name} does not serve (last answer: {said}); it printed: {tail}")
