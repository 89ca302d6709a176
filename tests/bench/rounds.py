"""Rounds: every contender runs at once, each scenario visits them in a new random order.

Owns the order of measurements. A ratio is taken inside one round, seconds apart, so that what else
the machine does hits both sides; which round was disturbed shows in the range.
"""

import contextlib
import json
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.contenders import MODEL, REFERENCE, SUBJECT, Contender, Site
from tests.bench.install import say
from tests.bench.running import (
    BenchError,
    Launch,
    OtherWork,
    started,
    wait_until_serving,
)
from tests.bench.scenarios import Bench, Metrics, Scenario, Target
from tests.support.ports import free_port

DIRECT = "direct"
"""The model server without a proxy: what latency is added to."""

MACHINE = "machine"
"""What else the CPUs did: metric `others`, the part that other processes took."""

Round = dict[str, Metrics]
"""What one round found of each contender, of `direct` and of `machine`."""

READY_BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}]})


@contextlib.contextmanager
def model_server(goload: Path, cpu: int) -> Iterator[tuple[int, Path]]:
    """Run the model server behind all contenders; yields its port and the file of its count."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="nimway-bench-") as folder:
        counter = Path(folder) / "answered"
        counter.write_bytes(bytes(8))
        command = [str(goload), "upstream", f"-listen=127.0.0.1:{port}", f"-counter={counter}"]
        launch = Launch(command, Path(folder))
        with started(launch, [cpu]) as process:
            wait_until_serving(process, port, READY_BODY, launch.folder / "output.log")
            yield port, counter


def run_round(
    bench: Bench,
    contenders: Sequence[Contender],
    scenarios: Sequence[Scenario],
    shuffle: random.Random,
) -> Round:
    """Visit each contender with each scenario.

    A contender that fails is reported and left out of the rest of the round.

    Raises:
        BenchError: the reference or the subject failed; the round compares nothing.
    """
    found: Round = {name: {} for name in (DIRECT, *(item.name for item in contenders))}
    shares = []
    for workers in sorted({scenario.workers for scenario in scenarios}):
        with _running(bench, contenders, workers) as targets:
            for scenario in scenarios:
                if scenario.workers == workers:
                    with OtherWork(bench.cpus) as other:
                        _visit(bench, targets, scenario, shuffle, found)
                    shares.append(other.share)
    return found | {MACHINE: {"others": statistics.median(shares)}}


def _visit(
    bench: Bench, targets: list[Target], scenario: Scenario, shuffle: random.Random, found: Round
) -> None:
    direct = [Target(DIRECT, bench.upstream)] if scenario.direct else []
    order = [*targets, *direct]
    shuffle.shuffle(order)
    for target in order:
        try:
            found[target.name] |= scenario.measure(bench, target, found[target.name])
        except BenchError as error:
            _give_up(target.name, error)
            targets.remove(target)


def _give_up(name: str, error: BenchError) -> None:
    if name in {REFERENCE, SUBJECT, DIRECT}:
        raise error
    say(f"left out of this round: {error}")


@contextlib.contextmanager
def _running(bench: Bench, contenders: Sequence[Contender], workers: int) -> Iterator[list[Target]]:
    """Run all contenders, each on a port and in a folder of its own, until the block ends."""
    cpus = [bench.cpus.proxy] if workers == 1 else bench.cpus.pair
    with contextlib.ExitStack() as stack:
        parent = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nimway-bench-")))
        targets = []
        for contender in contenders:
            site = Site(parent / contender.name, free_port(), bench.upstream, workers)
            site.folder.mkdir()
            process = stack.enter_context(started(contender.launch(site), cpus))
            log = site.folder / "output.log"
            try:
                wait_until_serving(process, site.port, READY_BODY, log)
            except BenchError as error:
                _give_up(contender.name, error)
            else:
                targets.append(Target(contender.name, site.port, process.pid))
        yield targets
