"""`python -m tests.bench --price`: what observability adds to a request, in instructions.

Owns the counting: the product's worker and one that observes nothing (`unobserved.py`), each under
valgrind, each asked the same number of times over the same connections. Instructions repeat to a
tenth of a per cent where microseconds do not; the kernel's part, which is the same for both, is not
counted, so the true price is lower than the one printed: `pairs.py` measures that.
"""

import contextlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nimway.proxy.messages import (
    Endpoints,
    Framer,
    Ready,
    RouteEntry,
    ServiceEndpoints,
    Serving,
    Table,
    encode,
    to_parent,
)
from nimway.proxy.settings import Settings
from nimway.proxy.supervisor import build_environment
from tests.bench import install, interpreter, product
from tests.bench.contenders import MODEL
from tests.bench.product import Program
from tests.bench.rounds import model_server
from tests.bench.running import BenchError, choose_cpus
from tests.bench.scenarios import Target
from tests.support.ports import free_port

PRICE_MAX = 0.06
VALGRIND = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
SLOWDOWN = 50
"""valgrind runs a program about so much slower: timers that count seconds are set so much later."""

END_MAX_S = 120.0


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked: bodies of `size` bytes, so often; or streams, of which `events` are read.

    `few` and `many` are rounds: one request on each of the connections.
    """

    title: str
    size: int
    connections: int
    few: int
    many: int
    events: int = 1


LOADS = (
    Load("188 B request", 188, 32, few=10, many=110),
    Load("64 KiB request", 64 * 1024, 8, few=10, many=60),
    Load("SSE event, in streams of 200", 188, 4, few=1, many=3, events=200),
)


@dataclass(frozen=True, slots=True)
class Price:
    """Instructions per request or event, by repetition, with everything on and with it off."""

    title: str
    observed: Sequence[float]
    blind: Sequence[float]

    @property
    def share(self) -> float:
        """What observing takes of the whole."""
        whole = statistics.median(self.observed)
        return (whole - statistics.median(self.blind)) / whole


def main(wanted: str | None, repetitions: int) -> int:
    """Count, print the table, and return 1 where the price is above the goal."""
    install.install_debian(["valgrind"])
    chosen, described = interpreter.choose(wanted)
    cpus = choose_cpus()
    programs = {blind: product.build(chosen, blind=blind) for blind in (False, True)}
    prices = []
    with model_server(install.go_program("goload"), cpus.load) as (upstream, _):
        for load in LOADS:
            counts: dict[bool, list[float]] = {False: [], True: []}
            for number in range(repetitions):
                install.say(f"{load.title}: {number + 1} of {repetitions}")
                for blind, found in counts.items():
                    found.append(_count(programs[blind], load, upstream))
            prices.append(Price(load.title, counts[False], counts[True]))
    sys.stdout.write(render(prices, described))
    return int(any(price.share > PRICE_MAX for price in prices))


def render(prices: Sequence[Price], python: str) -> str:
    """Return the table, in Markdown."""
    rows = [
        f"| {price.title} | {_range(price.observed)} | {_range(price.blind)} "
        f"| {100 * price.share:.1f} % |"
        for price in prices
    ]
    head = "| | everything on | nothing observed | price |\n| --- | --- | --- | --- |"
    return (
        f"User-space instructions of a worker on Python {python}; median and range of "
        f"{len(prices[0].observed)} counts:\n\n{head}\n" + "\n".join(rows) + "\n"
    )


def _range(counts: Sequence[float]) -> str:
    low, high = min(counts), max(counts)
    return f"{statistics.median(counts):,.0f} ({low:,.0f}-{high:,.0f})"


def _count(program: Program, load: Load, upstream: int) -> float:
    """Instructions of one request or event: of many, less those of few, start and end included."""
    few, many = (_instructions(program, load, upstream, rounds) for rounds in (load.few, load.many))
    return (many - few) / ((load.many - load.few) * load.connections * load.events)


def _instructions(program: Program, load: Load, upstream: int, rounds: int) -> int:
    """Instructions of a worker from its start to its end, with `rounds` of requests between."""
    with tempfile.TemporaryDirectory(prefix="nimway-bench-") as name:
        folder = Path(name)
        with worker(program, upstream, folder, under=VALGRIND, slowdown=SLOWDOWN) as target:
            ask(target.port, load, rounds)
        text = (folder / "errors").read_text(encoding="utf-8")
    if (found := re.search(r"Collected : (\d+)", text)) is None:
        raise BenchError(f"valgrind counted nothing; it printed: {text[-400:]}")
    return int(found[1])


@contextlib.contextmanager
def worker(
    program: Program,
    upstream: int,
    folder: Path,
    *,
    under: Sequence[str] = (),
    slowdown: float = 1.0,
) -> Iterator[Target]:
    """Run a worker, `under` a tool if one is given, and yield where it serves.

    It is told by us what its parent would tell it; its log goes to a file in `folder`.
    """
    ours, theirs = socket.socketpair()
    port = free_port()
    settings = Settings(
        allow_loopback=True,
        sweep_period_s=Settings().sweep_period_s * slowdown,
        report_delay_s=Settings().report_delay_s * slowdown,
        timeout_connect_s=Settings().timeout_connect_s * slowdown,
    )
    command = [
        *(*under, str(program.python), "-m", "nimway.proxy.worker"),
        *(str(theirs.fileno()), "127.0.0.1", str(port)),
        msgspec.json.encode(settings).decode(),
    ]
    environment = build_environment({"PYTHONHASHSEED": "0"}) | {
        "PYTHONPATH": str(program.packages),
        "PYTHONDONTWRITEBYTECODE": "1",  # or the first run after a change would compile for others
    }
    with (
        (folder / "log").open("wb") as log,
        (folder / "errors").open("wb") as errors,
        theirs,
        ours,
    ):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=errors,
            env=environment,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        try:
            _greet(ours, upstream)
            yield Target(program.packages.name, port, process.pid)
            ours.close()
            process.wait(END_MAX_S)
        except OSError as error:
            said = (folder / "errors").read_text(encoding="utf-8")[-400:]
            raise BenchError(f"the worker failed ({error}); it printed: {said}") from error
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _greet(channel: socket.socket, upstream: int) -> None:
    """Give a worker one model, and wait until it serves it."""
    route = RouteEntry("bench/model", MODEL, (MODEL,), "bench", "model", 0)
    endpoints = [ServiceEndpoints("bench", "model", [("127.0.0.1", upstream)])]
    for message in (Ready(ready=True), Endpoints(endpoints), Table("1", [route])):
        channel.sendall(encode(message))
    channel.settimeout(END_MAX_S)
    framer = Framer()
    while data := channel.recv(65536):
        if any(isinstance(to_parent.decode(frame), Serving) for frame in framer.feed(data)):
            return
    raise BenchError("the worker ended before it served")


def ask(port: int, load: Load, rounds: int) -> None:
    """Send one request over each of the connections at a time, `rounds` times.

    Raises:
        BenchError: an answer that is not 200.
    """
    message = _message(load)
    streams = _connect(port, load)
    for number in range(rounds):
        if number and load.events > 1:  # a stream ends with its connection
            _close(streams)
            streams = _connect(port, load)
        for stream in streams:
            stream.sendall(message)
        for stream in streams:
            if load.events > 1:
                _read_events(stream, load.events)
            else:
                _read_answer(stream)
    _close(streams)


def _connect(port: int, load: Load) -> list[socket.socket]:
    address = ("127.0.0.1", port)
    return [socket.create_connection(address, END_MAX_S) for _ in range(load.connections)]


def _close(streams: Sequence[socket.socket]) -> None:
    for stream in streams:
        stream.close()


def _message(load: Load) -> bytes:
    stream = ',"stream":true' if load.events > 1 else ""
    begin = '{"messages":[{"role":"user","content":"'
    end = f'"}}],"model":"{MODEL}","max_tokens":64{stream}}}'
    body = begin + "x" * (load.size - len(begin) - len(end)) + end
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def _read_answer(stream: socket.socket) -> None:
    data = b""
    while (at := data.find(b"\r\n\r\n")) < 0:
        data += _receive(stream)
    if not data.startswith(b"HTTP/1.1 200 "):
        raise BenchError(f"the worker answered {data[:60]!r}")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", data)
    while length is not None and len(data) < at + 4 + int(length[1]):
        data += _receive(stream)


def _read_events(stream: socket.socket, events: int) -> None:
    mark = b"data: {"
    seen, tail = 0, b""
    while seen < events:
        data = tail + _receive(stream)
        seen += data.count(mark)
        tail = data[1 - len(mark) :]


def _receive(stream: socket.socket) -> bytes:
    data = stream.recv(65536)
    if not data:
        raise BenchError("the worker closed a connection")
    return data
