"""Starts, finds and stops sandboxes, from the host.

Owns the state folder, the lock on a sandbox's name and the handle that callers get. What happens
inside is `supervisor`'s; this module only reads its events.
"""

import errno
import fcntl
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nimway.sandbox import binaries
from nimway.sandbox.config import SandboxConfig
from nimway.sandbox.errors import FailedError, HostError, SandboxError

Progress = Callable[[str], None]

DEFAULT_NAME: Final = "default"
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_START_DEADLINE_S: Final = 150.0
_STOP_DEADLINE_S: Final = 15.0
# A sandbox whose launcher was killed holds its name and its ports for some 0.2 s more.
_PATIENCE_S: Final = 1.0
_UNIX_PATH_BYTES_MAX: Final = 107


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a caller may choose; `SandboxConfig` explains each."""

    name: str = DEFAULT_NAME
    port: int | None = None
    gpu_nodes: int = 2
    gpus_per_node: int = 8
    cpu_nodes: int = 1
    backoff_initial_s: float = 10.0
    eager_probes: bool = True
    pretend: bool = False
    detach: bool = False


class Sandbox:
    """A running sandbox, seen from the host. Without `detach` it ends with this process."""

    def __init__(
        self, config: SandboxConfig, keeper: "subprocess.Popen[bytes] | None", lifeline: int
    ) -> None:
        self.config = config
        self._keeper = keeper
        self._lifeline = lifeline

    @property
    def name(self) -> str:
        """Its name."""
        return self.config.name

    @property
    def port(self) -> int:
        """The API server's port on 127.0.0.1."""
        return self.config.port

    @property
    def directory(self) -> Path:
        """Everything it writes; removed when it stops."""
        return self.config.directory

    @property
    def kubeconfig(self) -> Path:
        """An administrator's kubeconfig that works on the host."""
        return self.config.kubeconfig

    @property
    def audit_log(self) -> Path:
        """The API server's audit log (JSON lines, level Metadata)."""
        return self.config.audit_log

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return what it prints.

        Raises:
            FailedError: it failed; the text is what it said.
        """
        done = subprocess.run(  # noqa: S603 - no shell, our own arguments
            [str(binaries.kubectl(_quiet)), *arguments],
            env=os.environ | {"KUBECONFIG": str(self.kubeconfig)},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise FailedError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def forward_service(
        self, namespace: str, service: str, port: str, listener: socket.socket | None = None
    ) -> int:
        """Join a port of 127.0.0.1 to a Service's ready pods, in turn; return the port.

        `port` is the name of the Service's port, `listener` (closed here) comes from
        `listen_on_loopback`, a free port without. While no pod is ready connections are hung up.
        """
        request = {"namespace": namespace, "service": service, "port": port}
        return self._forward(request, listener)

    def forward_address(
        self, address: str, port: int, listener: socket.socket | None = None
    ) -> int:
        """Join a port of 127.0.0.1 to one pod's address and port; as `forward_service`."""
        return self._forward({"address": address, "port": port}, listener)

    def _forward(self, request: dict[str, Any], listener: socket.socket | None) -> int:
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with listener or listen_on_loopback(0) as handed_over, control:
            try:
                control.connect(str(self.config.control_socket))
            except OSError as error:
                raise FailedError(f"sandbox {self.name} is not there any more") from error
            socket.send_fds(control, [json.dumps(request).encode()], [handed_over.fileno()])
            if not control.recv(64):
                raise FailedError(f"sandbox {self.name} refused to forward {request}")
            port: int = handed_over.getsockname()[1]
            return port

    def last_output(self, namespace: str, pod: str, lines: int = 5) -> list[str]:
        """Return the last lines of each container of a pod, alive or gone, latest run only."""
        found = []
        for folder in sorted(self.config.pods.glob(f"{namespace}_{pod}_*/logs/*")):
            runs = sorted(folder.glob("*.log"), key=lambda path: int(path.stem))
            text = runs[-1].read_text(errors="replace") if runs else ""
            found += [f"{pod}/{folder.name}: {line}" for line in text.splitlines()[-lines:]]
        return found

    def is_running(self) -> bool:
        """Tell whether the sandbox still stands."""
        if self._keeper is not None:
            return self._keeper.poll() is None
        return _lock_holder(self.config.directory) is not None

    def stop(self) -> None:
        """End it and wait until nothing of it is left; a second call does nothing."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if self._keeper is None:
            _stop_by_lock(self.config.directory)
            return
        self._keeper.terminate()
        try:
            self._keeper.wait(_STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()


def launch(options: Options, progress: Progress | None = None) -> Sandbox:
    """Start a sandbox and return when its control plane can be used.

    Raises:
        HostError: this machine cannot run one.
        SandboxError: the name or the port is taken.
        FailedError: a part did not start.
    """
    progress = progress or _quiet
    check_host()
    if not _NAME.fullmatch(options.name):
        raise SandboxError(f"sandbox name {options.name!r}: use a-z, 0-9 and -, at most 40")
    programs = binaries.control_plane(progress)
    base = state_folder()
    _sweep(base)
    directory = base / options.name
    lock = _take_lock(directory, _PATIENCE_S)
    try:
        listener = listen_on_loopback(options.port or 0)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        config = SandboxConfig(
            name=options.name,
            directory=directory,
            port=listener.getsockname()[1],
            binaries=programs,
            gpu_nodes=options.gpu_nodes,
            gpus_per_node=options.gpus_per_node,
            cpu_nodes=options.cpu_nodes,
            backoff_initial_s=options.backoff_initial_s,
            eager_probes=options.eager_probes,
            pretend=options.pretend,
        )
        if directory.resolve().is_relative_to("/run"):
            raise SandboxError(f"{directory} is below /run, which pods replace: set XDG_STATE_HOME")
        if len(str(config.control_socket)) > _UNIX_PATH_BYTES_MAX:
            raise SandboxError(
                f"the path {directory} is too long: set XDG_STATE_HOME to a short one"
            )
        with listener:
            return _start(config, lock, listener, detach=options.detach, progress=progress)
    finally:
        os.close(lock)


def _start(
    config: SandboxConfig,
    lock: int,
    listener: socket.socket,
    *,
    detach: bool,
    progress: Progress,
) -> Sandbox:
    config.logs.mkdir()
    events_read, events_write = os.pipe()
    lifeline_read, lifeline_write = os.pipe()
    descriptors = [listener.fileno(), events_write, -1 if detach else lifeline_read, lock]
    command = [sys.executable, "-m", "nimway.sandbox.keeper", str(config.save())]
    with (config.logs / "supervisor.log").open("ab") as log:
        keeper = subprocess.Popen(  # noqa: S603 - no shell, our own arguments
            [*command, *(str(descriptor) for descriptor in descriptors)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[descriptor for descriptor in descriptors if descriptor >= 0],
            # Ctrl-C at the terminal is for the launcher, which then stops the sandbox in order.
            start_new_session=True,
            cwd="/",
        )
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(keeper.pid).encode(), 0)
    os.close(events_write)
    os.close(lifeline_read)
    if detach:
        os.close(lifeline_write)
        lifeline_write = -1
    sandbox = Sandbox(config, keeper, lifeline_write)
    try:
        _await_ready(events_read, config, progress)
    except BaseException:
        keeper.kill()
        keeper.wait()
        if lifeline_write >= 0:
            os.close(lifeline_write)
        raise
    finally:
        os.close(events_read)
    return sandbox


def _await_ready(events: int, config: SandboxConfig, progress: Progress) -> None:
    """Read the supervisor's events until it is ready."""
    deadline = time.monotonic() + _START_DEADLINE_S
    pending = b""
    while True:
        if not select.select([events], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise FailedError(
                f"the sandbox did not start in {_START_DEADLINE_S:.0f} s: {config.logs}"
            )
        data = os.read(events, 4096)
        if not data:
            raise FailedError(f"the sandbox ended while it started, see {config.logs}")
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            event = json.loads(line)
            match event["event"]:
                case "ready":
                    return
                case "refused":
                    raise HostError(event["message"])
                case "failed":
                    raise FailedError(event["message"])
                case _:
                    progress(event["text"])


def attach(name: str = DEFAULT_NAME) -> Sandbox:
    """Return the handle of a running sandbox that someone else started.

    Raises:
        SandboxError: none of that name runs.
    """
    directory = state_folder() / name
    config_file = directory / "config.json"
    if _lock_holder(directory) is None or not config_file.exists():
        raise SandboxError(
            f"no sandbox {name!r} is running: start it with `nimway sandbox up --name {name}`"
        )
    return Sandbox(SandboxConfig.load(config_file), None, -1)


def running() -> list[str]:
    """Return the names of the sandboxes that run."""
    base = state_folder()
    found = (path.stem for path in sorted(base.glob("*.lock")))
    return [name for name in found if _lock_holder(base / name) is not None]


def check_host() -> None:
    """Raise HostError where a sandbox cannot run for a reason that is plain beforehand."""
    if sys.platform != "linux":
        raise HostError(
            "the sandbox needs Linux (namespaces): use a Linux machine or virtual machine, or "
            "with Docker and kind at hand `make kind`"
        )


def state_folder() -> Path:
    """Return where sandboxes keep their state: below $XDG_STATE_HOME, ~/.local/state or /tmp."""
    home = Path.home() / ".local" / "state"
    bases = [Path(os.environ["XDG_STATE_HOME"])] if "XDG_STATE_HOME" in os.environ else [home]
    bases.append(Path(tempfile.gettempdir()) / f"nimway-{os.getuid()}")
    for base in bases:
        folder = base / "nimway" / "sandbox"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise SandboxError(f"cannot write to {bases[0]}: set XDG_STATE_HOME to a folder that can be")


def listen_on_loopback(port: int) -> socket.socket:
    """Listen on 127.0.0.1:`port`.

    Raises:
        SandboxError: the port is taken; the text names it and `PORT=`.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(1024)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            listener.close()
            raise SandboxError(_why_not_listening(port, error)) from error
        return listener


def _why_not_listening(port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        way_out = f"choose another with --port, or `make demo PORT={port + 1}`"
        return f"port {port} of 127.0.0.1 is in use: {way_out}"
    return (
        f"cannot listen on port {port} of 127.0.0.1: {error.strerror}; choose another with --port"
    )


def _take_lock(directory: Path, patience_s: float) -> int:
    """Take the lock on a sandbox's name; its descriptor is inherited by all that run in it."""
    path = directory.with_suffix(".lock")
    deadline = time.monotonic() + patience_s
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() < deadline:
                time.sleep(0.01)
                continue
            raise SandboxError(
                f"sandbox {directory.name!r} is already running: choose another --name, or end it "
                f"with `nimway sandbox down --name {directory.name}`"
            ) from None
        # Someone may have removed the file between our open and our lock: then it locks nothing.
        if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
        os.close(descriptor)


def _lock_holder(directory: Path) -> int | None:
    """Return the keeper's process id, None if nobody holds the lock."""
    try:
        with directory.with_suffix(".lock").open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read().strip() or 0)
    except FileNotFoundError:
        pass
    return None


