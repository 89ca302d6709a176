"""A proxy that sees the ConfigMaps of its table in any order, or not all of them."""

from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimway import routes
from nimway.proxy.assembly import Assembly, ConfigMap
from nimway.routes import MissingShardError, RoutesError, RoutingTable
from tests.test_shards import SMALL, build_route

HEAD = "nimway-edge-routes"


def build_config_map(name: str, version: int, **content: Any) -> ConfigMap:
    metadata = {"name": name, "resourceVersion": str(version)}
    return msgspec.convert({"metadata": metadata, **content}, ConfigMap)


def config_maps(table: RoutingTable, version: int = 1) -> list[ConfigMap]:
    """The ConfigMaps of a table in the order in which the operator writes them."""
    shards = [
        build_config_map(
            routes.shard_name(HEAD, digest), version, binaryData={routes.KEY_PACKED: packed}
        )
        for digest, packed in routes.encode_shards(table, {}).items()
    ]
    return [*shards, build_config_map(HEAD, version, data=routes.encode(table))]


@given(
    st.lists(st.sets(st.integers(0, 200), max_size=40), min_size=2, max_size=4),
    st.data(),
)
def test_whatever_is_seen_in_whatever_order_it_is_one_of_the_tables_or_none(
    generations: list[set[int]], data: st.DataObject
) -> None:
    with mock.patch.multiple(routes, **SMALL):
        tables = [
            routes.build_table([build_route(each) for each in numbers]) for numbers in generations
        ]
        writes = [
            item for number, table in enumerate(tables) for item in config_maps(table, number)
        ]
        seen = data.draw(st.permutations(writes))
        deleted = data.draw(st.sets(st.integers(0, len(seen))))
        assembly = Assembly(HEAD)
        for number, item in enumerate(seen):
            assembly.update(item, deleted=number in deleted)
            try:
                found = assembly.read()
            except MissingShardError:
                continue
            assert found in tables


@given(st.sets(st.integers(0, 200), max_size=40), st.sets(st.integers(0, 200), max_size=40))
def test_in_the_order_of_the_operators_writes_there_is_no_moment_without_a_table(
    first: set[int], second: set[int]
) -> None:
    with mock.patch.multiple(routes, **SMALL):
        old, new = (routes.build_table([build_route(n) for n in each]) for each in (first, second))
        assembly = Assembly(HEAD)
        assembly.replace(config_maps(old))
        for item in config_maps(new, 2):
            assert assembly.read() == old
            assembly.update(item, deleted=False)
        assert assembly.read() == new
        kept = {item.metadata.name for item in config_maps(new)}
        for item in config_maps(old):
            if item.metadata.name not in kept:
                assembly.update(item, deleted=True)
            assert assembly.read() == new
        assembly.replace(config_maps(new))
        assert assembly.read() == new


def test_a_damaged_shard_is_told_and_its_repair_completes_the_table() -> None:
    with mock.patch.multiple(routes, **SMALL):
        table = routes.build_table([build_route(number) for number in range(40)])
        first, *others = config_maps(table)
        broken = build_config_map(first.metadata.name, 2, binaryData={routes.KEY_PACKED: "AAAA"})
        assembly = Assembly(HEAD)
        assembly.replace([broken, *others])
        with pytest.raises(RoutesError, match=r"routes\.json\.gz") as caught:
            assembly.read()
        assert not isinstance(caught.value, MissingShardError)
        assembly.update(build_config_map(first.metadata.name, 2), deleted=False)
        with pytest.raises(RoutesError, match=r"routes\.json\.gz"):
            assembly.read()
        first.metadata.resourceVersion = "3"
        assembly.update(first, deleted=False)
        assert assembly.read() == table


def test_config_maps_of_other_names_are_not_looked_at() -> None:
    assembly = Assembly(HEAD)
    assembly.replace([build_config_map("other", 1, data={"version": "1"})])
    assert not assembly.has_head
    with pytest.raises(MissingShardError, match="gone"):
        assembly.read()


def test_an_unchanged_shard_is_read_once() -> None:
    with mock.patch.multiple(routes, **SMALL):
        table = routes.build_table([build_route(number) for number in range(40)])
        assembly = Assembly(HEAD)
        assembly.replace(config_maps(table))
        with mock.patch("nimway.proxy.assembly.decode_shard", side_effect=AssertionError):
            assembly.replace(config_maps(table))
        assert assembly.read() == table
