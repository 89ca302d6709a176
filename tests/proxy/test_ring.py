"""Consistent hashing with bounded load, and the keys that it is asked with."""

import json
import random
from collections import Counter
from dataclasses import dataclass
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimway.proxy.ring import LOAD_FACTOR, Ring
from nimway.proxy.route_key import read_key
from nimway.proxy.wire import read_request
from nimway.routes import PREFIX_HASH, SESSION_HASH


@dataclass(eq=False)
class Node:
    authority: bytes
    outstanding: int = 0


def build_nodes(count: int, load: int = 0) -> list[Node]:
    return [Node(b"10.0.0.%d:8000" % number, load) for number in range(count)]


KEYS = [b"key %d" % number for number in range(2000)]


def place(nodes: list[Node]) -> dict[bytes, bytes]:
    ring = Ring(nodes)
    chosen = {key: ring.choose(key, nodes) for key in KEYS}
    return {key: node.authority for key, node in chosen.items() if node is not None}


def test_every_replica_chooses_the_same_in_whatever_order_it_learned_the_endpoints() -> None:
    nodes = build_nodes(7)
    shuffled = build_nodes(7)
    random.Random(1).shuffle(shuffled)
    assert place(nodes) == place(shuffled)
    assert len(place(nodes)) == len(KEYS)


def test_a_key_has_its_endpoint_over_versions_and_machines() -> None:
    placed = place(build_nodes(3))
    chosen = b"".join(placed[b"key %d" % number][7:8] for number in range(8))
    assert chosen == b"01222010"


@pytest.mark.parametrize("count", [2, 5, 20])
def test_keys_spread_over_the_endpoints(count: int) -> None:
    shares = Counter(place(build_nodes(count)).values())
    assert len(shares) == count
    assert max(shares.values()) < 1.6 * len(KEYS) / count


@pytest.mark.parametrize("count", [2, 5, 20])
def test_an_endpoint_that_comes_or_goes_moves_its_own_keys_only(count: int) -> None:
    before = place(build_nodes(count))
    after = place(build_nodes(count + 1))
    moved = {key for key in KEYS if before[key] != after[key]}
    assert {after[key] for key in moved} == {b"10.0.0.%d:8000" % count}
    assert len(moved) < 1.6 * len(KEYS) / (count + 1)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.binary(max_size=20))
def test_the_load_of_the_chosen_stays_in_its_bound(loads: list[int], key: bytes) -> None:
    nodes = [Node(b"10.0.0.%d:8000" % number, load) for number, load in enumerate(loads)]
    chosen = Ring(nodes).choose(key, nodes)
    assert chosen is not None
    assert chosen.outstanding + 1 <= ceil(LOAD_FACTOR * (1 + sum(loads)) / len(loads))


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=8),
    st.binary(max_size=8),
)
def test_only_a_fit_endpoint_is_chosen_and_one_is_if_there_is_any(
    state: list[tuple[int, bool]], key: bytes
) -> None:
    nodes = [Node(b"10.0.0.%d:8000" % number, load) for number, (load, _) in enumerate(state)]
    fit = [node for node, (_, is_fit) in zip(nodes, state, strict=True) if is_fit]
    chosen = Ring(nodes).choose(key, fit)
    assert chosen in fit if fit else chosen is None


def test_one_hot_key_spills_over_to_the_next_endpoint_and_comes_back() -> None:
    nodes = build_nodes(4)
    ring = Ring(nodes)
    first = ring.choose(b"hot", nodes)
    assert first is not None
    first.outstanding = 8
    second = ring.choose(b"hot", nodes)
    assert second not in (None, first)
    first.outstanding = 0
    assert ring.choose(b"hot", nodes) is first


def key_of(
    body: object, *fields: str, strategy: str = PREFIX_HASH, name: str = "m"
) -> bytes | None:
    lines = "".join(f"{field}\r\n" for field in ("POST / HTTP/1.1", "Host: a", *fields))
    head = read_request(lines.encode() + b"\r\n")
    return read_key(strategy, name, head, json.dumps(body).encode())


SYSTEM = {"role": "system", "content": "Be short."}
FIRST = {"role": "user", "content": "Hello"}
LATER = [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "More"}]


def test_a_session_s_key_wins_in_the_order_of_the_contract() -> None:
    body = {"prompt_cache_key": "b", "user": "c", "prompt": "d"}
    assert key_of(body, "X-Session-Id: a") == b"session:a"
    assert key_of(body) == b"session:b"
    assert key_of({"user": "c", "prompt": "d"}) == b"session:c"
    assert key_of({"user": "a"}) == key_of({}, "x-session-id: a", strategy=SESSION_HASH)


def test_the_turns_of_a_conversation_have_one_key_and_two_conversations_have_two() -> None:
    turn = key_of({"messages": [SYSTEM, FIRST]})
    assert turn
    assert key_of({"messages": [SYSTEM, FIRST, *LATER], "temperature": 1}) == turn
    assert key_of({"messages": [SYSTEM, {"role": "user", "content": "Other"}]}) != turn
    assert key_of({"messages": [{"role": "system", "content": "x"}, FIRST]}) != turn
    assert key_of({"system": "Be kind.", "messages": [FIRST]}) != key_of({"messages": [FIRST]})


def test_prompts_with_one_beginning_have_one_key() -> None:
    long = "x" * 2000
    assert key_of({"prompt": long + "a"}) == key_of({"prompt": long + "b"})
    assert key_of({"prompt": "a"}) != key_of({"prompt": "b"})
    assert key_of({"prompt": [1, 2]}) != key_of({"prompt": [1, 3]})
    assert key_of({"input": "a"}) is not None


def test_an_adapter_s_prefix_is_its_own() -> None:
    assert key_of({"prompt": "a"}, name="base") != key_of({"prompt": "a"}, name="adapter")


def test_without_a_key_there_is_none() -> None:
    assert key_of({}) is None
    assert key_of({"prompt": "", "user": "", "prompt_cache_key": None}) is None
    assert key_of({"prompt": "a"}, strategy=SESSION_HASH) is None
    assert key_of([]) is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(["prompt_cache_key", "user", "system", "messages", "prompt", "input"]),
        _JSON,
    )
)
def test_no_body_breaks_the_reading_of_its_key(body: dict[str, object]) -> None:
    assert key_of(body) == key_of(body)
