"""The arithmetic and the verdicts of the benchmark; nothing is measured here."""

import os
import socket
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.bench import (
    install,
    interpreter,
    picture,
    product,
    regression,
    report,
    results,
    unobserved,
)
from tests.bench.contenders import DEFAULT, MAKERS, QUICK, REFERENCE, SUBJECT
from tests.bench.interpreter import Interpreter
from tests.bench.pairs import Paired
from tests.bench.price import Price, render
from tests.bench.results import Run
from tests.bench.rounds import DIRECT, Round
from tests.bench.running import BenchError, connections, cpu_s, process_tree

METRICS = tuple(regression.METRICS)


def a_round(cost: float, reference: float = 20.0) -> Round:
    return {
        REFERENCE: dict.fromkeys(METRICS, reference) | {"latency_p50_us": 150.0},
        SUBJECT: dict.fromkeys(METRICS, cost) | {"latency_p50_us": 180.0},
        DIRECT: {"latency_p50_us": 80.0},
    }


def a_run(*rounds: Round) -> Run:
    about = {
        "date": "2026-01-02",
        "machine": "a CPU & more",
        "python": "3.11",
        "window_s": 2.0,
        "versions": {REFERENCE: "2.6", SUBJECT: "0.1"},
        "titles": {REFERENCE: "HAProxy", SUBJECT: "Nimway"},
    }
    return Run(about, list(rounds))


def test_ratios_are_taken_inside_each_round() -> None:
    run = a_run(a_round(30), a_round(300, reference=100), a_round(40))
    found = results.ratios(run, SUBJECT, "sse_cpu_us")
    assert found == results.Spread(2.0, 1.5, 3.0, 3)


def test_a_round_without_the_contender_is_left_out() -> None:
    without = a_round(30)
    without[SUBJECT] = {}
    found = results.ratios(a_run(a_round(40), without), SUBJECT, "sse_cpu_us")
    assert found == results.Spread(2.0, 2.0, 2.0, 1)


def test_added_latency_is_what_the_direct_connection_has_not() -> None:
    found = results.added(a_run(a_round(30)), SUBJECT, "latency_p50_us")
    assert found is not None
    assert found.median == 100.0


def test_a_written_run_reads_back(tmp_path: Path) -> None:
    run = a_run(a_round(30))
    results.write(run, tmp_path / "new" / "results.json")
    assert results.read(tmp_path / "new" / "results.json") == run


@pytest.mark.parametrize(("cost", "code"), [(29.0, 0), (35.9, 0), (36.1, 1)])
def test_quick_fails_only_when_a_ratio_is_more_than_a_fifth_worse(cost: float, code: int) -> None:
    assert regression.compare(a_run(a_round(cost)), a_run(a_round(30))) == code


def test_quick_without_a_record_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="run make bench first"):
        regression.read_record(tmp_path / "results.json")


def test_quick_fails_when_something_was_not_measured() -> None:
    run = a_run(a_round(30))
    del run.rounds[0][SUBJECT]["sse_cpu_us"]
    assert regression.compare(run, a_run(a_round(30))) == 1


def test_the_report_names_missed_and_reached_goals() -> None:
    text = report.render(a_run(a_round(24), a_round(26)))
    assert "| CPU per small request : HAProxy's | ≤ 1.4 | 1.25 (1.20-1.30) | reached |" in text
    assert "| CPU per 1 MiB prompt : HAProxy's | ≤ 0.35 | 1.25 (1.20-1.30) | missed |" in text


def test_the_report_leaves_out_tables_that_nobody_measured() -> None:
    assert "idle stream, KB" not in report.render(a_run(a_round(24)))


def test_the_picture_is_well_formed_and_draws_every_contender_in_every_panel() -> None:
    drawn = ET.fromstring(picture.draw(a_run(a_round(24))))  # noqa: S314 - our own text
    texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("Nimway") == len(picture.PANELS)
    assert texts.count("1.20") == len(picture.PANELS)


def test_litellm_is_pinned_and_only_measured_on_request() -> None:
    assert "litellm" in MAKERS
    assert "litellm" not in {*DEFAULT, *QUICK}
    text = (install.HERE / "requirements" / "litellm.txt").read_text(encoding="utf-8")
    assert "\nlitellm==1.82.6 \\\n    --hash=sha256:" in text


@pytest.mark.parametrize("name", ["vllm-router", "sglang-router", "litellm"])
def test_everything_from_pypi_is_locked_with_hashes(name: str) -> None:
    text = (install.HERE / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    pinned = [line for line in text.splitlines() if line and line[0] not in " #"]
    assert pinned
    assert all("==" in line and line.endswith("\\") for line in pinned)


def test_cpu_time_and_connections_of_a_process_are_counted() -> None:
    me = os.getpid()
    assert me in process_tree(os.getppid())
    assert cpu_s([me]) == pytest.approx(time.process_time(), abs=0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
            assert connections([me], port) == [1]


def a_python(name: str, version: str, work_us: float) -> Interpreter:
    return Interpreter(Path(name), version, "GCC", optimized=False, work_us=work_us)


def test_the_proxy_runs_on_the_fastest_python_that_it_runs_on() -> None:
    own, fast = a_python("own", "3.11.7", 400), a_python("fast", "3.13.1", 200)
    old = a_python("old", "3.9.2", 100)
    assert interpreter.fastest([own, old, fast]) == fast
    assert fast.describe(own) == "3.13.1 (fast, GCC; 2.00 times as fast as 3.11.7 of the venv)"
    assert own.describe(own) == "3.11.7 (own, GCC)"


def test_the_price_takes_all_that_observes_out_of_the_exchange() -> None:
    source = (product.ROOT / product.EXCHANGE).read_text(encoding="utf-8")
    blind = unobserved.blind(source)
    assert not any(name in blind for name in (".account", ".watch", ".meters"))
    assert blind.count("def ") == source.count("def ")
    with pytest.raises(LookupError, match="no longer has: account, bytes_out, first_byte_at"):
        unobserved.blind("pass")


def test_the_price_is_the_part_that_only_observing_takes() -> None:
    price = Price("a request", observed=[100.0, 102.0, 99.0], blind=[95.0, 94.0, 96.0])
    assert price.share == pytest.approx(0.05)
    assert "| a request | 100 (99-102) | 95 (94-96) | 5.0 % |" in render([price], "3.11")


def test_the_price_of_observing_is_taken_pair_by_pair_and_has_an_interval() -> None:
    found = Paired("188 B", observed=[100.0, 200.0, 100.0, 200.0], blind=[94.0, 188.0, 96.0, 192.0])
    assert found.shares == pytest.approx([0.06, 0.06, 0.04, 0.04])
    low, high = found.interval
    assert low < 0.05 < high
    assert high - low == pytest.approx(2 * 2.04 * 0.011547 / 2, rel=1e-3)
