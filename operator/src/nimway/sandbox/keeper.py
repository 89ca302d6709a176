"""The process a sandbox hangs on: it makes the namespaces and dies with whoever wants it gone.

Owns: the lock on the sandbox's name (an inherited file descriptor), the PID namespace's first
process, and the end. When this process ends, however it ends, the kernel kills that first process
and with it everything in the sandbox, and takes back namespaces and mounts. It must stay small and
single-threaded: the user namespace of an ordinary user asks for that.

Run as `python -m nimway.sandbox.keeper CONFIG LISTENER_FD EVENTS_FD LIFELINE_FD LOCK_FD`; a
LIFELINE_FD of -1 means that the sandbox outlives its launcher.
"""

import json
import os
import select
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType

from nimway.sandbox import init, namespaces
from nimway.sandbox.config import SandboxConfig
from nimway.sandbox.errors import SandboxError


def main(arguments: list[str]) -> int:
    """Run one sandbox until it fails, is told to stop, or its launcher has gone."""
    config = SandboxConfig.load(Path(arguments[0]))
    listener, events, lifeline, _lock = (int(argument) for argument in arguments[1:5])
    wake_read, wake_write = os.pipe()
    _stop_on_signals(wake_write)
    held_read, held_write = os.pipe()
    try:
        namespaces.enter_sandbox()
    except SandboxError as error:
        os.write(events, json.dumps({"event": "refused", "message": str(error)}).encode() + b"\n")
        return 2
    first = os.fork()
    if first == 0:
        namespaces.die_with_parent()
        os.close(held_write)
        init.run(config, init.Inherited(listener=listener, events=events, keeper=held_read))
    for descriptor in (listener, events, held_read):
        os.close(descriptor)
    stopped = _wait(first, [wake_read] + ([lifeline] if lifeline >= 0 else []))
    if stopped:
        shutil.rmtree(config.directory, ignore_errors=True)
        config.directory.with_suffix(".lock").unlink(missing_ok=True)
    return 0 if stopped else 1


def _stop_on_signals(wake_write: int) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        os.write(wake_write, b"x")

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)


def _wait(first: int, ends: list[int]) -> bool:
    """Wait for the first process to fail (False) or for one of `ends` to say stop (True)."""
    process = os.pidfd_open(first)
    poll = select.poll()
    for descriptor in [process, *ends]:
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
    ready = {descriptor for descriptor, _ in poll.poll()}
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    return ready != {process}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
