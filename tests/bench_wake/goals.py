"""The goals of sleep and wake, what was measured beside each, and the table of both."""

from collections.abc import Iterator

from tests.bench_control.goals import Found, Row, table

__all__ = ["Found", "Row", "report", "rows"]

COMMAND = "make bench-wake"
OVERTAKEN_SHARE = 0.05


def rows(found: Found) -> list[Row]:
    """Judge what was found; what was not measured has no row."""
    parts = {
        "held": _held,
        "waiters": _waiters,
        "cycles": _cycles,
        "kills": _kills,
        "day": _day,
    }
    made = [row for name, judge in parts.items() if name in found for row in judge(found[name])]
    failed = found.get("failed", {})
    return made + [Row(name, "", f"not measured: {why}", met=False) for name, why in failed.items()]


def report(about: Found, found: Found) -> str:
    """Return the record for people: how it was measured, the goals, the day."""
    head = (
        f"`{COMMAND}` on {about['date']}: {about['machine']}, Python {about['python']}, "
        f"Kubernetes {about['kubernetes']}, nimway {about['nimway']}; "
        f"{about['duration_s']} s; load average {about['load_before']} before, "
        f"{about['load_after']} after (latencies count on a quiet machine only)."
    )
    parts = [head, table(rows(found))]
    if "day" in found:
        parts.append(_day_table(found["day"]))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _held(held: Found) -> Iterator[Row]:
    measured = f"{_latency(held['ready'])}; KubeAI 12.5 and 21.5"
    met = held["ready"]["p50"] <= 12 and held["ready"]["p99"] <= 25
    yield Row("held request: pod Ready → answer, from zero", "p50 ≤ 12, p99 ≤ 25 ms", measured, met)
    met = held["patched"]["p50"] <= 12 and held["patched"]["p99"] <= 25
    yield Row(
        "the same through both proxies, the call that makes the pod ready included",
        "p50 ≤ 12, p99 ≤ 25 ms",
        _latency(held["patched"]),
        met,
    )
    yield Row("of that: EndpointSlice says so → answer", "", _latency(held["slice"]), None)
    written = held["written"]
    yield Row(
        "request sent → scale written",
        "p99 ≤ 50 ms",
        _latency(written),
        written["n"] == held["wakes"] and written["p99"] <= 50,
    )
    yield Row(
        "request sent → answer, a cold start of the sandbox",
        "",
        f"{_latency(held['cold_start'])}, lost {held['lost']}",
        held["lost"] == 0,
    )


def _waiters(found: Found) -> Iterator[Row]:
    count, memory = found["waiters"], found["memory"]
    yield Row(
        f"{count} waiters on one sleeping model, one proxy, one replica",
        "0 lost, 0 twice",
        f"{found['lost']} lost, {found['executed_twice']} twice, {found['queued']} waited at once, "
        f"{found['scale_writes']} scale write{'' if found['scale_writes'] == 1 else 's'}",
        found["lost"] == found["executed_twice"] == found["not_executed"] == 0,
    )
    allowed = int(count * OVERTAKEN_SHARE)
    by = found["overtaken_by"]
    yield Row(
        "a waiter is overtaken by",
        f"≤ {allowed} (5 %)",
        f"{by['max']:.0f} at most, p99 {by['p99']:.0f}" if by["n"] else "nobody was served",
        by["n"] == count and by["max"] <= allowed,
    )
    yield Row(
        f"the proxy's memory grows with {count} waiters by",
        f"≤ {memory['allowed_mb']:.0f} MB (16 KiB each, and bodies)",
        f"{memory['grown_mb']:.0f} MB, {memory['bytes_per_waiter'] / 1024:.1f} KiB each",
        memory["grown_mb"] <= memory["allowed_mb"] and found["queued"] == count,
    )


def _cycles(found: Found) -> Iterator[Row]:
    restarts = ", ".join(f"{count} {kind}" for kind, count in found["restarts"].items())
    yield Row(
        f"{found['cycles']} sleep/wake cycles, SIGTERM to {restarts}",
        "0 lost, 0 twice, no 404",
        f"{found['lost']} lost, {found['executed_twice']} twice, 404: {found['not_found']} "
        f"of {_fates(found)}",
        found["lost"] == found["executed_twice"] == found["not_found"] == 0,
    )


def _kills(found: Found) -> Iterator[Row]:
    kills = ", ".join(f"{count} {kind}" for kind, count in found["restarts"].items())
    yield Row(
        f"{found['cycles']} cycles with SIGKILL to {kills}",
        "0 twice, no 404",
        f"{found['lost']} cut off, {found['executed_twice']} twice, 404: {found['not_found']} "
        f"of {_fates(found)}",
        found["executed_twice"] == found["not_found"] == 0,
    )


def _day(found: Found) -> Iterator[Row]:
    hours, added = found["gpu_hours"], found["added"]
    yield Row(
        "GPU time of a day against fixed replicas",
        "",
        f"{100 * found['saved']:.0f} % saved ({hours['auto']} of {hours['fixed']} GPU hours)",
        None,
    )
    yield Row(
        "latency added to its requests",
        "",
        f"p50 {added['p50']:.0f}, p99 {added['p99']:.0f} ms; "
        f"{100 * found['delayed']:.1f} % waited for a start",
        None,
    )
    lost = sum(found["lost"].values())
    yield Row("requests of the day", "0 lost", f"{lost} lost of {2 * found['requests']}", lost == 0)


def _day_table(found: Found) -> str:
    lines = [
        f"**A day of {found['requests']} requests to {found['models']} models** (seed "
        f"{found['seed']}, compressed {found['compressed']} times to {found['day_s']:.0f} s; a "
        "start takes as long as it takes, so it weighs that many times more here)",
        "",
        "| | GPU hours | GPU-seconds here | latency p50 / p99, ms | lost | pods started |",
        "|---|---|---|---|---|---|",
    ]
    for fleet, title in (("fixed", "fixed replicas"), ("auto", "autoscaling from zero")):
        took = found["took"][fleet]
        starts = found["starts"] if fleet == "auto" else ""
        lines.append(
            f"| {title} | {found['gpu_hours'][fleet]} | {found['gpu_s'][fleet]:.0f} "
            f"| {took['p50']:.0f} / {took['p99']:.0f} | {found['lost'][fleet]} | {starts} |"
        )
    return "\n".join(lines)


def _latency(values: Found) -> str:
    if not values["n"]:
        return "nothing measured"
    return f"p50 {values['p50']}, p99 {values['p99']} ms (least {values['min']}, n {values['n']})"


def _fates(found: Found) -> str:
    fates = ", ".join(f"{count} {fate}" for fate, count in found["fates"].items())
    return f"{found['requests']} ({fates})"
