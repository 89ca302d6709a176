"""What the simulated NIMs ran, by request id: read from their logs, which outlive their pods."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Execution:
    """One request that a model server's engine ran; `number` counts what that server received."""

    request_id: str
    pod: str
    number: int
    outcome: str


def read(pods: Path, prefix: str) -> list[Execution]:
    """Return what pods ran, by pod and number, those included that are gone.

    `prefix` is a namespace, or namespace_pod as far as it is known.
    """
    found: list[Execution] = []
    for folder in sorted(pods.glob(f"{prefix}*")):
        for log in sorted(folder.glob("logs/*/*.log")):
            with log.open(encoding="utf-8", errors="replace") as lines:
                found += parse(folder.name, lines)
    return sorted(found, key=lambda each: (each.pod, each.number))


def parse(pod: str, lines: Iterable[str]) -> Iterator[Execution]:
    """Yield the executions that a log tells of; other lines, and one that is cut, do not matter."""
    for line in lines:
        if '"executed": true' not in line:
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        yield Execution(entry["request_id"], pod, entry["number"], entry["outcome"])


def repeated(executions: Iterable[Execution]) -> list[str]:
    """Return the ids that were run more than once."""
    counts = Counter(each.request_id for each in executions)
    return sorted(name for name, count in counts.items() if count > 1)
