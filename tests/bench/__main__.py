"""`make bench` and `make bench-quick`: measure, print the table, record or compare."""

import argparse
import os
import platform
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench import (
    install,
    interpreter,
    pairs,
    picture,
    price,
    product,
    regression,
    report,
    results,
)
from tests.bench.contenders import DEFAULT, MAKERS, QUICK, SUBJECT, Contender, nimway
from tests.bench.install import say
from tests.bench.rounds import Round, model_server, run_round
from tests.bench.running import BenchError, choose_cpus
from tests.bench.scenarios import SCENARIOS, Bench

FOLDER = install.HERE.parents[1] / "docs" / "bench"
RECORD = FOLDER / "results.json"


def main(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    try:
        if options.price:
            return price.main(options.python, options.rounds or 3)
        if options.pairs:
            return pairs.main(options.python, options.rounds or 31)
        if options.quick:
            recorded = regression.read_record(RECORD)
            return regression.compare(_measure(options), recorded)
        _publish(_measure(options), options)
    except BenchError as error:
        say(str(error))
        return 2
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="nimway and HAProxy only, compared")
    parser.add_argument("--price", action="store_true", help="what observing costs, by valgrind")
    parser.add_argument("--pairs", action="store_true", help="the same in CPU time, by pairs")
    parser.add_argument("--python", help="run nimway on this Python (default: the fastest here)")
    parser.add_argument("--rounds", type=int, help="rounds (default 7, quick 5, price 3, pairs 31)")
    parser.add_argument("--window-s", type=float, help="length of a measurement (default 2)")
    parser.add_argument("--only", help="contenders, by comma; the result is printed, not recorded")
    parser.add_argument("--litellm", action="store_true", help="measure LiteLLM 1.82.6, too")
    return parser.parse_args(arguments)


def _measure(options: argparse.Namespace) -> results.Run:
    began_s = time.monotonic()
    cpus = choose_cpus()
    os.sched_setaffinity(0, {cpus.load})
    install.install_debian(["wrk", "haproxy"] if options.quick else ["wrk", "haproxy", "nginx"])
    goload = install.go_program("goload")
    python, described = interpreter.choose(options.python)
    makers = MAKERS | {SUBJECT: lambda: nimway(product.build(python))}
    contenders = [makers[name]() for name in _chosen(options)]
    scenarios = [item for item in SCENARIOS if item.quick or not options.quick]
    rounds: list[Round] = []
    with model_server(goload, cpus.load) as (upstream, counter):
        bench = Bench(goload, upstream, counter, cpus, options.window_s or 2.0)
        count = options.rounds or (5 if options.quick else 7)
        for number in range(1, count + 1):
            say(f"round {number} of {count}")
            try:
                rounds.append(run_round(bench, contenders, scenarios, random.Random(number)))
            except BenchError as error:
                say(f"round {number} does not count: {error}")
    if 2 * len(rounds) < count:
        raise BenchError(f"only {len(rounds)} of {count} rounds could be measured")
    about = _about(contenders) | {
        "python": described,
        "window_s": bench.window_s,
        "duration_s": round(time.monotonic() - began_s),
    }
    return results.Run(about, rounds)


def _chosen(options: argparse.Namespace) -> Sequence[str]:
    if options.only:
        names: list[str] = options.only.split(",")
        if unknown := set(names) - set(MAKERS):
            raise BenchError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(MAKERS)}")
        return names
    if options.quick:
        return QUICK
    return (*DEFAULT, "litellm") if options.litellm else DEFAULT


def _about(contenders: Sequence[Contender]) -> dict[str, Any]:
    kernel = platform.release().partition("-")[0]
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{_cpu_model()}, {os.cpu_count()} CPUs, Linux {kernel}",
        "versions": {item.name: item.version for item in contenders},
        "titles": {item.name: item.title for item in contenders},
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _publish(run: results.Run, options: argparse.Namespace) -> None:
    sys.stdout.write(report.render(run))
    if options.only:
        return
    results.write(run, RECORD)
    (FOLDER / "results.md").write_text(report.render(run), encoding="utf-8")
    (FOLDER / "cost.svg").write_text(picture.draw(run), encoding="utf-8")
    say(f"written to {FOLDER}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
