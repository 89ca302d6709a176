"""How much is asked of each model: the proxies' own counts, added up.

Owns what every proxy pod last reported, the highest sum since somebody last took it, and whether
anything arrived meanwhile: counts, no samples, so that a request between two looks is not missed.
A pod counts until it is gone, draining ones included. What a pod that cannot be heard had last
reported still counts, and the model's load is then not known. Pure but for being mutable.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nimway.control.facts import PodFacts
from nimway.state import ModelLoad, ProxyState

_NOTHING = ModelLoad()


@dataclass(frozen=True, slots=True)
class Load:
    """What a model was asked for since the last look.

    `requests` is the highest sum of running and waiting requests, `current` the sum now. `arrived`
    counts new requests, refused ones included. `known` is False while a pod of a proxy that serves
    the model has not been heard.
    """

    requests: int = 0
    current: int = 0
    arrived: int = 0
    known: bool = False


@dataclass(slots=True)
class _Pod:
    is_old: bool
    gone_by_s: int = 0
    models: Mapping[str, ModelLoad] = field(default_factory=dict)
    state: ProxyState | None = None


@dataclass(slots=True)
class _Proxy:
    wanted: int
    pods: dict[str, _Pod] = field(default_factory=dict)


@dataclass(slots=True)
class _Sum:
    current: int = 0
    highest: int = 0
    arrived: int = 0


class LoadBook:
    """Loads by the model's `namespace/name`, over the pods of all proxies."""

    def __init__(self) -> None:
        self._proxies: dict[str, _Proxy] = {}
        self._sums: dict[str, _Sum] = {}

    def follow(self, proxy: str, pods: Iterable[PodFacts], *, wanted: int) -> dict[str, str]:
        """Record which pods a proxy has (`wanted`: is to have); return the addresses by uid.

        A pod counts from when it is ready until it is gone: before, nobody asks it for anything.
        """
        is_first = proxy not in self._proxies
        known = self._proxies.setdefault(proxy, _Proxy(wanted))
        known.wanted = wanted
        addresses: dict[str, str] = {}
        for pod in pods:
            going = pod.running and (pod.deleting or pod.uid in known.pods)
            if not pod.address or not (pod.ready or going):
                continue
            addresses[pod.uid] = pod.address
            # Who is here before us may have counted for days; what is new began to count now.
            known.pods.setdefault(pod.uid, _Pod(is_old=is_first)).gone_by_s = pod.gone_by_s
        for uid in known.pods.keys() - addresses.keys():
            self._replace(known.pods.pop(uid), {})
        return addresses

    def forget(self, proxy: str) -> None:
        """Drop a proxy that is gone."""
        self.follow(proxy, (), wanted=0)
        del self._proxies[proxy]

    def report(self, proxy: str, uid: str, state: ProxyState | None) -> set[str]:
        """Record a pod's report (None: it is not heard any more); return the models affected."""
        known = self._proxies.get(proxy)
        pod = known.pods.get(uid) if known else None
        if pod is None:
            return set()
        heard, pod.state = pod.state is not None, state
        if state is None:
            return set(pod.models)
        changed = self._replace(pod, state.models)
        return changed if heard else changed | set(pod.models)

    def state(self, proxy: str, uid: str) -> ProxyState | None:
        """Return what a pod reported last, None if it is not heard."""
        known = self._proxies.get(proxy)
        pod = known.pods.get(uid) if known else None
        return pod.state if pod else None

    def requests(self, model: str) -> int:
        """Return the highest sum of a model's requests since the last look."""
        total = self._sums.get(model)
        return total.highest if total else 0

    def take(self, model: str, *, known: bool) -> Load:
        """Return a model's load and begin the next count; `known` is `is_heard`'s answer."""
        total = self._sums.get(model)
        if total is None:
            return Load(known=known)
        load = Load(total.highest, total.current, total.arrived, known)
        total.highest, total.arrived = total.current, 0
        if not total.current:
            del self._sums[model]
        return load

    def is_heard(self, proxy: str, unix_s: float) -> bool:
        """Tell whether every pod of a proxy that may hold a request is heard.

        A proxy that wants pods and has none is not: nobody could ask for anything.
        """
        known = self._proxies.get(proxy)
        if known is None:
            return False
        pods = [pod for pod in known.pods.values() if not 0 < pod.gone_by_s < unix_s]
        return all(pod.state is not None for pod in pods) and (bool(pods) or known.wanted == 0)

    def is_empty(self, proxy: str) -> bool:
        """Tell whether a proxy was looked at and has no pod."""
        known = self._proxies.get(proxy)
        return known is not None and not known.pods

    def _replace(self, pod: _Pod, models: Mapping[str, ModelLoad]) -> set[str]:
        """Let `models` take the place of a pod's last report; return what changed."""
        is_old, pod.is_old = pod.is_old, False
        changed = set()
        for key in {*pod.models, *models}:
            old, new = pod.models.get(key, _NOTHING), models.get(key, _NOTHING)
            if old == new:
                continue
            changed.add(key)
            total = self._sums.setdefault(key, _Sum())
            total.current += new.in_flight + new.queued - old.in_flight - old.queued
            total.highest = max(total.highest, total.current)
            total.arrived += _arrived(old, new, is_old=is_old)
        pod.models = models
        return changed


def _arrived(old: ModelLoad, new: ModelLoad, *, is_old: bool) -> int:
    """Return how many requests came between two reports of a pod.

    What the first report of an old pod counts is old, but for what is there now. A count that fell
    began anew, with its process.
    """
    if is_old:
        return new.in_flight + new.queued
    grown = new.demand_total - old.demand_total
    return grown if grown >= 0 else new.demand_total
