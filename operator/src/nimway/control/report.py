"""Writes status: once per reconcile, and only when it differs; transitions are told as Events."""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime

from nimway.api.status import ConditionType
from nimway.control import conditions
from nimway.control.client import KubeClient
from nimway.control.clock import timestamp
from nimway.control.conditions import Verdict
from nimway.control.election import LeadershipLostError
from nimway.control.events import Recorder
from nimway.control.kinds import Kind, Manifest
from nimway.control.metrics import Metrics
from nimway.control.store import Store

_log = logging.getLogger(__name__)
_TYPES = frozenset(ConditionType)


class Reporter:
    """Applies the status subresource of NIMModels and NIMProxies under our field manager."""

    def __init__(
        self,
        client: KubeClient,
        store: Store,
        recorder: Recorder,
        metrics: Metrics,
        *,
        may_write: Callable[[], bool],
        wall: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._store = store
        self._recorder = recorder
        self._metrics = metrics
        self._may_write = may_write
        self._wall = wall

    async def report(
        self, kind: Kind, live: Manifest, verdicts: Mapping[str, Verdict], fields: Manifest
    ) -> None:
        """Make the status of `live` say `verdicts` and `fields`, and nothing else of ours.

        Raises:
            ConflictError: the object changed since `live` was observed.
        """
        metadata = live["metadata"]
        before = live.get("status", {})
        previous = [each for each in before.get("conditions", ()) if each["type"] in _TYPES]
        status = {
            **fields,
            "observedGeneration": metadata["generation"],
            "conditions": conditions.render(
                verdicts, previous, metadata["generation"], timestamp(self._wall())
            ),
        }
        if status == {**before, "conditions": previous}:
            return
        if not self._may_write():
            raise LeadershipLostError("not leader: the status is left alone")
        answer = await self._client.apply(
            kind,
            {
                "apiVersion": kind.api_version,
                "kind": kind.kind,
                "metadata": {
                    key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion")
                },
                "status": status,
            },
            subresource="status",
        )
        self._metrics.writes.labels(kind.kind, "status").inc()
        self._store.put(kind, answer)
        ready = verdicts[ConditionType.READY]
        _log.info(
            "reported: %s %s/%s ready=%s reason=%s",
            kind.kind,
            metadata["namespace"],
            metadata["name"],
            ready.status,
            ready.reason,
        )
        await self._recorder.record(kind, live, previous, status["conditions"])
