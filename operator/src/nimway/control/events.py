"""Tells of transitions of conditions as Events, which `kubectl describe` shows.

Owns which transitions are worth an Event, its name, and how many are written. An Event is an
afterthought of a status that was written: without one the status still says all, so that a failure
is counted and no more. The name is made of the object and the reason, so that neither a second
write nor another process doubles one: what happens again is counted in the same Event.
"""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from nimway.api.status import ConditionType, Reason
from nimway.control.client import ApiError, ConflictError, KubeClient, NotFoundError
from nimway.control.clock import timestamp
from nimway.control.kinds import EVENT, Kind, Manifest
from nimway.control.metrics import Metrics

COMPONENT = "nimway-operator"
NORMAL, WARNING = "Normal", "Warning"

BURST = 50
PER_S = 2.0
"""Events of each type, over all objects: a thousand models at once need none each."""

SPACING_S = 10.0
"""Between two writes of one Event; what happens in between is counted in the next."""

REMEMBERED_MAX = 4096
TIMEOUT_S = 5.0
MESSAGE_CHARS_MAX = 1000
_OBJECT_CHARS_MAX = 200

_WARNINGS = frozenset(
    {
        Reason.PROXY_NOT_READY,
        Reason.WAITING_FOR_GPU,
        Reason.UNSCHEDULABLE,
        Reason.IMAGE_PULL_FAILED,
        Reason.CRASH_LOOP,
        Reason.SECRET_NOT_FOUND,
        Reason.CONTAINER_CONFIG_ERROR,
        Reason.PVC_PENDING,
        Reason.NODE_NOT_READY,
        Reason.QUOTA_EXCEEDED,
        Reason.PODS_REFUSED,
        Reason.STARTUP_TIMEOUT,
        Reason.NAME_CONFLICT,
        Reason.OBJECT_CONFLICT,
        Reason.CONTESTED,
        Reason.INVALID_SPEC,
        Reason.NAMESPACE_NOT_ALLOWED,
        Reason.TABLE_TOO_LARGE,
        Reason.API_ERROR,
    }
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Transition:
    """What an Event tells: its type, and the reason and message of a condition."""

    type: str
    reason: str
    message: str


def transitions(before: Sequence[Manifest], after: Sequence[Manifest]) -> list[Transition]:
    """Return what to tell of two lists of conditions, one Event for each reason.

    A first report is no transition: of it only troubles are told.
    """
    known = {each["type"]: each for each in before}
    now = {each["type"]: each for each in after}
    found: dict[str, Transition] = {}
    for type_ in (ConditionType.READY, ConditionType.ROUTED, ConditionType.STALLED):
        each = now.get(type_)
        if each is None or _same(known.get(type_), each):
            continue
        # What is routed again is told by Ready, and what is not stalled needs no telling.
        if type_ is ConditionType.READY or _is_trouble(type_, each):
            found.setdefault(each["reason"], _transition(each))
    each = now.get(ConditionType.RECONCILING)
    if not found and each is not None and not _same(known.get(ConditionType.RECONCILING), each):
        found[each["reason"]] = _transition(each)  # a rolling update that keeps serving
    return [each for each in found.values() if known or each.type == WARNING]


def event_name(name: str, uid: str, reason: str) -> str:
    """Return the name of the Event that tells of `reason` at one object."""
    digest = hashlib.sha256(f"{uid}/{reason}".encode()).hexdigest()[:16]
    return f"{name[:_OBJECT_CHARS_MAX].rstrip('-.')}.{digest}"


@dataclass(slots=True)
class _Known:
    count: int
    written_s: float


class Budget:
    """So many at once, and so many a second."""

    def __init__(self, now_s: float) -> None:
        self._left = float(BURST)
        self._at_s = now_s

    def take(self, now_s: float) -> bool:
        """Tell whether one more may be written now, and count it."""
        self._left = min(BURST, self._left + (now_s - self._at_s) * PER_S)
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Recorder:
    """Writes Events. `may_write` is asked before each, `clock` is monotonic seconds."""

    def __init__(
        self,
        client: KubeClient,
        metrics: Metrics,
        *,
        may_write: Callable[[], bool],
        clock: Callable[[], float],
        wall: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._metrics = metrics
        self._may_write = may_write
        self._clock = clock
        self._wall = wall
        self._budgets = {type_: Budget(clock()) for type_ in (NORMAL, WARNING)}
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def record(
        self, kind: Kind, live: Manifest, before: Sequence[Manifest], after: Sequence[Manifest]
    ) -> None:
        """Tell of the transitions of an object whose status was just written; never fails."""
        for each in transitions(before, after):
            if self._may_write():
                outcome = await self._tell(kind, live, each)
                self._metrics.events.labels(each.type, outcome).inc()

    async def _tell(self, kind: Kind, live: Manifest, told: Transition) -> str:
        metadata, now_s = live["metadata"], self._clock()
        name = event_name(metadata["name"], metadata["uid"], told.reason)
        known = self._known.get(name)
        if known is not None:
            known.count += 1
            if now_s - known.written_s < SPACING_S:
                return "joined"
        if not self._budgets[told.type].take(now_s):
            return "dropped"
        if known is None:
            known = self._known[name] = _Known(0, now_s)
            while len(self._known) > REMEMBERED_MAX:
                self._known.popitem(last=False)
        known.written_s = now_s
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._write(kind, live, told, known)
        except (ApiError, TimeoutError) as error:
            _log.warning("event not written: %s reason=%s error=%s", name, told.reason, error)
            return "failed"
        return "written"

    async def _write(self, kind: Kind, live: Manifest, told: Transition, known: _Known) -> None:
        name = event_name(live["metadata"]["name"], live["metadata"]["uid"], told.reason)
        if known.count:
            try:
                await self._count(live, name, told, known.count)
            except NotFoundError:
                pass  # the API server drops Events after an hour or so
            else:
                return
        known.count = 1
        try:
            await self._create(kind, live, name, told)
        except ConflictError:
            # Another process wrote it. How often is in its answer, and told with the next write.
            answer = await self._count(live, name, told, None)
            known.count = answer.get("count", 1) + 1

    async def _create(self, kind: Kind, live: Manifest, name: str, told: Transition) -> None:
        metadata, now = live["metadata"], timestamp(self._wall())
        body = {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": kind.api_version,
                "kind": kind.kind,
                **{key: metadata[key] for key in ("namespace", "name", "uid", "resourceVersion")},
            },
            "type": told.type,
            "reason": told.reason,
            "message": told.message,
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": COMPONENT},
        }
        await self._client.request("POST", EVENT.path(metadata["namespace"]), body=body)
        self._metrics.writes.labels(EVENT.kind, "create").inc()

    async def _count(
        self, live: Manifest, name: str, told: Transition, count: int | None
    ) -> Manifest:
        values = {"lastTimestamp": timestamp(self._wall()), "message": told.message}
        operations: list[Manifest] = [
            {"op": "replace", "path": f"/{key}", "value": value} for key, value in values.items()
        ]
        if count is not None:
            operations.append({"op": "replace", "path": "/count", "value": count})
        namespace = live["metadata"]["namespace"]
        answer = await self._client.patch(EVENT, namespace, name, operations)
        self._metrics.writes.labels(EVENT.kind, "patch").inc()
        return answer


def _same(was: Manifest | None, now: Manifest) -> bool:
    return was is not None and (was["status"], was["reason"]) == (now["status"], now["reason"])


def _is_trouble(type_: ConditionType, condition: Manifest) -> bool:
    trouble = "True" if type_ is ConditionType.STALLED else "False"
    return bool(condition["status"] == trouble)


def _transition(condition: Manifest) -> Transition:
    reason, message = condition["reason"], condition["message"]
    type_ = WARNING if reason in _WARNINGS else NORMAL
    return Transition(type_, reason, message[:MESSAGE_CHARS_MAX])
