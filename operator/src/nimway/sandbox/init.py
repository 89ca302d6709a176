"""PID 1 inside a sandbox: sets up what all share, starts the supervisor, forks the pods.

Owns: the sandbox's root file system, and forking (which a process with an event loop and threads
should not do). It ends when the supervisor or the keeper ends, and everything inside ends with it.
It must not know Kubernetes; what a pod's first process does is `podinit`'s.
"""

import os
import select
import signal
import socket
import traceback
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from nimway.sandbox import namespaces, podinit, rootfs
from nimway.sandbox.config import SandboxConfig


@dataclass(frozen=True, slots=True)
class Inherited:
    """File descriptors from outside.

    `listener` is a listening TCP socket of the host, `events` takes JSON lines for the launcher,
    `keeper` reaches its end of file when the keeper has gone.
    """

    listener: int
    events: int
    keeper: int


def run(config: SandboxConfig, inherited: Inherited) -> NoReturn:
    """Be PID 1 of the sandbox."""
    status = 1
    try:
        rootfs.build_root()
        namespaces.set_hostname(f"sandbox-{config.name}")
        namespaces.configure_interface("lo", None, 8)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        supervisor_pid = os.fork()
        if supervisor_pid == 0:
            ours.close()
            os.close(inherited.keeper)
            _run_supervisor(config, inherited, theirs)
        theirs.close()
        os.close(inherited.listener)
        os.close(inherited.events)
        _serve(ours, inherited.keeper, supervisor_pid)
        status = 0
    except BaseException:  # noqa: BLE001 - PID 1 must say why it ends, then end without clean-up
        traceback.print_exc()
    os._exit(status)


def _run_supervisor(config: SandboxConfig, inherited: Inherited, forker: socket.socket) -> NoReturn:
    status = 1
    try:
        # Imported here: PID 1 and the pods' first processes, its forks, stay small without it.
        from nimway.sandbox import supervisor  # noqa: PLC0415

        status = supervisor.run(config, inherited.listener, inherited.events, forker)
    except BaseException:  # noqa: BLE001 - as above
        traceback.print_exc()
    os._exit(status)


def _serve(requests: socket.socket, keeper: int, supervisor_pid: int) -> None:
    """Fork a pod for each request until the supervisor or the keeper has gone."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, _ignore)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    poll = select.poll()
    for descriptor in (requests.fileno(), wake_read, keeper):
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if keeper in ready:
            return
        if wake_read in ready:
            os.read(wake_read, 4096)
            if supervisor_pid in reap():
                return
        if requests.fileno() in ready:
            message, descriptors, _, _ = socket.recv_fds(requests, 16, 1)
            if not message:
                return
            _fork_pod(requests, descriptors[0])


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: only the wake-up counts."""
    del number, frame


def reap() -> dict[int, int]:
    """Collect every child that has ended: process id -> wait status."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = status


def _fork_pod(requests: socket.socket, channel: int) -> None:
    """Fork the first process of a pod; it talks on `channel` from then on."""
    middle = os.fork()
    if middle == 0:
        status = 1
        try:
            requests.close()
            namespaces.unshare(namespaces.NEW_PID)
            if os.fork() == 0:
                podinit.run(channel)
            status = 0
        except BaseException:  # noqa: BLE001 - a fork must never return into its parent's code
            traceback.print_exc()
        os._exit(status)
    os.close(channel)
    os.waitpid(middle, 0)
