"""The ConfigMaps of one routing table, put together: a whole table or none (pure).

Owns what is known of the head and of its shards, whatever the order in which they are seen. Shards
are named by their content, so parts of two tables are never mixed. A shard is read once, when it
comes; what becomes of the table is `feed.py`'s business.
"""

from typing import NamedTuple

import msgspec

from nimway.proxy.endpoints import Metadata
from nimway.routes import (
    KEY_PACKED,
    MissingShardError,
    Route,
    RoutesError,
    RoutingTable,
    decode,
    decode_shard,
    shard_name,
)


class ConfigMap(msgspec.Struct):
    """v1 ConfigMap; `binaryData` is base64."""

    metadata: Metadata = msgspec.field(default_factory=Metadata)
    data: dict[str, str] | None = None
    binaryData: dict[str, str] | None = None  # noqa: N815 # the API's name


class _Shard(NamedTuple):
    version: str
    content: tuple[Route, ...] | RoutesError


class Assembly:
    """What is known of the table whose head has the name `head`."""

    def __init__(self, head: str) -> None:
        self._name = head
        self._prefix = shard_name(head, "")
        self._head: dict[str, str] | None = None
        self._shards: dict[str, _Shard] = {}

    @property
    def has_head(self) -> bool:
        """Whether the head exists."""
        return self._head is not None

    def is_head(self, item: ConfigMap) -> bool:
        """Tell whether a ConfigMap is the head."""
        return item.metadata.name == self._name

    def replace(self, items: list[ConfigMap]) -> None:
        """Take a list of all that there is."""
        before, self._shards, self._head = self._shards, {}, None
        for item in items:
            self._put(item, before)

    def update(self, item: ConfigMap, *, deleted: bool) -> None:
        """Take what one event says."""
        if not deleted:
            self._put(item, self._shards)
        elif self.is_head(item):
            self._head = None
        else:
            self._shards.pop(item.metadata.name.removeprefix(self._prefix), None)

    def read(self) -> RoutingTable:
        """Return the table that the head names.

        Raises:
            MissingShardError: the head or a part is not known yet, or not any more.
            RoutesError: the head or a part of it is damaged.
        """
        if self._head is None:
            raise MissingShardError("the routing ConfigMap is gone")
        whole = {
            digest: shard.content
            for digest, shard in self._shards.items()
            if not isinstance(shard.content, RoutesError)
        }
        try:
            return decode(self._head, whole)
        except MissingShardError:
            for shard in self._shards.values():
                if isinstance(shard.content, RoutesError):
                    raise shard.content from None
            raise

    def _put(self, item: ConfigMap, known: dict[str, _Shard]) -> None:
        name, version = item.metadata.name, item.metadata.resourceVersion
        if self.is_head(item):
            self._head = item.data or {}
        elif name.startswith(self._prefix):
            digest = name.removeprefix(self._prefix)
            shard = known.get(digest)
            if shard is None or shard.version != version:
                shard = _Shard(version, _read(digest, item))
            self._shards[digest] = shard


def _read(digest: str, item: ConfigMap) -> tuple[Route, ...] | RoutesError:
    try:
        return decode_shard(digest, (item.binaryData or {}).get(KEY_PACKED, ""))
    except RoutesError as error:
        return error