def _stop_by_lock(directory: Path) -> None:
    """Stop a sandbox that another process started, and wait until its lock is free."""
    deadline = time.monotonic() + _STOP_DEADLINE_S
    sent = signal.SIGTERM
    while (holder := _lock_holder(directory)) is not None:
        if time.monotonic() > deadline:
            sent = signal.SIGKILL
        if holder:
            try:
                os.kill(holder, sent)
            except ProcessLookupError:
                pass
        time.sleep(0.05)
    _sweep(directory.parent)


def _sweep(base: Path) -> None:
    """Remove what sandboxes that were killed have left behind."""
    for path in base.glob("*.lock"):
        directory = path.with_suffix("")
        try:
            descriptor = _take_lock(directory, 0.0)
        except SandboxError:
            continue
        shutil.rmtree(directory, ignore_errors=True)
        path.unlink(missing_ok=True)
        os.close(descriptor)


def new_name(prefix: str) -> str:
    """Return a name that no other sandbox has, like `test-1f3a9c`."""
    return f"{prefix}-{os.urandom(3).hex()}"


def run_kubectl(sandbox: Sandbox, arguments: Sequence[str]) -> int:
    """Become kubectl's parent at the terminal, and return its exit status."""
    return subprocess.run(  # noqa: S603 - no shell, our own arguments
        [str(binaries.kubectl(_quiet)), *arguments],
        env=os.environ | {"KUBECONFIG": str(sandbox.kubeconfig)},
        check=False,
    ).returncode


def _quiet(text: str) -> None:
    del text
