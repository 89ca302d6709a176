"""Stands in for the proxy's parent: runs real workers with a fixed table, without Kubernetes.

`python -m tests.bench.parent PORT UPSTREAM_PORT WORKERS MODEL`. The workers are the production
processes with the production settings (uvloop, access log, metrics, every check); only loopback
endpoints are allowed on top. Their reports are read and their metrics gathered, as the parent does.
"""

import selectors
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import msgspec

from nimway.proxy import messages
from nimway.proxy.settings import Settings

SCRAPE_PERIOD_S = 5.0
NAMESPACE = "bench"
SERVICE = "model"


def start_worker(port: int) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    settings = msgspec.json.encode(Settings(allow_loopback=True)).decode()
    descriptor = theirs.fileno()
    command = ["-m", "nimway.proxy.worker", str(descriptor), "127.0.0.1", str(port), settings]
    with theirs:
        process = subprocess.Popen(
            [sys.executable, *command],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the access log is written, then dropped by the kernel
        )
    return process, ours


def configure(channel: socket.socket, upstream: int, model: str) -> None:
    route = messages.RouteEntry(
        key=f"{NAMESPACE}/{SERVICE}",
        model=model,
        names=(model,),
        namespace=NAMESPACE,
        service=SERVICE,
        created_s=1_750_000_000,
    )
    ready = messages.ServiceEndpoints(NAMESPACE, SERVICE, [("127.0.0.1", upstream)])
    for message in (
        messages.Endpoints([ready]),
        messages.Table("bench", [route]),
        messages.Ready(ready=True),
    ):
        channel.sendall(messages.encode(message))


def read_reports(channels: list[socket.socket]) -> None:
    """Read what the workers say until one is gone; ask for their metrics now and then."""
    framers = {channel: messages.Framer() for channel in channels}
    selector = selectors.DefaultSelector()
    for channel in channels:
        selector.register(channel, selectors.EVENT_READ, data=channel)
    number, scrape_at_s = 0, time.monotonic() + SCRAPE_PERIOD_S
    while True:
        for key, _ in selector.select(timeout=max(0.0, scrape_at_s - time.monotonic())):
            data = key.data.recv(65536)
            if not data:
                return
            for frame in framers[key.data].feed(data):
                messages.to_parent.decode(frame)
        if time.monotonic() >= scrape_at_s:
            number += 1
            scrape_at_s += SCRAPE_PERIOD_S
            for channel in channels:
                channel.sendall(messages.encode(messages.Scrape(number)))


def main(port: int, upstream: int, workers: int, model: str) -> None:
    with ExitStack() as stack:
        channels = []
        for _ in range(workers):
            process, channel = start_worker(port)
            stack.callback(process.kill)
            channels.append(stack.enter_context(channel))
            configure(channel, upstream, model)
        read_reports(channels)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
