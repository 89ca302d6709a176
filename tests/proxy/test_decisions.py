"""The pure rooms: paths, addresses, choosing, ejection, retry, admission."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimway.proxy.addresses import is_allowed
from nimway.proxy.choose import choose_least
from nimway.proxy.health import Health, is_failure
from nimway.proxy.paths import find_operation, read_model_id
from nimway.proxy.retry import RetryBudget, may_retry
from nimway.proxy.settings import Settings

SETTINGS = Settings()


@pytest.mark.parametrize(
    ("path", "kind", "upstream"),
    [
        (b"/v1/completions", "model", b"/v1/completions"),
        (b"/v1/chat/completions", "model", b"/v1/chat/completions"),
        (b"/v1/embeddings", "model", b"/v1/embeddings"),
        (b"/v1/classify", "model", b"/v1/classify"),
        (b"/v1/ranking", "model", b"/v1/ranking"),
        (b"/v1/rerank", "model", b"/v1/rerank"),
        (b"/v1/responses", "model", b"/v1/responses"),
        (b"/v1/messages", "model", b"/v1/messages"),
        (b"/tokenize", "model", b"/tokenize"),
        (b"/detokenize", "model", b"/detokenize"),
        (b"/openai/v1/completions", "model", b"/v1/completions"),
        (b"/v1/models", "models", b"/v1/models"),
        (b"/openai/v1/models", "models", b"/v1/models"),
        (b"/v1/models/a/b", "model-card", b"/v1/models/"),
        (b"/health", "live", b"/health"),
        (b"/v1/health/live", "live", b"/v1/health/live"),
        (b"/v1/health/ready", "ready", b"/v1/health/ready"),
    ],
)
def test_a_path_of_the_list_is_known(path: bytes, kind: str, upstream: bytes) -> None:
    operation = find_operation(path)
    assert operation is not None
    assert (operation.kind, operation.path) == (kind, upstream)


@pytest.mark.parametrize(
    "path",
    [
        b"/",
        b"/metrics",
        b"/v1/metrics",
        b"/state",
        b"/docs",
        b"/openapi.json",
        b"/v1/load_lora_adapter",
        b"/v1/unload_lora_adapter",
        b"/sleep",
        b"/wake_up",
        b"/reset_prefix_cache",
        b"/v1/completions/",
        b"//v1/completions",
        b"/v1//completions",
        b"/v1/completions;x",
        b"/v1/./completions",
        b"/v1/x/../completions",
        b"/v1/%63ompletions",
        b"/v1/completions%2f",
        b"/V1/completions",
        b"/v1/model",
        b"/openai",
        b"/openai/openai/v1/completions",
        b"/openai/health",
    ],
)
def test_any_other_path_is_unknown(path: bytes) -> None:
    assert find_operation(path) is None


def test_a_model_id_is_decoded_once() -> None:
    assert read_model_id(b"/v1/models/meta/llama") == "meta/llama"
    assert read_model_id(b"/v1/models/meta%2Fllama") == "meta/llama"
    assert read_model_id(b"/openai/v1/models/meta%2fllama") == "meta/llama"
    assert read_model_id(b"/v1/models/a%252Fb") == "a%2Fb"
    assert read_model_id(b"/v1/models/%ff") is None


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "::1",
        "::ffff:127.0.0.1",
        "169.254.169.254",
        "169.254.0.1",
        "::ffff:169.254.169.254",
        "fe80::1",
        "fd00:ec2::254",
        "100.100.100.200",
        "192.0.0.192",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "255.255.255.255",
        "localhost",
        "metadata.google.internal",
        "10.0.0.1:80",
        "2130706433",
        "0177.0.0.1",
        "",
    ],
)
def test_an_address_that_is_no_pod_s_is_refused(address: str) -> None:
    assert not is_allowed(address, allow_loopback=False)


def test_a_pod_s_address_is_allowed_and_loopback_only_for_tests() -> None:
    for address in ("10.244.1.2", "192.168.0.9", "172.16.0.1", "100.64.0.1", "fd00::1", "8.8.8.8"):
        assert is_allowed(address, allow_loopback=False)
    assert is_allowed("127.0.0.1", allow_loopback=True)
    assert not is_allowed("169.254.169.254", allow_loopback=True)


@dataclass(eq=False)
class Place:
    outstanding: int = 0
    health: Health = field(default_factory=Health)


def test_the_least_loaded_endpoint_is_chosen() -> None:
    places = [Place(3), Place(1), Place(2)]
    assert choose_least(places, (), 0, 0.99) is places[1]


def test_ties_are_broken_by_the_random_number() -> None:
    places = [Place(1), Place(1), Place(2), Place(1)]
    assert [choose_least(places, (), 0, pick) for pick in (0, 0.34, 0.99)] == [
        places[0],
        places[1],
        places[3],
    ]


def test_a_tried_endpoint_is_not_chosen_again() -> None:
    one, two = Place(0), Place(9)
    assert choose_least([one, two], (one,), 0, 0) is two
    assert choose_least([one, two], (one, two), 0, 0) is None
    assert choose_least([one], (one,), 0, 0) is None
    assert choose_least([], (), 0, 0) is None


def test_an_ejected_endpoint_is_left_out_unless_all_are() -> None:
    one, two = Place(0), Place(9)
    one.health.ejected_until = 10
    assert choose_least([one, two], (), 5, 0) is two
    assert choose_least([one, two], (), 11, 0) is one
    two.health.ejected_until = 10
    assert choose_least([one, two], (), 5, 0) in (one, two)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=6), st.floats(0, 0.999))
def test_the_choice_is_always_a_least_loaded_one_that_takes_part(
    state: list[tuple[int, bool]], pick: float
) -> None:
    places = []
    for outstanding, ejected in state:
        places.append(Place(outstanding))
        places[-1].health.ejected_until = 10.0 if ejected else 0.0
    chosen = choose_least(places, (), 1, pick)
    fit = [place for place in places if not place.health.ejected_until] or places
    if chosen is None:
        assert not places
    else:
        assert chosen in fit
        if any(not place.health.ejected_until for place in places):
            assert chosen.outstanding == min(place.outstanding for place in fit)


def test_three_failures_in_a_row_eject_and_a_success_between_does_not() -> None:
    health = Health()
    assert [health.fail(0, 0, SETTINGS) for _ in range(3)] == [False, False, True]
    assert health.is_out(4.9)
    health = Health()
    health.fail(0, 0, SETTINGS)
    health.fail(0, 0, SETTINGS)
    health.succeed()
    assert not health.fail(0, 0, SETTINGS)


def test_one_probe_decides_and_the_time_doubles() -> None:
    health = Health()
    for _ in range(3):
        health.fail(0, 0, SETTINGS)
    assert not health.is_out(5.0)
    health.begin(5.0, "first")
    health.begin(5.0, "second")
    assert health.probe == "first"
    assert health.is_out(5.0)  # others wait for the probe
    assert health.fail(5.0, 0, SETTINGS)
    assert health.is_out(14.9)
    health.begin(15.0, "first")
    health.succeed()
    assert not health.is_out(15.0)
    assert health.failures == 0


def test_ejection_is_bounded_and_spread() -> None:
    health = Health()
    for _ in range(50):
        health.ejected_until = 0
        health.fail(0, 1.0, SETTINGS)
    assert health.ejected_until <= SETTINGS.ejection_max_s * 1.25


@pytest.mark.parametrize(
    ("status", "failed"), [(200, False), (404, False), (429, False), (500, True), (503, False)]
)
def test_only_a_server_s_own_error_counts_against_it(status: int, *, failed: bool) -> None:
    assert is_failure(status) is failed


def test_a_request_is_sent_again_only_if_nothing_was_sent() -> None:
    fresh = {"tries": 1, "retries_max": 2}
    assert may_retry(bytes_sent=False, bytes_received=False, **fresh)
    assert not may_retry(bytes_sent=True, bytes_received=False, **fresh)
    assert not may_retry(bytes_sent=True, bytes_received=True, **fresh)


def test_a_model_s_retries_count_the_endpoints_after_the_first() -> None:
    tries = [
        may_retry(bytes_sent=False, bytes_received=False, tries=tries, retries_max=2)
        for tries in (1, 2, 3)
    ]
    assert tries == [True, True, False]
    assert not may_retry(bytes_sent=False, bytes_received=False, tries=1, retries_max=0)


def test_the_budget_allows_a_fifth_of_the_requests() -> None:
    budget = RetryBudget(SETTINGS)
    budget.requests = 1000
    assert sum(budget.take() for _ in range(1000)) == 210
    budget.fade()
    assert budget.requests == 500
