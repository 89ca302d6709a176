"""`kubectl port-forward`, for as long as a test run lasts."""

import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.cluster import eventually
from tests.support.ports import free_port

LOOK_S = 0.1
RETRY_S = 0.5


@contextmanager
def forwarded(
    kubectl: Path, environment: Mapping[str, str], namespace: str, service: str, port: int
) -> Iterator[int]:
    """Yield a port of 127.0.0.1 that leads to one pod behind a Service's `port`.

    kubectl ends with that pod, and is started again then: connections fail in between.
    """
    local, stop = free_port(), threading.Event()
    command = [str(kubectl), "-n", namespace, "port-forward", f"service/{service}"]

    def keep() -> None:
        while not stop.is_set():
            with subprocess.Popen(
                [*command, f"{local}:{port}"],
                env=environment,
                stdout=subprocess.DEVNULL,  # a line for each connection, which nobody reads
            ) as process:
                while process.poll() is None and not stop.wait(LOOK_S):
                    pass
                process.terminate()
            stop.wait(RETRY_S)

    keeper = threading.Thread(target=keep, name="port-forward")
    keeper.start()
    try:
        eventually(lambda: _listens(local), "kubectl port-forward listens")
        yield local
    finally:
        stop.set()
        keeper.join()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True
