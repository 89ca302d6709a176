"""The first process of a pod: owns its namespaces and starts, signals and reaps its containers.

It takes JSON messages from the node agent on one socket and answers on it; when that socket closes
it ends, and the kernel ends everything in the pod. It must not decide anything: what runs, with
which mounts and when, is the agent's business (`node`). Being a fork of PID 1 it imports little.

Requests: `network {address, bits, hostname}`, `start {id, argv, env, cwd, log, mounts, keep}`,
`exec {id, container, argv, env}`, `signal {id, signal}`. Answers: `namespace` (with the network
namespace as a file descriptor), `network`, `started {id, error}`, `exited {id, code, signal}`.
"""

import contextlib
import json
import os
import select
import signal
import socket
import stat
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from nimway.sandbox import namespaces, rootfs

MESSAGE_BYTES_MAX = 1 << 20


def run(channel: int) -> NoReturn:
    """Be PID 1 of a pod."""
    status = 1
    try:
        _Pod(socket.socket(fileno=channel)).serve()
        status = 0
    except BaseException:  # noqa: BLE001 - a pod's PID 1 says why it ends, then ends
        traceback.print_exc()
    os._exit(status)


class _Pod:
    """Namespaces and containers of one pod."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._pids: dict[str, int] = {}
        self._names: dict[int, str] = {}

    def serve(self) -> None:
        """Answer requests until the agent closes the channel."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.signal(signal.SIGCHLD, _ignore)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        namespaces.unshare(
            namespaces.NEW_MOUNT | namespaces.NEW_NET | namespaces.NEW_UTS | namespaces.NEW_IPC
        )
        namespaces.mount("none", "/", None, namespaces.MS_REC | namespaces.MS_PRIVATE)
        rootfs.mount_proc("/proc")
        # Each pod has a /run of its own: /var/run/secrets is below it.
        rootfs.mount_tmpfs(Path("/run"))
        with Path("/proc/self/ns/net").open() as network:
            socket.send_fds(self._channel, [b'{"event":"namespace"}'], [network.fileno()])
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN | select.POLLHUP)
        poll.register(wake_read, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if wake_read in ready:
                os.read(wake_read, 4096)
                self._reap()
            if self._channel.fileno() in ready:
                message = self._channel.recv(MESSAGE_BYTES_MAX)
                if not message:
                    return
                self._answer(json.loads(message))
                self._reap()

    def _say(self, **message: Any) -> None:
        self._channel.send(json.dumps(message).encode())

    def _answer(self, request: dict[str, Any]) -> None:
        match request["op"]:
            case "network":
                namespaces.set_hostname(request["hostname"])
                namespaces.configure_interface("lo", None, 8)
                namespaces.configure_interface("eth0", request["address"], request["bits"])
                self._say(event="network")
            case "start" | "exec":
                error = self._start(request)
                self._say(event="started", id=request["id"], error=error)
            case "signal":
                if (pid := self._pids.get(request["id"])) is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, request["signal"])

    def _start(self, request: dict[str, Any]) -> str | None:
        """Fork a container's process (or a command in a running one); return why it failed."""
        report_read, report_write = os.pipe()
        middle = os.fork()
        if middle == 0:
            os.close(report_read)
            _in_child(request, self._pids, report_write)
        os.close(report_write)
        os.waitpid(middle, 0)
        with open(report_read, "rb") as report:  # noqa: PTH123 - it is a descriptor
            first, _, error = report.read().partition(b"\n")
        if first:
            self._pids[request["id"]] = int(first)
            self._names[int(first)] = request["id"]
        if first and not error:
            return None
        return error.decode(errors="replace") or "could not fork"

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if (name := self._names.pop(pid, None)) is None:
                continue
            self._pids.pop(name, None)
            code = os.waitstatus_to_exitcode(status)
            self._say(event="exited", id=name, code=code if code >= 0 else 128 - code)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: only the wake-up counts."""
    del number, frame


def _in_child(request: dict[str, Any], pids: dict[str, int], report: int) -> NoReturn:
    """Fork once more, into the container's PID namespace, and report that process's id."""
    try:
        if request["op"] == "exec":
            container = os.pidfd_open(pids[request["container"]])
            namespaces.join(container, namespaces.NEW_PID | namespaces.NEW_MOUNT)
        else:
            namespaces.unshare(namespaces.NEW_PID)
        pid = os.fork()
        if pid == 0:
            _become(request, report)
        # Only the parent knows the id that the pod's PID namespace gave the process.
        os.write(report, b"%d\n" % pid)
    except BaseException as error:  # noqa: BLE001 - a fork must never return into its parent's code
        os.write(report, f"\n{error}".encode())
    os._exit(0)


def _become(request: dict[str, Any], report: int) -> NoReturn:
    """Mount the container's volumes and execute its program; this returns to nobody."""
    try:
        os.setsid()
        # Opened first: a volume may be mounted over the folder in which the log lies.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        log = os.open(request.get("log") or os.devnull, flags, 0o644)
        if request["op"] == "start":
            namespaces.unshare(namespaces.NEW_MOUNT)
            namespaces.mount("none", "/", None, namespaces.MS_REC | namespaces.MS_PRIVATE)
            rootfs.mount_proc("/proc")
            _mount_all(request["mounts"], request["keep"])
        empty = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((empty, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.chdir(request.get("cwd") or "/")
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvpe(request["argv"][0], request["argv"], request["env"])  # noqa: S606 - its job
    except BaseException as error:  # noqa: BLE001 - as above
        text = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else str(error)
        os.write(report, text.encode())
    os._exit(128)


def _mount_all(mounts: list[dict[str, Any]], keep: list[str]) -> None:
    """Mount the volumes; what lies in `keep` stays visible even below a mounted volume."""
    # Opened first: a volume over /tmp, say, would hide sources and programs that lie there.
    opened = {path: _open(path) for path in [*(mount["source"] for mount in mounts), *keep]}
    for mount in mounts:
        target = Path(mount["target"])
        is_directory = stat.S_ISDIR(os.fstat(opened[mount["source"]]).st_mode)
        rootfs.place_for_mount(target, directory=is_directory)
        namespaces.bind(f"/proc/self/fd/{opened[mount['source']]}", target)
        for path in keep:
            if Path(path).is_relative_to(target):
                Path(path).mkdir(parents=True, exist_ok=True)
                namespaces.bind(f"/proc/self/fd/{opened[path]}", path)
        if mount["read_only"]:
            namespaces.make_read_only(str(target))
    for descriptor in opened.values():
        os.close(descriptor)


def _open(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_CLOEXEC)
