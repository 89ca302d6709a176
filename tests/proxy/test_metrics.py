"""What is counted of requests: tokens and their times, log lines, totals that outlive workers."""

import json
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimway.proxy import exposition
from nimway.proxy.addresses import format_authority
from nimway.proxy.catalog import Model
from nimway.proxy.logs import LineWriter
from nimway.proxy.messages import Counters, RouteEntry
from nimway.proxy.metrics import (
    DURATION_BUCKETS_S,
    FORGET_MODELS,
    Answered,
    Entry,
    Histogram,
    Meters,
)
from nimway.proxy.policy import resolve
from nimway.proxy.scrape import collect
from nimway.proxy.settings import Settings
from nimway.proxy.usage import TAIL_BYTES, read_usage
from nimway.proxy.wire import RequestHead, read_request
from nimway.routes import DEFAULT_POLICY
from tests.proxy.test_conversations import BODY, MODEL
from tests.support.promtool import check_metrics
from tests.support.proxy import Served, run_proxy
from tests.support.proxy_wire import connect, post, run_model_server

CHAT = "/v1/chat/completions"
HEAD = read_request(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-Request-Id: r-1\r\n\r\n")
USAGE = b'"usage":{"prompt_tokens":31,"total_tokens":95,"completion_tokens":64}'


@pytest.fixture
def model() -> Model:
    route = RouteEntry("a/m", "org/m", ("org/m",), "a", "m", 0)
    return Model(route, resolve(DEFAULT_POLICY, Settings(), pods=1, workers=1), [])


def make(settings: Settings = Settings()) -> Meters:  # noqa: B008 # it is frozen
    return Meters(settings, epoch_s=1000.0)


def answer(*pieces: bytes, stream: bool = False, status: int = 200) -> Answered:
    """Head at 1 s, answer from 2 s on, one piece each 0.5 s after that."""
    exchange = Answered()
    exchange.status, exchange.started, exchange.first_byte_at = status, 1.0, 2.0
    clock = iter(2.0 + 0.5 * number for number in range(1000))
    for piece in pieces:
        exchange.watch([piece], lambda: next(clock), stream=stream)
        exchange.bytes_out += len(piece)
    return exchange


def totals(meters: Meters) -> dict[str, dict[tuple[str, ...], float]]:
    """The sum of each series that was observed (a histogram's last number)."""
    return {
        name: {labels: numbers[-1] for labels, numbers in series} for name, series in meters.read()
    }


@pytest.mark.parametrize(
    ("tail", "usage"),
    [
        (b'{"choices":[],' + USAGE + b"}", (31, 64)),
        (b'{"choices":[],' + USAGE + b',"kv_transfer_params":null}', (31, 64)),
        (b"data: {" + USAGE + b"}\n\n", (31, 64)),
        (b'{"usage": {"prompt_tokens": 5, "total_tokens": 5}}', (5, 0)),
        (b'"usage":{"input_tokens":9,"input_tokens_details":{"n":0},"output_tokens":7}', (9, 7)),
        (b'{"usage":{\n  "prompt_tokens": 3,\n  "completion_tokens": 4\n}}', (3, 4)),
        (b'{"usage":null}', (0, 0)),
        (b'{"text":"\\"usage\\":{\\"prompt_tokens\\":7}"}', (0, 0)),
        (b'{"usage":{"prompt_tokens":' + b"9" * 40 + b"}}", (0, 0)),
        (b'{"usage":{"prompt_tokens":999999999}}', (999_999_999, 0)),
        (b'{"usage":{"prompt_tokens":1000000000}}', (0, 0)),
        (b'{"usage":{"prompt_tokens":-3,"completion_tokens":null}}', (0, 0)),
        (b'{"usage":{"prompt_tokens":\t', (0, 0)),
        (b'{"usage":{"prompt_tokens":31', (31, 0)),
        (b'{"usage":{"input_tokens":0,"output_tokens":0,' + USAGE[9:] + b"}", (31, 64)),
        (b"{" + USAGE[:-1] + b',"input_tokens":0,"output_tokens":0}}', (31, 64)),
        (b'{"response":{"usage":{"input_tokens":4,"output_tokens":2}}}', (4, 2)),
        (b'{"usage":{"prompt_tokens":1}},{"usage":{"prompt_tokens":2}}', (2, 0)),
        (b"{" + USAGE + b',"x":"' + b"x" * TAIL_BYTES + b'"}', (0, 0)),
        (b'{"prompt_tokens":7}', (0, 0)),
        (b"", (0, 0)),
    ],
)
def test_tokens_are_read_where_servers_write_them(tail: bytes, usage: tuple[int, int]) -> None:
    assert read_usage(tail) == usage


def test_an_answer_nested_too_deeply_says_nothing() -> None:
    assert read_usage(b'{"usage":' + b"[" * 900) == (0, 0)


def test_tokens_of_a_whole_answer_are_counted_wherever_it_was_cut(model: Model) -> None:
    body = b'{"choices":[],' + USAGE + b"}"
    for at in range(1, len(body)):
        meters = make()
        meters.account(answer(body[:at], body[at:]), model, CHAT, HEAD, 3.0)
        assert totals(meters)["tokens"] == {
            ("org/m", "chat", "input"): 31,
            ("org/m", "chat", "output"): 64,
        }


def test_tokens_are_counted_where_a_read_brings_several_chunks(model: Model) -> None:
    body = b'{"choices":[],' + USAGE + b"}"
    for size in (1, 7, 30):
        chunks = [body[at : at + size] for at in range(0, len(body), size)]
        for first in range(len(chunks)):
            watched = answer(*[b"".join(chunks[:first])][: bool(first)])
            watched.watch(chunks[first:], float, stream=False)
            meters = make()
            meters.account(watched, model, CHAT, HEAD, 3.0)
            assert totals(meters)["tokens"]["org/m", "chat", "input"] == 31
            assert totals(meters)["tokens"]["org/m", "chat", "output"] == 64


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_an_event_that_comes_in_two_reads_is_one(model: Model, end: bytes) -> None:
    text = b"x" * 3 * TAIL_BYTES
    event = b'data: {"response":{"output":"' + text + b'",' + USAGE + b"}}" + end
    for at in range(1, len(event) - len(end) + 1):
        watched = answer(b"data: {}" + end, event[:at], event[at:], b"data: {}" + end, stream=True)
        assert watched.events == 3
        meters = make()
        meters.account(watched, model, CHAT, HEAD, 4.0)
        assert totals(meters)["tokens"]["org/m", "chat", "input"] == 31
        assert totals(meters)["tokens"]["org/m", "chat", "output"] == 64


def test_a_stream_s_first_token_and_pace_are_measured(model: Model) -> None:
    meters = make()
    events = [b'data: {"choices":[]}\n\n'] * 3 + [
        b"data: {" + USAGE + b"}\n\n",
        b"data: [DONE]\n\n",
    ]
    meters.account(answer(*events, stream=True), model, CHAT, HEAD, 8.3)
    counted = totals(meters)
    assert counted["first_tokens"] == {("org/m", "chat"): 1.0}
    assert counted["output_times"] == {("org/m", "chat"): pytest.approx(6.3 / 63)}
    assert counted["tokens"]["org/m", "chat", "output"] == 64


def test_events_count_as_tokens_where_a_stream_does_not_say(model: Model) -> None:
    meters = make()
    meters.account(answer(*[b"data: {}\n\n"] * 5, stream=True), model, CHAT, HEAD, 4.0)
    assert totals(meters)["output_times"] == {("org/m", "chat"): 0.5}
    assert "tokens" not in totals(meters) or not totals(meters)["tokens"]


def test_a_whole_answer_has_no_time_to_its_first_token(model: Model) -> None:
    meters = make()
    meters.account(answer(b"{}"), model, CHAT, HEAD, 4.0)
    assert not totals(meters)["first_tokens"]


def test_an_error_is_timed_apart_and_its_tokens_are_not_counted(model: Model) -> None:
    meters = make()
    meters.account(answer(b"{" + USAGE + b"}", status=500), model, CHAT, HEAD, 4.0)
    counted = totals(meters)
    assert counted["durations"] == {("org/m", "chat", "500"): 3.0}
    assert "tokens" not in counted


@given(st.lists(st.floats(0, 100) | st.sampled_from(DURATION_BUCKETS_S), max_size=60))
def test_a_value_is_counted_in_the_first_bucket_that_holds_it(values: list[float]) -> None:
    histogram = Histogram(DURATION_BUCKETS_S)
    for value in values:
        histogram.observe(value)
    *counts, total = histogram.read()
    for number, bound in enumerate(DURATION_BUCKETS_S):
        assert sum(counts[: number + 1]) == sum(value <= bound for value in values)
    assert sum(counts) == len(values)
    assert total == pytest.approx(sum(values))


def test_the_log_says_what_was_counted(model: Model) -> None:
    meters = make()
    meters.account(answer(b"{" + USAGE + b"}"), model, CHAT, HEAD, 4.0)
    meters.account(answer(b"{}", status=404), None, "", RequestHead(), 4.0)
    first, second = map(json.loads, meters.take_lines().splitlines())
    assert first == {
        "event": "request",
        "ts_ms": 1_004_000,
        "request_id": "r-1",
        "method": "POST",
        "path": CHAT,
        "model": "org/m",
        "status": 200,
        "duration_us": 3_000_000,
        "first_byte_us": 1_000_000,
        "bytes_out": len(USAGE) + 2,
        "input_tokens": 31,
        "output_tokens": 64,
    }
    assert (second["model"], second["path"], second["status"]) == ("", "", 404)
    assert list(first) == list(second)


def test_a_sample_of_the_lines_is_written_and_all_requests_are_counted(model: Model) -> None:
    meters = make(Settings(access_log_sample=0.25))
    for _ in range(8):
        meters.account(answer(b"{}"), model, CHAT, HEAD, 4.0)
    assert meters.take_lines().count(b"\n") == 2
    assert totals(meters)["requests"] == {("org/m", CHAT, "200"): 8}


def test_lines_go_out_before_they_fill_a_pipe(model: Model) -> None:
    meters = make()
    taken: list[int] = []

    def flush() -> None:
        taken.append(len(meters.take_lines()))

    meters.on_full = flush
    for _ in range(3000):
        meters.account(answer(b"{}"), model, CHAT, HEAD, 4.0)
    assert taken
    assert max(taken) <= 64 * 1024 * 1.25


def test_a_model_that_left_takes_its_series_with_it(model: Model) -> None:
    meters = make()
    meters.account(answer(b"{" + USAGE + b"}"), model, CHAT, HEAD, 4.0)
    list(meters.forget(frozenset()))
    assert not any(
        labels and labels[0] == "org/m" for _, series in meters.read() for labels, _ in series
    )


def test_a_model_that_is_counted_while_series_are_dropped_is_counted_on(model: Model) -> None:
    meters = make()
    for name in [f"org/{number}" for number in range(2 * FORGET_MODELS)]:
        model.name = name
        meters.account(answer(b"{}"), model, CHAT, HEAD, 4.0)
    dropping = meters.forget(frozenset())
    next(dropping)
    for _ in range(3):
        meters.account(answer(b"{}"), model, CHAT, HEAD, 4.0)  # the last that ends
    list(dropping)
    meters.account(answer(b"{}"), model, CHAT, HEAD, 4.0)
    assert totals(meters)["requests"][model.name, CHAT, "200"] == 1


def test_requests_that_end_one_by_one_are_in_the_next_log_and_in_the_next_scrape(
    model: Model,
) -> None:
    meters = make()
    for number in range(1, 4):
        meters.account(answer(b"{" + USAGE + b"}"), model, CHAT, HEAD, 4.0)
        assert totals(meters)["requests"] == {("org/m", CHAT, "200"): number}
        assert meters.take_lines().count(b"\n") == 1
    assert totals(meters)["tokens"]["org/m", "chat", "output"] == 64 * 3


async def test_what_each_endpoint_got_is_counted_until_it_leaves() -> None:
    async with run_model_server() as first, run_model_server() as second:
        served = Served(MODEL, endpoints=[first.address, second.address])
        async with run_proxy(served) as proxy, connect(proxy.port) as client:
            for _ in range(6):
                assert (await client.ask(post(BODY))).status == 200
            values = next(collect(proxy.server, 1)).values
            picks = {labels: int(numbers[0]) for labels, numbers in values["picks"]}
            assert sum(picks.values()) == 6
            assert {model for model, _ in picks} == {MODEL}
            known = {f"127.0.0.1:{server.address[1]}" for server in (first, second)}
            assert {address for _, address in picks} <= known
            overheads = values["overheads"][0][1]
            assert sum(overheads[:-1]) == 6 - len(proxy.server.upstreams)
            assert 0 < overheads[-1] < 1
            proxy.set_endpoints(served.name, [])
            assert next(collect(proxy.server, 2)).values["picks"] == []


def test_an_endpoint_s_counts_go_with_it_when_its_worker_ends() -> None:
    picks: list[Entry] = [(("m", "10.0.0.1:8"), [2]), (("m", "[fd::1]:8"), [3])]
    addresses = {format_authority("fd::1", 8)}
    kept = exposition.keep_totals([Counters(1, {"picks": picks})], {"m"}, addresses)
    assert kept.values["picks"] == [(("m", "[fd::1]:8"), [3])]


def test_a_late_loop_shows(model: Model) -> None:
    del model
    meters = make()
    for now in (1.0, 1.25, 1.8):
        meters.tick(now, 0.25)
    assert totals(meters)["delays"][()] == pytest.approx(0.3)


def test_totals_outlive_their_worker_and_gauges_do_not() -> None:
    ended = Counters(
        7,
        {
            "requests": [(("m", CHAT, "200"), [5]), (("gone", CHAT, "200"), [5])],
            "retries": [((), [2])],
            "connections": [((), [40])],
        },
    )
    kept = exposition.keep_totals([exposition.keep_totals([], {"m"}), ended], {"m"})
    living = Counters(8, {"requests": [(("m", CHAT, "200"), [1])], "retries": [((), [1])]})
    text = exposition.encode_text(exposition.add_up([kept, living])).decode()
    assert f'nimway_proxy_requests_total{{model="m",path="{CHAT}",status="200"}} 6\n' in text
    assert "nimway_proxy_retries_total 3\n" in text
    assert "gone" not in text
    assert "nimway_proxy_connections" not in text


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    os.set_blocking(ends[0], False)
    yield ends
    for end in ends:
        os.close(end)


def test_a_full_pipe_drops_whole_lines_and_counts_them(pipe: tuple[int, int]) -> None:
    reader, end = pipe
    writer = LineWriter(end)
    line = b"x" * 998
    sent = [b"%d%b\n" % (number % 10, line) for number in range(200)]
    dropped = writer.write(b"".join(sent))
    read = os.read(reader, 1 << 20)
    dropped += writer.write(b"last\n")
    read += os.read(reader, 1 << 20)
    lines = read.splitlines(keepends=True)
    assert lines[-1] == b"last\n"
    assert lines[:-1] == sent[: len(lines) - 1]
    assert dropped == len(sent) - (len(lines) - 1) > 0


def test_promtool_has_nothing_to_say(model: Model) -> None:
    meters = make()
    meters.account(answer(b"{" + USAGE + b"}", stream=True), model, CHAT, HEAD, 4.0)
    values = {metric.source: series_of(metric) for metric in exposition.METRICS}
    values |= exposition.add_up([Counters(1, {name: list(found) for name, found in meters.read()})])
    assert check_metrics(exposition.encode_text(values)) == (0, b"")


def series_of(metric: exposition.Metric) -> exposition.Series:
    numbers = [1.0] * (len(metric.bounds) + 2) if metric.bounds else [1.0]
    return {("x",) * len(metric.labels): numbers}
