"""Kopf's part: its settings, its credentials, and handlers without logic.

Kopf watches what users write; it neither patches objects nor adds finalizers, annotations or
events. Its stores of progress and of last-handled states are empty on purpose: they would cost two
thirds of the CPU of an event and write to users' objects.
"""

from collections.abc import Callable, Iterable
from typing import Any

import kopf
from kubernetes.aio import client as kubernetes_client

from nimway.control.client import LIST_PAGE_ITEMS, kopf_login
from nimway.control.kinds import OWNERS, Kind, Manifest

Seen = Callable[[Kind, "str | None", Manifest], None]
"""Called with the kind, the event's type (None while listing) and the object."""


class NoDiffBase(kopf.DiffBaseStorage):
    """Remembers no last-handled state: all our handlers are level-triggered."""

    def build(
        self, *, body: kopf.Body, extra_fields: Iterable[Any] | None = None
    ) -> kopf.BodyEssence:
        """Return nothing to compare."""
        del body, extra_fields
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Return nothing."""
        del body
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Store nothing."""


class NoProgress(kopf.ProgressStorage):
    """Remembers no progress of handlers: none of them is ever half done."""

    def fetch(self, **_: Any) -> None:
        """Return nothing."""

    def store(self, **_: Any) -> None:
        """Store nothing."""

    def purge(self, **_: Any) -> None:
        """Purge nothing."""

    def touch(self, **_: Any) -> None:
        """Touch nothing."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        """Leave the essence as it is."""
        return essence


def build_settings() -> kopf.OperatorSettings:
    """Return Kopf's settings."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.persistence.progress_storage = NoProgress()
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = (0.25, 0.5, 1, 1, 1, 1)
    settings.watching.connect_timeout = 5
    settings.watching.inactivity_timeout = 70
    settings.watching.reconnect_backoff = 0.1
    settings.watching.chunk_size = LIST_PAGE_ITEMS
    settings.queueing.worker_limit = None
    # An idle worker holds the last event's object: at a start those of all models at once.
    settings.queueing.idle_timeout = 0.1
    settings.queueing.exit_timeout = 0.5
    settings.process.ultimate_exiting_timeout = 20
    return settings


def kopf_selector(kind: Kind) -> tuple[str, str, str]:
    """Return how Kopf names a resource."""
    return kind.group, kind.version, kind.plural


def build_registry(
    seen: Seen, configuration: kubernetes_client.Configuration
) -> kopf.OperatorRegistry:
    """Return the handlers: what users write is reported to `seen`."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await kopf_login(configuration)

    for kind in OWNERS:
        _watch(registry, kind, seen)
    return registry


def _watch(registry: kopf.OperatorRegistry, kind: Kind, seen: Seen) -> None:
    @kopf.on.event(*kopf_selector(kind), registry=registry, id=kind.plural)
    async def observed(event: kopf.RawEvent, **_: Any) -> None:
        seen(kind, event["type"], dict(event["object"]))
