"""`make bench-wake`: what sleeping costs and saves, on a control plane of its own."""

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

import nimway
from nimway.sandbox import binaries, launcher, toolchain
from nimway.sandbox.client import ApiError
from tests.bench_control.bench import Bench, enter, say
from tests.bench_wake import cycles, day, held, waiters
from tests.bench_wake.goals import report, rows
from tests.bench_wake.picture import draw
from tests.support.installed import install

FOLDER = Path(__file__).parents[2] / "docs" / "bench"
PARTS = {
    "held": held.measure,
    "waiters": waiters.measure,
    "cycles": cycles.measure,
    "day": day.measure,
}


def main(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    began_s = time.monotonic()
    about = _about()
    helm = toolchain.helm(say)
    sandbox = launcher.launch(
        launcher.Options(name=launcher.new_name("wake"), gpus_per_node=16, backoff_initial_s=1.0),
        say,
    )
    try:
        install(helm, sandbox.kubeconfig)
        enter(sandbox)
        found = asyncio.run(_measure(sandbox, options))
    finally:
        sandbox.stop()
    about |= {
        "load_after": round(os.getloadavg()[0], 1),
        "duration_s": round(time.monotonic() - began_s),
    }
    sys.stdout.write(report(about, found))
    if options.json:
        _write(options.json, about, found)
    return 1 if "failed" in found else 0


async def _measure(sandbox: launcher.Sandbox, options: argparse.Namespace) -> dict[str, Any]:
    async with Bench.inside(sandbox, quick=options.quick) as bench:
        await bench.quiet()
        for name in options.only:
            try:
                await PARTS[name](bench)
            except (TimeoutError, ApiError) as error:
                say(f"{name} failed: {error}")
                bench.found.setdefault("failed", {})[name] = str(error)
        return bench.found


def _write(path: Path, about: dict[str, Any], found: dict[str, Any]) -> None:
    """Write the record, and beside it the table and the picture."""
    record = {"about": about, "rows": [vars(row) for row in rows(found)], "found": found}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(report(about, found), encoding="utf-8")
    path.with_suffix(".svg").write_text(draw(about, found), encoding="utf-8")
    say(f"written: {path} and, beside it, .md and .svg")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_wake", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small numbers; records nothing")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {','.join(PARTS)}, by comma")
    parser.add_argument("--json", type=Path, help="file of the results, .md and .svg beside it")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    if options.json is None and not options.quick and options.only == list(PARTS):
        options.json = FOLDER / "wake.json"
    return options


def _about() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{models[0] if models else platform.machine()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(),
        "kubernetes": binaries.kubernetes_version(),
        "nimway": nimway.__version__,
        "load_before": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
