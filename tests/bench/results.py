"""What the rounds say: medians and ranges, as values and as ratios to the reference.

Owns the arithmetic and the form of docs/bench/results.json. It prints nothing and measures nothing.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.contenders import REFERENCE
from tests.bench.rounds import DIRECT, MACHINE, Round

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range over the rounds that have a value."""

    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Run:
    """All a benchmark run leaves behind; `about` says when, where, with what versions."""

    about: dict[str, Any]
    rounds: list[Round]


def values(run: Run, name: str, metric: str) -> Spread | None:
    """Spread of a metric of one contender, or None where no round has it."""
    return _spread([found[name][metric] for found in run.rounds if metric in found.get(name, {})])


def ratios(run: Run, name: str, metric: str, against: str = REFERENCE) -> Spread | None:
    """Spread of a metric divided, round by round, by that of another contender."""
    return _spread(
        [
            found[name][metric] / found[against][metric]
            for found in run.rounds
            if metric in found.get(name, {}) and found.get(against, {}).get(metric)
        ]
    )


def own_ratios(run: Run, name: str, metric: str, base: str) -> Spread | None:
    """Spread of one metric of a contender divided by another of the same contender."""
    return _spread(
        [
            found[name][metric] / found[name][base]
            for found in run.rounds
            if metric in found.get(name, {}) and found[name].get(base)
        ]
    )


def added(run: Run, name: str, metric: str) -> Spread | None:
    """Spread of what a contender adds to the same measurement without a proxy."""
    return _spread(
        [
            found[name][metric] - found[DIRECT][metric]
            for found in run.rounds
            if metric in found.get(name, {}) and metric in found.get(DIRECT, {})
        ]
    )


def others(run: Run) -> Spread | None:
    """Spread of the part of both CPUs that other processes took while something was measured."""
    return values(run, MACHINE, "others")


def _spread(numbers: Sequence[float]) -> Spread | None:
    if not numbers:
        return None
    return Spread(statistics.median(numbers), min(numbers), max(numbers), len(numbers))


def write(run: Run, path: Path) -> None:
    """Write the run with all its rounds, rounded to what the measurement can tell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounds = [
        {
            name: {key: float(f"{value:.5g}") for key, value in sorted(metrics.items())}
            for name, metrics in found.items()
        }
        for found in run.rounds
    ]
    document = {"version": FORMAT_VERSION, **asdict(Run(run.about, rounds))}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Run:
    """Read what `write` wrote.

    Raises:
        ValueError: another version of the format.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["version"] != FORMAT_VERSION:
        raise ValueError(f"{path} has version {document['version']}, not {FORMAT_VERSION}")
    return Run(document["about"], document["rounds"])
