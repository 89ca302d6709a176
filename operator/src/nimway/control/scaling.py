"""The autoscaler: hears of demand, decides, and writes `spec.replicas` of NIMModels.

The only writer of that field, and only where `spec.autoscaling` is. It writes the scale
subresource with the observed resourceVersion as precondition: of many who saw the same demand one
succeeds, and who is refused reads again and stops if the count is no longer the one seen. What to
decide is autoscale.py's, what the status says sleep.py's, the load the LoadBook's.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pydantic import ValidationError

from nimway.api.nimmodel import Autoscaling
from nimway.api.status import ConditionType, Reason
from nimway.control import sleep, victims
from nimway.control.autoscale import (
    UNHEARD,
    Decision,
    Memory,
    Rules,
    Seen,
    decide,
    first_memory,
)
from nimway.control.client import ApiError, ConflictError
from nimway.control.clock import timestamp, unix_s
from nimway.control.conditions import verdict_of
from nimway.control.context import STATUS_DELAY_S, Context
from nimway.control.desired import names
from nimway.control.election import LeadershipLostError
from nimway.control.facts import (
    DeploymentFacts,
    PodFacts,
    deployment_facts,
    is_starting,
    pod_facts,
)
from nimway.control.kinds import DEPLOYMENT, FIELD_MANAGER, MODEL, POD, Manifest, Ref
from nimway.control.sleep import Autoscaled, Waking
from nimway.state import ProxyState

SCALE: Final = "Scale"
"""Kind of the keys in the autoscaler's own lane of the work queue."""

BUSY_DELAY_S = 0.1
STEADY_DELAY_S = 1.0
"""Reports of a sleeping model are looked at at once; those of others wait for more of them, the
longer if they ask for no further replica."""

HELD_TOLD_S = 60.0
"""A proxy that is not heard for so long is named in the status: each one is for a moment."""

CONFLICT_RETRIES = 4
_MERGE_PATCH = "application/merge-patch+json"

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Model:
    """What is known of one model.

    States older than `version` are from before our last write. `owed` is an arrival whose write has
    not succeeded; `fell` tells that the load was higher before the last look than at it.
    `scaled_at` and `scaled_why` are of the last change, "" for what the status says. `woken_s` is
    when it was woken (`woken_at` for people), None if it is not waking. `usual_s` is its usual
    cold start, 0 for what the status says; `target` the declared requests per replica.
    `assumed_s` is when it was last used, as far as its status tells. `held_s` is since when fewer
    replicas were enough and a proxy was not heard, `held_by` what is told of it ("" for nothing,
    None for what the status says).
    """

    uid: str
    memory: Memory
    target: int
    assumed_s: float
    version: int = 0
    owed: bool = False
    fell: bool = False
    scaled_at: str = ""
    scaled_why: str = ""
    woken_s: float | None = None
    woken_at: str = ""
    usual_s: int = 0
    held_s: float | None = None
    held_by: str | None = None


