"""Pods that answer before Kubernetes says so: asked themselves while requests wait for them.

A kubelet asks a pod every few seconds, and its word takes tens of milliseconds more, through a Pod
and an EndpointSlice, to get here. Where requests are held for a model without an endpoint, its
starting pods are asked the same question, and one that answers serves at once. Owns which pods are
asked, when, and how long an answer counts. Kubernetes' word goes first: a pod that it calls ready
is asked no more, one that it calls terminating, or lists no longer, is out at once.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from nimway.proxy.addresses import format_authority
from nimway.proxy.endpoints import Address
from nimway.proxy.messages import ServiceEndpoints
from nimway.routes import Route
from nimway.tasks import spawn

PERIOD_MIN_S = 0.005
PERIOD_MAX_S = 0.25
PERIOD_SHARE = 0.02
"""A pod is asked again after this part of the time it took so far: a wait grows by 2 % at most."""

CONFIRM_PERIOD_S = 1.0
"""One that answers is asked on, as a kubelet would, until Kubernetes calls it ready."""

EARLY_MAX_S = 60.0
"""Where Kubernetes disagrees for so long, it knows better, until it has news of the Service."""

MODELS_MAX = 64
PODS_MAX = 8
"""So many models, and pods of each, are asked at a time; of the others Kubernetes alone tells."""

_Service = tuple[str, str]

_log = logging.getLogger(__name__)


class StartingPods:
    """Stands between what Kubernetes lists and what the workers use.

    `ask` tells whether a pod answers on a path; `is_held` whether requests wait for a model, by its
    key; `publish` takes the endpoints that changed.
    """

    def __init__(
        self,
        ask: Callable[[Address, str], Awaitable[bool]],
        is_held: Callable[[str], bool],
        publish: Callable[[list[ServiceEndpoints]], None],
    ) -> None:
        self._ask = ask
        self._is_held = is_held
        self._publish = publish
        self._routes: dict[_Service, tuple[str, str]] = {}  # the model's key, and the path
        self._listed: dict[_Service, ServiceEndpoints] = {}  # those with starting pods
        self._early: dict[_Service, frozenset[Address]] = {}
        self._overruled: set[_Service] = set()
        self._tasks: dict[_Service, asyncio.Task[None]] = {}
        self.early_total = 0

    def replace_routes(self, routes: Iterable[Route]) -> None:
        """Take the models that are served."""
        self._routes = {
            (route.namespace, route.service): (route.key, route.ready_path)
            for route in routes
            if route.ready_path
        }
        self.look()

    def take(self, services: list[ServiceEndpoints]) -> None:
        """Take what Kubernetes lists of some Services, and hand on what may serve."""
        for each in services:
            service = each.namespace, each.service
            self._overruled.discard(service)
            if each.starting:
                self._listed[service] = each
            else:
                self._listed.pop(service, None)
                # It may sleep until its next question: the next wait must not wait for that.
                if (task := self._tasks.pop(service, None)) is not None:
                    task.cancel()
            early = self._early.pop(service, frozenset()).intersection(each.starting)
            if early:
                self._early[service] = early
        self._publish([self._join(each) for each in services])
        self._begin((each.namespace, each.service) for each in services)

    def look(self) -> None:
        """Begin to ask where requests wait by now."""
        self._begin(self._listed)

    def _begin(self, services: Iterable[_Service]) -> None:
        for service in services:
            if len(self._tasks) >= MODELS_MAX:
                return
            if service not in self._tasks and self._is_wanted(service):
                task = spawn(self._follow(service), name=f"starting pods of {'/'.join(service)}")
                self._tasks[service] = task
                task.add_done_callback(partial(self._ended, service))

    def stop(self) -> None:
        """Ask nobody any more."""
        self._listed.clear()
        for task in self._tasks.values():
            task.cancel()

    def _ended(self, service: _Service, task: asyncio.Task[None]) -> None:
        if self._tasks.get(service) is task:
            del self._tasks[service]
        if task.cancelled() or task.exception() is None:
            self.look()  # there is room for another model

    def _is_wanted(self, service: _Service) -> bool:
        """Return whether pods are to be asked: their model has no other and requests wait."""
        listed = self._listed.get(service)
        if listed is None or service in self._overruled or service not in self._routes:
            return False
        if service in self._early:
            return True  # whether it still answers
        return not listed.ready and self._is_held(self._routes[service][0])

    async def _follow(self, service: _Service) -> None:
        loop = asyncio.get_running_loop()
        began_s, early_s = loop.time(), 0.0
        while self._is_wanted(service):
            key, path = self._routes[service]
            asked = self._listed[service].starting[:PODS_MAX]
            answers = await asyncio.gather(*(self._ask(address, path) for address in asked))
            answered = frozenset(a for a, ok in zip(asked, answers, strict=True) if ok)
            now_s = loop.time()
            early_s = (early_s or now_s) if answered else 0.0
            if answered and now_s - early_s > EARLY_MAX_S:
                self._overruled.add(service)
                answered = frozenset()
            self._set_early(service, key, answered)
            part_s = PERIOD_SHARE * (now_s - began_s)
            period_s = min(max(part_s, PERIOD_MIN_S), PERIOD_MAX_S)
            await asyncio.sleep(CONFIRM_PERIOD_S if answered else period_s)

    def _set_early(self, service: _Service, key: str, answered: frozenset[Address]) -> None:
        """Have the pods that answered serve, and those no more that do not."""
        listed = self._listed.get(service)
        if listed is None:
            return  # Kubernetes was faster
        answered = answered.intersection(listed.starting)
        before = self._early.pop(service, frozenset())
        if answered:
            self._early[service] = answered
        if answered != before:
            self.early_total += len(answered - before)
            for address in answered - before:
                fields = {"model": key, "address": format_authority(*address)}
                _log.info("a pod is ready before Kubernetes says so", extra={"fields": fields})
            self._publish([self._join(listed)])

    def _join(self, listed: ServiceEndpoints) -> ServiceEndpoints:
        early = self._early.get((listed.namespace, listed.service), ())
        return ServiceEndpoints(listed.namespace, listed.service, sorted({*listed.ready, *early}))
