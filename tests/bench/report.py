"""The table that `make bench` prints: costs as ratios to HAProxy, latency, memory, goals.

Owns words and layout, in Markdown. All numbers come from results.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.contenders import SUBJECT
from tests.bench.results import Run, Spread, added, others, own_ratios, ratios, values

COMMAND = "make bench"
RIVALS = ("vllm-router", "sglang-router", "go")


def render(run: Run) -> str:
    """Return the whole report of a run."""
    tables = [
        _table(run, "CPU per request, per event: ratio to HAProxy (range), µs", COST),
        _table(run, "The same, `model` first in the body", MODEL_FIRST),
        _table(run, "Latency added to a single request, and of an event", LATENCY),
        _table(run, "Memory; two workers", MEMORY),
    ]
    parts = [_about(run), *tables, _goals(run)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(run: Run) -> str:
    about = run.about
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    busy = others(run)
    noise = (
        f" Other work took {_percent(busy.median)} of the two CPUs "
        f"({_percent(busy.low)}-{_percent(busy.high)} by round)."
        if busy
        else ""
    )
    return (
        f"`{COMMAND}` on {about['date']}: {about['machine']}; {versions}; "
        f"Nimway on Python {about['python']}. "
        f"{len(run.rounds)} interleaved rounds, windows of {about['window_s']:g} s; "
        "proxy on one CPU, load and model server on the other; medians, ranges in brackets."
        f"{noise}"
    )


Cell = Callable[[Run, str], str]
Columns = tuple[tuple[str, Cell], ...]


def _cost(metric: str) -> Cell:
    def cell(run: Run, name: str) -> str:
        ratio, cpu = ratios(run, name, metric), values(run, name, metric)
        return f"{_ranged(ratio)}, {cpu.median:.0f} µs" if ratio and cpu else "-"

    return cell


def _added(metric: str) -> Cell:
    return lambda run, name: _times(added(run, name, metric))


def _value(metric: str, form: str = "{:.0f}") -> Cell:
    def cell(run: Run, name: str) -> str:
        found = values(run, name, metric)
        return form.format(found.median) if found else "-"

    return cell


def _event(metric: str) -> Cell:
    def cell(run: Run, name: str) -> str:
        ratio = ratios(run, name, metric)
        return f"{_times(values(run, name, metric))}, {_ranged(ratio)}" if ratio else "-"

    return cell


def _pair(run: Run, name: str) -> str:
    return _ranged(own_ratios(run, name, "pair_cpu_us", "json_188b_cpu_us"))


def _split(run: Run, name: str) -> str:
    share = values(run, name, "pair_share")
    return f"{100 * share.median:.0f}/{100 - 100 * share.median:.0f}" if share else "-"


COST: Columns = (
    ("188 B", _cost("json_188b_cpu_us")),
    ("64 KiB", _cost("json_64k_cpu_us")),
    ("1 MiB", _cost("json_1m_cpu_us")),
    ("SSE event", _cost("sse_cpu_us")),
)
MODEL_FIRST: Columns = (
    ("64 KiB", _cost("json_64k_first_cpu_us")),
    ("1 MiB", _cost("json_1m_first_cpu_us")),
)
LATENCY: Columns = (
    ("added p50, µs", _added("latency_p50_us")),
    ("added p99, µs", _added("latency_p99_us")),
    ("event p50, µs, ratio", _event("sse_p50_us")),
    ("event p99, µs, ratio", _event("sse_p99_us")),
)
MEMORY: Columns = (
    ("main process at start, MB", _value("memory_main_mb")),
    ("worker process, MB", _value("memory_worker_mb")),
    ("idle stream, KB", _value("memory_stream_kb", "{:.1f}")),
    ("CPU per request, 2 workers : 1", _pair),
    ("connections split", _split),
)


def _table(run: Run, title: str, columns: Columns) -> str:
    """Return one table of all contenders; nothing where no one has a value."""
    rows = [
        [run.about["titles"][name], *(cell(run, name) for _, cell in columns)]
        for name in run.about["versions"]
    ]
    if all(set(row[1:]) == {"-"} for row in rows):
        return ""
    head = ["proxy", *(label for label, _ in columns)]
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join([f"**{title}**", "", *lines])


@dataclass(frozen=True, slots=True)
class Goal:
    """What performance.md asks of the subject: `measure` at most `limit`."""

    title: str
    limit: float
    measure: Callable[[Run], Spread | None]


def _ratio_goal(title: str, limit: float, metric: str) -> Goal:
    return Goal(title, limit, lambda run: ratios(run, SUBJECT, metric))


def _rival_goal(rival: str) -> Goal:
    return Goal(
        f"CPU per small request : {rival}'s",
        1 / 3,
        lambda run: ratios(run, SUBJECT, "json_188b_cpu_us", rival),
    )


GOALS = (
    _ratio_goal("CPU per small request : HAProxy's", 1.4, "json_188b_cpu_us"),
    _ratio_goal("CPU per 64 KiB prompt : HAProxy's", 0.6, "json_64k_cpu_us"),
    _ratio_goal("CPU per 1 MiB prompt : HAProxy's", 0.35, "json_1m_cpu_us"),
    _ratio_goal("CPU per SSE event : HAProxy's", 1.2, "sse_cpu_us"),
    _ratio_goal("SSE event p50 : HAProxy's", 1.15, "sse_p50_us"),
    *(_rival_goal(rival) for rival in RIVALS),
    Goal("MB of one worker at start", 40, lambda run: values(run, SUBJECT, "memory_worker_mb")),
    Goal("MB of the parent at start", 90, lambda run: values(run, SUBJECT, "memory_main_mb")),
    Goal("KB per idle stream", 10, lambda run: values(run, SUBJECT, "memory_stream_kb")),
    Goal(
        "CPU per small request, 2 workers : 1",
        1.1,
        lambda run: own_ratios(run, SUBJECT, "pair_cpu_us", "json_188b_cpu_us"),
    ),
    Goal(
        "larger part of the connections, 2 workers",
        0.6,
        lambda run: values(run, SUBJECT, "pair_share"),
    ),
)


def _goals(run: Run) -> str:
    rows = []
    for goal in GOALS:
        if found := goal.measure(run):
            verdict = "reached" if found.median <= goal.limit else "missed"
            rows.append(f"| {goal.title} | ≤ {goal.limit:.3g} | {_ranged(found)} | {verdict} |")
    head = ["**Goals**", "", "| Nimway | goal | measured | |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows]) if rows else ""


def _ranged(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def _times(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{spread.median:.0f} ({spread.low:.0f}-{spread.high:.0f})"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
