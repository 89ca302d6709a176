"""`make bench-control`: what the operator costs on a real control plane, beside its goals."""

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nimway.sandbox import binaries, launcher, toolchain
from tests.bench_control import burst, drift, paced
from tests.bench_control.bench import Bench, enter, say
from tests.bench_control.goals import rows, table
from tests.bench_control.picture import draw
from tests.support.installed import install

FOLDER = Path(__file__).parents[2] / "docs" / "bench"
PARTS = ("paced", "drift", "burst")


def main(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    began_s = time.monotonic()
    load = os.getloadavg()[0]
    helm = toolchain.helm(say)
    sandbox = launcher.launch(
        launcher.Options(name=launcher.new_name("bench"), backoff_initial_s=1.0), say
    )
    try:
        install(helm, sandbox.kubeconfig)
        enter(sandbox)
        found = asyncio.run(_measure(sandbox, options))
    finally:
        sandbox.stop()
    about = _about() | {
        "load_before": round(load, 1),
        "load_after": round(os.getloadavg()[0], 1),
        "duration_s": round(time.monotonic() - began_s),
    }
    judged = rows(found)
    sys.stdout.write(table(judged))
    if options.json:
        record = {"about": about, "rows": [vars(row) for row in judged], "found": found}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        picture = options.json.with_suffix(".svg")
        picture.write_text(draw(about, found), encoding="utf-8")
        page = options.json.with_suffix(".md")
        page.write_text(f"{_sentence(about)}\n\n{table(judged)}", encoding="utf-8")
        say(f"written: {options.json}, {picture}, {page}")
    return 0


async def _measure(sandbox: launcher.Sandbox, options: argparse.Namespace) -> dict[str, Any]:
    async with Bench.inside(sandbox, quick=options.quick) as bench:
        await bench.quiet()
        if "paced" in options.only:
            await paced.measure(bench)
        if "drift" in options.only:
            await drift.measure(bench)
        if "burst" in options.only:
            await burst.measure(bench, options.idle_minutes * 60)
        return bench.found


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_control", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small numbers; records nothing")
    parser.add_argument("--idle-minutes", type=float, help="time at rest (default 2, quick 0.2)")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {','.join(PARTS)}, by comma")
    parser.add_argument("--json", type=Path, help="file of the results, the picture beside it")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    if options.idle_minutes is None:
        options.idle_minutes = 0.2 if options.quick else 2.0
    if options.json is None and not options.quick and options.only == list(PARTS):
        options.json = FOLDER / "control.json"
    return options


def _sentence(about: dict[str, Any]) -> str:
    return (
        f"`make bench-control` on {about['date']}: {about['machine']}, Python {about['python']}, "
        f"Kubernetes {about['kubernetes']}; load average {about['load_before']} before, "
        f"{about['load_after']} after {about['duration_s'] / 60:.0f} min. The whole control plane "
        "shares the CPUs. Each time contains the client's own call."
    )


def _about() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{models[0] if models else platform.machine()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(),
        "kubernetes": binaries.kubernetes_version(),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
