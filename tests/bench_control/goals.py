"""The goals, what was measured beside each, and the table of both."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Found = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of the table; `met` is None where there is no goal."""

    what: str
    goal: str
    measured: str
    met: bool | None


def rows(found: Found) -> list[Row]:
    """Judge what was found; what was not measured has no row."""
    made: list[Row] = []
    if "create" in found:
        made += _paced(found)
    if "drift" in found:
        made += _drift(found["drift"])
    if "bursts" in found:
        made += [*_bursts(found), *_floor(found["floor"]), *_afterwards(found)]
    return made


def table(judged: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    marks = {True: "yes", False: "**no**", None: ""}
    lines = ["| | goal | measured | met |", "|---|---|---|---|"]
    lines += [f"| {row.what} | {row.goal} | {row.measured} | {marks[row.met]} |" for row in judged]
    return "\n".join(lines) + "\n"


def _paced(found: Found) -> Iterator[Row]:
    yield _latency("create → Deployment exists", found["create"], p50=18, p99=40)
    yield _latency("spec change → Deployment changed", found["change"], p50=18, p99=40)
    yield _latency("Deployment deleted → back", found["replace"], p50=18, p99=40)
    yield _latency("changed by a client alone, no operator: the floor", found["floor_change"])
    yield _latency("deleted and applied by a client alone: the floor", found["floor_replace"])
    pods = found["proxy_pods"]
    yield _latency(f"create → listed by all {pods} proxy pods", found["listed"], p99=250)
    yield _latency("routing table written → listed by all", found["table_served"])
    yield _latency("delete → listed by none", found["gone"], p99=250)
    yield _latency(
        f"pod Ready → first request, through all {pods}", found["first_request"], p50=12, p99=25
    )
    yield _latency("pod Ready → EndpointSlice says so: Kubernetes' own part", found["pod_slice"])
    yield _latency("EndpointSlice says so → first request", found["slice_served"])


def _drift(drift: Found) -> Iterator[Row]:
    what = f"any of {drift['n']} fields changed by hand → repaired"
    row = _latency(what, drift, p99=250)
    left = drift["unrepaired"]
    measured = row.measured + (f", never: {', '.join(left)}" if left else "")
    yield Row(what, f"{row.goal}, every field", measured, bool(row.met) and not left)


def _bursts(found: Found) -> Iterator[Row]:
    bursts = found["bursts"]
    for size, each in bursts.items():
        goal_s = 0.012 * size if size >= 500 else None
        last_s = each["last_deployment_s"]
        yield Row(
            f"{size} at once → last Deployment exists",
            f"≤ {goal_s:.0f} s" if goal_s else "",
            f"{last_s:.1f} s (all settled after {each['settled_s']:.0f} s)",
            last_s <= goal_s if goal_s else None,
        )
        yield Row(
            f"{size} at once: operator's CPU and writes per model",
            "≤ 15 ms, ≤ 5",
            f"{each['cpu_ms_per_model']:.1f} ms, {each['writes_per_model']:.1f}",
            each["cpu_ms_per_model"] <= 15 and each["writes_per_model"] <= 5,
        )
        spacing_ms = each["table_spacing_min_ms"]
        yield Row(
            f"{size} at once: routing writes",
            "≥ 250 ms apart",
            f"{each['table_writes']}, ≥ {spacing_ms} ms apart",
            spacing_ms >= 245 or each["table_writes"] < 2,  # arrival times jitter
        )
    small, large = min(bursts), max(bursts)
    goal = 1.2 * large / small
    ratios = [
        bursts[large][key] / max(bursts[small][key], 0.01) for key in ("last_deployment_s", "cpu_s")
    ]
    yield Row(
        f"linear: {large} cost, in {small}s",
        f"≤ {goal:.0f} times",
        f"{ratios[0]:.1f} times as long, {ratios[1]:.1f} times the CPU",
        max(ratios) <= goal,
    )


def _floor(floor: Found) -> Iterator[Row]:
    yield Row(
        f"{floor['models']} models and Deployments by a client alone, no operator: the floor",
        "",
        f"{floor['last_deployment_s']:.1f} s",
        None,
    )


def _afterwards(found: Found) -> Iterator[Row]:
    models, restart, idle = found["models"], found["restart"], found["idle"]
    writes, after_s = sum(restart["writes"].values()), max(restart["ready_s"], restart["leads_s"])
    yield Row(
        f"restart with {models} models",
        "0 writes, ≤ 5 CPU s, ≤ 10 s",
        f"{writes} writes, {restart['cpu_s']:.1f} CPU s, {after_s:.1f} s",
        writes == 0 and restart["cpu_s"] <= 5 and after_s <= 10,
    )
    writes, renewals = sum(idle["writes"].values()), idle["lease_renewals"]
    yield Row(
        f"{idle['seconds'] / 60:g} min at rest with {models} models",
        "0 writes but the Lease's",
        f"{_rest(writes, renewals, idle['seconds'])}, "
        f"{1000 * idle['cpu_s']['operator'] / idle['seconds']:.0f} ms CPU a second",
        writes == 0 and 0 < renewals <= idle["seconds"] / 4,
    )
    start, full = found["memory_start"], found["memory_full"]
    goals = {"operator": 150, "parent": 90, "worker": 40}
    for role, goal in goals.items():
        now_mb, before_mb = full[role]["rss"], start[role]["rss"]
        yield Row(
            f"memory of the {role} with {models} models",
            f"≤ {goal} MB" + ("" if role == "operator" else " at start"),
            f"{now_mb:.0f} MB (peak {full[role]['peak']:.0f}, at start {before_mb:.0f})",
            (now_mb if role == "operator" else before_mb) <= goal,
        )


def _rest(writes: int, renewals: int, idle_s: float) -> str:
    """Say what was written at rest; without the Lease's renewals nothing was seen at all."""
    if not renewals:
        return "writes not counted: the audit log told of none, not even the Lease's"
    return f"{writes} writes, the Lease every {idle_s / renewals:.1f} s"


def _latency(what: str, values: Found, *, p50: float = 0.0, p99: float = 0.0) -> Row:
    bounds = [("p50", p50), ("p99", p99)]
    goal = ", ".join(f"{name} ≤ {bound:.0f} ms" for name, bound in bounds if bound)
    measured = (
        f"p50 {values['p50']}, p99 {values['p99']} ms (least {values['min']}, n {values['n']})"
    )
    met = all(values[name] <= bound for name, bound in bounds if bound) if goal else None
    return Row(what, goal, measured, met)