class Autoscaler:
    """Keeps the replicas of all models with `autoscaling`."""

    def __init__(self, context: Context, *, may_write: Callable[[], bool]) -> None:
        self._context = context
        self._may_write = may_write
        self._models: dict[str, _Model] = {}

    def heard(self, proxy: str, uid: str, state: ProxyState | None) -> None:
        """Take in a proxy pod's report (None: it is not heard any more)."""
        for key in self._context.loads.report(proxy, uid, state):
            known = self._models.get(key)
            if known is not None:
                self._context.workers.mark(_ref(key), delay_s=self._patience_s(key, known))

    def _patience_s(self, key: str, model: _Model) -> float:
        replicas = model.memory.replicas
        if replicas == 0:
            return 0.0
        more = self._context.loads.requests(key) > replicas * model.target
        return BUSY_DELAY_S if more else STEADY_DELAY_S

    def changed(self, live: Manifest) -> None:
        """Look at a model that was reconciled."""
        key = _key(live)
        if key in self._models or rules_of(live) is not None:
            self._context.workers.mark(_ref(key))

    def forget(self, key: str) -> None:
        """Drop a model that is gone, or has no `autoscaling` any more."""
        if self._models.pop(key, None) is None:
            return
        labels = key.split("/")
        metrics = self._context.metrics
        for family in (metrics.wakes, metrics.cold_start, metrics.desired, metrics.ready):
            with contextlib.suppress(KeyError):
                family.remove(*labels)

    async def reconcile(self, ref: Ref) -> None:
        """Look at one model, and write its replicas if they are to change.

        Raises:
            ApiError: the write failed; it has to be tried again.
        """
        context, key = self._context, f"{ref.namespace}/{ref.name}"
        live = context.store.get(MODEL, ref.namespace, ref.name)
        rules = rules_of(live) if live is not None else None
        if live is None or rules is None:
            self.forget(key)
            return
        model = self._known(live, rules)
        model.target = rules.target
        if int(live["metadata"]["resourceVersion"]) < model.version:
            return  # from before our own write, whose news is on its way
        pods = [pod_facts(pod) for _, pod in context.store.children(model.uid, POD)]
        seen = self._see(key, live, model, pods)
        decision = decide(rules, seen, model.memory, context.clock())
        if decision.replicas != seen.replicas:
            model.owed = seen.arrived
            if 0 < decision.replicas < seen.replicas:
                await self._rank(live, pods)
            if not await self._scale(live, decision, model):
                return
        model.owed, model.memory = False, decision.memory
        context.metrics.desired.labels(*key.split("/")).set(decision.replicas)
        self._note_held(live, model, seen, decision)
        self._look_again(live, rules, model, decision)

    def view(self, live: Manifest, replicas: int, deployment: DeploymentFacts) -> Autoscaled | None:
        """Return what a model's conditions need; None if it has no `autoscaling`.

        It notices when a cold start ends.
        """
        rules = rules_of(live)
        if rules is None:
            return None
        model, labels = self._known(live, rules), _key(live).split("/")
        self._context.metrics.ready.labels(*labels).set(deployment.ready)
        usual_s = model.usual_s or sleep.usual_s(live)
        if model.woken_s is None:
            return Autoscaled(usual_s)
        took_s = self._context.clock() - model.woken_s
        if replicas and not deployment.available:
            late_s = sleep.LATE * usual_s - took_s
            if usual_s and late_s > 0:
                self._context.workers.mark(Ref(MODEL.kind, *labels), delay_s=late_s)
            return Autoscaled(usual_s, Waking(model.woken_at, late=bool(usual_s) and late_s <= 0))
        model.woken_s = None
        if replicas:
            self._context.metrics.cold_start.labels(*labels).observe(took_s)
            model.usual_s = sleep.averaged_s(usual_s, took_s)
        return Autoscaled(model.usual_s or usual_s)

    def status(self, live: Manifest, replicas: int, scaled: Autoscaled) -> Manifest:
        """Return `status.autoscaling` as it is to be."""
        rules, before = rules_of(live), sleep.autoscaling_status(live)
        model = self._known(live, rules) if rules else None
        idle_s = self._idle_since_s(live, rules, model) if rules and model else 0
        fields = {
            "idleSince": timestamp(datetime.fromtimestamp(idle_s, tz=UTC)) if idle_s else None,
            "lastScaleTime": (model and model.scaled_at) or before.get("lastScaleTime"),
            "lastScaleReason": (model and model.scaled_why) or before.get("lastScaleReason"),
            "coldStartSeconds": scaled.usual_s or None,
            "heldBy": _held_by(live, model),
        }
        given = {key: value for key, value in fields.items() if value}
        return {"desiredReplicas": replicas, **given}

    def _known(self, live: Manifest, rules: Rules) -> _Model:
        """Return what is known of a model; of one that was unknown, what its status says."""
        key, uid = _key(live), live["metadata"]["uid"]
        known = self._models.get(key)
        if known is not None and known.uid == uid:
            return known
        now_s, unix_now_s = self._context.clock(), self._context.wall().timestamp()
        stored_s = sleep.stored_idle_s(live)
        used_s = sleep.assumed_used_s(stored_s, unix_now_s, idle_s=rules.idle_s)
        memory = first_memory(_declared(live), now_s - (unix_now_s - used_s))
        made = self._models[key] = _Model(uid, memory, rules.target, memory.active_s)
        self._context.metrics.wakes.labels(*key.split("/"))
        ready = verdict_of(live.get("status", {}).get("conditions", ()), ConditionType.READY)
        since = sleep.autoscaling_status(live).get("lastScaleTime", "")
        if ready and ready.reason == Reason.WAKING and not self._deployment(live).available:
            made.woken_s, made.woken_at = now_s - (unix_now_s - unix_s(since)), since
        return made

    def _see(self, key: str, live: Manifest, model: _Model, pods: list[PodFacts]) -> Seen:
        silent = self._silent(key)
        load = self._context.loads.take(key, known=not silent)
        model.fell = load.current < load.requests
        return Seen(
            replicas=_declared(live),
            requests=load.requests,
            arrived=load.arrived > 0 or model.owed,
            known=not silent,
            starting=is_starting(
                _declared(live), self._deployment(live), pods, self._context.wall().timestamp()
            ),
        )

    def _note_held(self, live: Manifest, model: _Model, seen: Seen, decision: Decision) -> None:
        """Have the status say who keeps a model's pods, once that lasts, and that it is over."""
        key, now_s = _key(live), self._context.clock()
        silent = "" if seen.known else self._silent(key)
        if not silent:
            model.held_s = None
        elif decision.reason != UNHEARD:
            return
        else:
            model.held_s = model.held_s or now_s
            if now_s - model.held_s < HELD_TOLD_S:
                return
        if silent != _held_by(live, model):
            self._context.workers.mark(Ref(MODEL.kind, *key.split("/")))
        model.held_by = silent

    def _silent(self, key: str) -> str:
        """Say which proxy that serves a model is not heard, or that none serves it; "" if all are.

        What is not heard may hold requests: they are unknown, not zero.
        """
        context, unix_now_s = self._context, self._context.wall().timestamp()
        selecting = 0
        for proxy in context.proxy_keys():
            decision = context.book.decision(proxy)
            if decision is None and not context.loads.is_empty(proxy):
                return f"NIMProxy {proxy} has no routing table yet"  # it may serve an older one
            if decision is None or not decision.selects(key):
                continue
            selecting += 1
            if not context.loads.is_heard(proxy, unix_now_s):
                return f"NIMProxy {proxy} is not heard: it has no pod, or one that does not answer"
        return "" if selecting else "no NIMProxy selects it"

    def _deployment(self, live: Manifest) -> DeploymentFacts:
        metadata = live["metadata"]
        name = names.slug(metadata["name"])
        return deployment_facts(self._context.store.get(DEPLOYMENT, metadata["namespace"], name))

    async def _scale(self, live: Manifest, decision: Decision, model: _Model) -> bool:
        """Write the count; False if the model is not as it was seen, so that its news decide."""
        metadata, context = live["metadata"], self._context
        version = metadata["resourceVersion"]
        for left in reversed(range(CONFLICT_RETRIES)):
            if not self._may_write():
                raise LeadershipLostError("not leader: replicas are left alone")
            _log.info("scaling: %s reason=%r", _ref(_key(live)), decision.reason)
            try:
                answer = await context.client.request(
                    "PATCH",
                    f"{MODEL.path(metadata['namespace'], metadata['name'])}/scale",
                    query={"fieldManager": FIELD_MANAGER},
                    body={
                        "metadata": {"resourceVersion": version},
                        "spec": {"replicas": decision.replicas},
                    },
                    content_type=_MERGE_PATCH,
                )
            except ConflictError:
                # A status was written meanwhile, or somebody else scaled.
                fresh = await context.client.get(MODEL, metadata["namespace"], metadata["name"])
                asked = decision.replicas == 0 and context.loads.requests(_key(live)) > 0
                if asked or not _is_as_seen(fresh, live):
                    return False
                if not left:
                    raise
                version = fresh["metadata"]["resourceVersion"]
            else:
                model.version = int(answer["metadata"]["resourceVersion"])
                self._wrote(live, decision, model)
                return True
        return False

    def _wrote(self, live: Manifest, decision: Decision, model: _Model) -> None:
        self._context.metrics.writes.labels(MODEL.kind, "scale").inc()
        model.scaled_at, model.scaled_why = timestamp(self._context.wall()), decision.reason
        if decision.replicas == 0:
            model.woken_s = None
        elif _declared(live) == 0:
            model.woken_s, model.woken_at = self._context.clock(), model.scaled_at
            self._context.metrics.wakes.labels(*_key(live).split("/")).inc()

    async def _rank(self, live: Manifest, pods: Iterable[PodFacts]) -> None:
        """Tell Kubernetes which pods have the fewest requests. Best effort: some pod goes."""
        known = {pod.name: pod for pod in pods if pod.ready and pod.address and not pod.deleting}
        addresses = {name: pod.address for name, pod in known.items()}
        port = live["spec"].get("port", 8000)
        costs = victims.costs(await victims.count_requests(addresses, port))
        namespace = live["metadata"]["namespace"]
        await asyncio.gather(
            *(self._set_cost(namespace, known[name], cost) for name, cost in costs.items())
        )

    async def _set_cost(self, namespace: str, pod: PodFacts, cost: int) -> None:
        if not self._may_write():
            raise LeadershipLostError("not leader: pods are left alone")
        annotations = {victims.COST_ANNOTATION: str(cost)}
        try:
            await self._context.client.request(
                "PATCH",
                POD.path(namespace, pod.name),
                query={"fieldManager": FIELD_MANAGER},
                body={"metadata": {"uid": pod.uid, "annotations": annotations}},
                content_type=_MERGE_PATCH,
            )
            self._context.metrics.writes.labels(POD.kind, "patch").inc()
        except ApiError as error:
            _log.info("ranking failed: pod=%s/%s error=%s", namespace, pod.name, error)

    def _idle_since_s(self, live: Manifest, rules: Rules, model: _Model) -> int:
        """Return the begin of its rest to note; a sleeping model's is left as it is."""
        stored_s = sleep.stored_idle_s(live)
        if rules.min_replicas > 0 or _declared(live) == 0:
            return stored_s
        if stored_s and model.memory.active_s == model.assumed_s:
            return stored_s  # nothing was seen since that says otherwise
        now_s = self._context.wall().timestamp()
        used_s = now_s - (self._context.clock() - model.memory.active_s)
        return sleep.idle_since_s(stored_s, used_s, now_s, idle_s=rules.idle_s)

    def _look_again(self, live: Manifest, rules: Rules, model: _Model, decision: Decision) -> None:
        """Plan the next look, and have the status written where a rest began or ended."""
        ref, context = _ref(_key(live)), self._context
        if self._idle_since_s(live, rules, model) != sleep.stored_idle_s(live):
            owner = Ref(MODEL.kind, ref.namespace, ref.name)
            context.workers.mark(owner, delay_s=STATUS_DELAY_S)
        times = [] if decision.recheck_s is None else [decision.recheck_s]
        if model.fell:
            times.append(STEADY_DELAY_S)
        noted_s = model.memory.active_s + sleep.noted_after_s(rules.idle_s) - context.clock()
        if rules.min_replicas == 0 and decision.replicas and noted_s > 0:
            times.append(noted_s)
        if times:
            context.workers.mark(ref, delay_s=min(times))


