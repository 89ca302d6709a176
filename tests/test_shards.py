"""Tables too large to be read: cut, compressed, put together again, and never a mixture."""

import base64
import gzip
import json
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimway import routes
from nimway.routes import (
    KEY_REVISION,
    KEY_ROUTES,
    KEY_SHARDS,
    MissingShardError,
    Route,
    RoutesError,
    RoutingTable,
    TableTooLargeError,
    build_table,
    decode,
    decode_shard,
    encode,
    encode_shards,
)

CONFIG_MAP_BYTES_MAX = 1 << 20
"""The API server's limit for all keys and values of a ConfigMap, base64 taken off."""

SMALL: dict[str, Any] = {
    "READABLE_BYTES_MAX": 300,
    "SHARD_BYTES_MIN": 250,
    "SHARD_BYTES_MAX": 900,
    "_CUTS": 2,
}
"""Limits that few routes reach."""


def build_route(number: int, *, chars: int = 20) -> Route:
    name = f"model-{number}-".ljust(chars, "x")
    return Route("models", name, f"org/{name}"[:253], (f"org/{name}"[:253],), "service", 1)


def longest(number: int) -> Route:
    """A route whose every name is as long as it may be."""
    return build_route(number, chars=253)


def read(table: RoutingTable) -> RoutingTable:
    packed = encode_shards(table, {})
    shards = {digest: decode_shard(digest, text) for digest, text in packed.items()}
    return decode(encode(table), shards)


@given(st.sets(st.integers(0, 500), max_size=60))
def test_what_is_cut_is_put_together_again(numbers: set[int]) -> None:
    with mock.patch.multiple(routes, **SMALL):
        table = build_table([build_route(number) for number in numbers])
        assert read(table) == table
        assert bool(table.shards) is (table.json_bytes > routes.READABLE_BYTES_MAX)
        assert sum(shard.routes for shard in table.shards) in (0, len(numbers))


def test_one_more_route_changes_its_own_shard_and_seldom_others() -> None:
    limits: dict[str, Any] = {
        "READABLE_BYTES_MAX": 0,
        "SHARD_BYTES_MIN": 2000,
        "SHARD_BYTES_MAX": 9000,
        "_CUTS": 8,
    }
    with mock.patch.multiple(routes, **limits):
        before = build_table([build_route(number) for number in range(0, 2000, 2)])
        changed = []
        for added in range(1, 2000, 100):
            after = build_table([*before.routes, build_route(added)])
            assert after.revision != before.revision
            changed.append(len(set(after.shards) - set(before.shards)))
    assert len(before.shards) > 50
    assert sorted(changed)[10] == 1
    assert max(changed) <= 5


def test_a_table_is_readable_as_long_as_it_is_small() -> None:
    small = build_table([build_route(number) for number in range(1000)])
    assert small.shards == ()
    assert KEY_ROUTES in encode(small)
    assert encode_shards(small, {}) == {}
    assert len(encode(small)[KEY_ROUTES].encode()) < CONFIG_MAP_BYTES_MAX
    assert build_table([build_route(number) for number in range(4000)]).shards


def test_ten_thousand_models_with_the_longest_names_fit_into_config_maps() -> None:
    table = build_table([longest(number) for number in range(10_000)])
    packed = encode_shards(table, {})
    assert read(table) == table
    assert 1 < len(packed) <= routes.TABLE_BYTES_MAX // routes.SHARD_BYTES_MIN
    for text in packed.values():
        assert len(base64.b64decode(text)) < CONFIG_MAP_BYTES_MAX
    assert encode_shards(table, {}) == packed
    assert sum(len(value) for value in encode(table).values()) < 10_000


def test_what_cannot_be_compressed_fits_too() -> None:
    digits = "".join(chr(33 + number % 90) for number in range(200))
    table = build_table([replace(longest(number), model=digits) for number in range(3000)])
    assert table.shards
    for text in encode_shards(table, {}).values():
        assert len(gzip.decompress(base64.b64decode(text))) <= routes.SHARD_BYTES_MAX


def test_a_shard_is_json_for_who_unpacks_it_a_route_a_line() -> None:
    with mock.patch.multiple(routes, **SMALL):
        table = build_table([build_route(number) for number in range(20)])
        text = gzip.decompress(base64.b64decode(next(iter(encode_shards(table, {}).values()))))
    entries = json.loads(text)
    assert len(text.splitlines()) == len(entries) == table.shards[0].routes
    assert entries["models/model-0-xxxxxxxxxxxx"]["service"] == "service"


def test_known_shards_are_not_packed_again() -> None:
    with mock.patch.multiple(routes, **SMALL):
        table = build_table([build_route(number) for number in range(40)])
        packed = encode_shards(table, {})
        with mock.patch.object(routes, "_pack", side_effect=AssertionError):
            assert encode_shards(table, packed) == packed


def test_a_table_beyond_the_bound_is_refused_with_its_size() -> None:
    table = build_table([longest(number) for number in range(22_000)])
    with pytest.raises(TableTooLargeError, match=r"of 22000 models has 1\d+ bytes, more than 16"):
        encode(table)


def test_a_head_without_its_shards_is_no_table() -> None:
    with mock.patch.multiple(routes, **SMALL):
        table = build_table([build_route(number) for number in range(40)])
        packed = encode_shards(table, {})
        whole = {digest: decode_shard(digest, text) for digest, text in packed.items()}
        for digest in whole:
            part = {key: value for key, value in whole.items() if key != digest}
            with pytest.raises(MissingShardError, match=rf"1 of \d+ are not there, {digest}"):
                decode(encode(table), part)
        head = encode(table)
        lines = head[KEY_SHARDS].splitlines(keepends=True)
        for text in ("".join(lines[1:]), "".join(reversed(lines)), "x\n", "a b\n"):
            with pytest.raises(RoutesError, match="revision: does not match"):
                decode({**head, KEY_SHARDS: text}, whole)
        bad = {**head, KEY_SHARDS: "a b\n", KEY_REVISION: routes._digest("a b\n")}
        with pytest.raises(RoutesError, match=r"shards: .a b.: expected a digest and a number"):
            decode(bad, whole)


def test_a_damaged_shard_is_refused() -> None:
    with mock.patch.multiple(routes, **SMALL):
        table = build_table([build_route(number) for number in range(40)])
        (one, first), (_, second), *_ = encode_shards(table, {}).items()
    bomb = base64.b64encode(gzip.compress(b" " * (routes.SHARD_BYTES_MAX + 1))).decode()
    for packed in ("", "%", "AAAA", first[:-8], second, bomb):
        with pytest.raises(RoutesError, match=r"routes\.json\.gz"):
            decode_shard(one, packed)
