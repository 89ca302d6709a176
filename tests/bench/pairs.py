"""`python -m tests.bench --pairs`: what observability adds to a request, in CPU time.

Owns the comparison of two workers that run at once, the product's and one that observes nothing
(`unobserved.py`): both get the same load, one after the other in random order, pair after pair.
What else the machine does hits both of a pair; what is left of it shows in the interval.
"""

import contextlib
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import install, interpreter, product, scenarios
from tests.bench.price import PRICE_MAX, worker
from tests.bench.rounds import model_server
from tests.bench.running import choose_cpus
from tests.bench.scenarios import Bench, Prompt, Target

WINDOW_S = 1.5
STUDENT_T = 2.04
"""Of the 95 % interval of 31 pairs; with more of them it is a little too wide."""

PROMPTS = tuple(each for each in scenarios.PROMPTS if each.key in {"json_188b", "json_64k"})


@dataclass(frozen=True, slots=True)
class Paired:
    """CPU microseconds per request, pair by pair, with everything on and with it off."""

    title: str
    observed: Sequence[float]
    blind: Sequence[float]

    @property
    def shares(self) -> list[float]:
        """What observing took of the whole, in each pair."""
        return [1 - off / on for on, off in zip(self.observed, self.blind, strict=True)]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the mean share."""
        shares = self.shares
        half = STUDENT_T * statistics.stdev(shares) / len(shares) ** 0.5
        return statistics.mean(shares) - half, statistics.mean(shares) + half


def main(wanted: str | None, pairs: int) -> int:
    """Measure, print the table, and return 1 where the price is above the goal."""
    install.install_debian(["wrk"])
    chosen, described = interpreter.choose(wanted)
    cpus = choose_cpus()
    programs = [product.build(chosen, blind=blind) for blind in (False, True)]
    pinned = ["taskset", "--cpu-list", str(cpus.proxy)]
    found = []
    with contextlib.ExitStack() as stack:
        goload = install.go_program("goload")
        upstream, counter = stack.enter_context(model_server(goload, cpus.load))
        bench = Bench(goload, upstream, counter, cpus, WINDOW_S)
        targets = []
        for program in programs:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nimway-bench-")))
            targets.append(stack.enter_context(worker(program, upstream, folder, under=pinned)))
        for prompt in PROMPTS:
            install.say(f"{prompt.title}: {pairs} pairs")
            found.append(_measure(bench, targets, prompt, pairs))
    sys.stdout.write(render(found, described))
    return int(any(statistics.mean(each.shares) > PRICE_MAX for each in found))


def _measure(bench: Bench, targets: Sequence[Target], prompt: Prompt, pairs: int) -> Paired:
    shuffle = random.Random(pairs)
    times: dict[str, list[float]] = {target.name: [] for target in targets}
    for _ in range(pairs):
        for target in shuffle.sample(targets, len(targets)):
            metrics = scenarios.measure_json(bench, target, prompt)
            times[target.name].append(metrics[f"{prompt.key}_cpu_us"])
    observed, blind = (times[target.name] for target in targets)
    return Paired(prompt.title, observed, blind)


def render(found: Sequence[Paired], python: str) -> str:
    """Return the table, in Markdown."""
    rows = []
    for each in found:
        low, high = each.interval
        rows.append(
            f"| {each.title} | {statistics.mean(each.observed):.1f} us "
            f"| {statistics.mean(each.blind):.1f} us "
            f"| {100 * statistics.mean(each.shares):.1f} % ({100 * low:.1f} to {100 * high:.1f}) |"
        )
    head = "| | everything on | nothing observed | price (95 %) |\n| --- | --- | --- | --- |"
    return (
        f"CPU time of a worker per request on Python {python}; {len(found[0].observed)} "
        f"interleaved pairs:\n\n{head}\n" + "\n".join(rows) + "\n"
    )