def rules_of(live: Manifest) -> Rules | None:
    """Return the rules of a NIMModel; None if it has no `autoscaling`, or is being deleted."""
    declared = live.get("spec", {}).get("autoscaling")
    if not declared or "deletionTimestamp" in live["metadata"]:
        return None
    try:
        found = Autoscaling.model_validate(declared)
    except ValidationError:
        return None  # told by the reconcile
    return Rules(
        min_replicas=found.min_replicas,
        max_replicas=found.max_replicas,
        target=found.target_concurrency,
        down_delay_s=found.scale_down_delay_seconds,
        idle_s=found.idle_seconds,
    )


def _declared(live: Manifest) -> int:
    replicas: int = live.get("spec", {}).get("replicas", 1)
    return replicas


def _is_as_seen(fresh: Manifest, live: Manifest) -> bool:
    """Tell whether all that the decision was made from still holds."""
    return (
        fresh["metadata"]["uid"] == live["metadata"]["uid"]
        and _declared(fresh) == _declared(live)
        and fresh["spec"].get("autoscaling") == live["spec"].get("autoscaling")
        and "deletionTimestamp" not in fresh["metadata"]
    )


def _held_by(live: Manifest, model: _Model | None) -> str:
    if model is None or model.held_by is None:
        return str(sleep.autoscaling_status(live).get("heldBy", ""))
    return model.held_by


def _key(live: Manifest) -> str:
    return f"{live['metadata']['namespace']}/{live['metadata']['name']}"


def _ref(key: str) -> Ref:
    namespace, _, name = key.partition("/")
    return Ref(SCALE, namespace, name)
