"""How many replicas a model with `autoscaling` is to have: the decision, and what it remembers.

Pure: time, load and memory come in as arguments, a decision and the next memory go out. Up at
once, down only to the highest demand of the last `down_delay_s`, both in bounded steps. Never down
while a replica starts or a proxy is unheard, to zero only when nothing was asked for `idle_s`.
Nobody here writes: the autoscaler (scaling.py) does.
"""

from dataclasses import dataclass, replace

UP_PERIOD_S = 15.0
UP_REPLICAS_MIN = 4
"""In one `UP_PERIOD_S` replicas at most double, or grow by this if that is more."""

DOWN_PERIOD_S = 60.0
"""In one such period at most half of the replicas go, one in any case. The last one goes by
`idle_s` alone: a model that sleeps, wakes and is idle again may sleep again."""

UNKNOWN_RECHECK_S = 15.0
"""How soon a model is looked at again that a proxy said nothing about."""

UNHEARD = "a proxy is not heard: nothing is taken away"
"""Reason of a decision by which requests that nobody told of keep pods."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the user declared (`spec.autoscaling`); `target` is requests per replica."""

    min_replicas: int
    max_replicas: int
    target: int
    down_delay_s: float
    idle_s: float

    def clamp(self, replicas: int) -> int:
        """Return the count nearest to `replicas` that is allowed."""
        return max(self.min_replicas, min(replicas, self.max_replicas))


@dataclass(frozen=True, slots=True)
class Seen:
    """What is true now.

    `replicas` is the declared count. `requests` is the highest sum of running and waiting requests
    since the last look, over all proxies that are heard; `arrived` tells whether any request came
    since then, refused ones included. `known` is False while a proxy that serves the model is not
    heard: then `requests` is only a lower bound. `starting`: a replica is on its way to ready.
    """

    replicas: int
    requests: int
    arrived: bool
    known: bool
    starting: bool


@dataclass(frozen=True, slots=True)
class Memory:
    """What one decision leaves to the next; times are seconds of a monotonic clock.

    `active_s` is when the model was last in use or starting. `wanted` is the demand in force, in
    replicas, `before` what was in force earlier as (until when, replicas), falling and within the
    delay. `steps` are the changes of the last period as (when, difference).
    """

    replicas: int
    active_s: float
    wanted: int = 1
    before: tuple[tuple[float, int], ...] = ()
    steps: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """The count to have, why in words for people, and when to look again if nothing happens."""

    replicas: int
    reason: str
    memory: Memory
    recheck_s: float | None


def first_memory(replicas: int, active_s: float) -> Memory:
    """Return the memory of who knows nothing: the count found is taken as needed until now."""
    return Memory(replicas=replicas, active_s=active_s, wanted=max(1, replicas))


def decide(rules: Rules, seen: Seen, memory: Memory, now_s: float) -> Decision:
    """Decide the count. With equal memory more requests never give fewer replicas."""
    wanted = -(-seen.requests // rules.target)
    if seen.arrived:
        wanted = max(wanted, 1)
    memory = _note(rules, seen, memory, wanted, now_s)
    bounded = rules.clamp(seen.replicas)
    if bounded != seen.replicas:
        side = "above maxReplicas" if bounded < seen.replicas else "below minReplicas"
        text = f"{_count(seen.replicas)} declared, {side}: {bounded}"
        return Decision(bounded, text, _counted(memory, seen, bounded, None), 0.0)
    goal, reason = _goal(rules, seen, memory, wanted, now_s)
    changed = _counted(memory, seen, goal, now_s)
    recheck_s = _recheck_s(rules, changed, now_s)
    if not seen.known and recheck_s is None and goal > rules.min_replicas:
        recheck_s = UNKNOWN_RECHECK_S
    return Decision(goal, reason, changed, recheck_s)


def _note(rules: Rules, seen: Seen, memory: Memory, wanted: int, now_s: float) -> Memory:
    """Return the memory with what is seen now taken in."""
    in_use = seen.requests > 0 or seen.arrived or seen.starting
    before, steps = memory.before, memory.steps
    forced = memory.wanted
    if seen.replicas != memory.replicas:
        # Somebody else changed the count: for the delay it stands as if it were needed.
        in_use, steps = True, ()
        forced = max(forced, seen.replicas)
    before = (*(each for each in before if each[1] > forced), (now_s, forced))
    return replace(
        memory,
        replicas=seen.replicas,
        active_s=now_s if in_use else memory.active_s,
        wanted=max(1, wanted),
        before=tuple(each for each in before if each[0] > now_s - rules.down_delay_s),
        steps=tuple(each for each in steps if each[0] > now_s - max(UP_PERIOD_S, DOWN_PERIOD_S)),
    )


def _goal(rules: Rules, seen: Seen, memory: Memory, wanted: int, now_s: float) -> tuple[int, str]:
    replicas = seen.replicas
    if wanted > replicas:
        if replicas == 0:
            return 1, "woken by a request"
        goal = min(rules.clamp(wanted), _up_limit(replicas, memory, now_s))
        if goal > replicas:
            text = f"{seen.requests} requests, {rules.target} a replica: {replicas} to {goal}"
            return goal, text
        return replicas, "at the limit"
    floor = max(memory.wanted, *(each[1] for each in memory.before), 1)
    is_idle = wanted == 0 and now_s - memory.active_s >= rules.idle_s
    if rules.min_replicas == 0 and floor == 1 and is_idle:
        floor = 0
    is_last = floor == 0 and replicas == 1
    goal = 0 if is_last else max(rules.clamp(floor), _down_limit(replicas, memory, now_s))
    if goal >= replicas:
        return replicas, "as needed"
    if not seen.known:
        return replicas, UNHEARD
    if seen.starting:
        return replicas, "a replica is starting: nothing is taken away"
    if goal == 0:
        return 0, f"no request for {rules.idle_s:.0f} s: asleep"
    return goal, f"less was asked for {rules.down_delay_s:.0f} s: {replicas} to {goal}"


def _up_limit(replicas: int, memory: Memory, now_s: float) -> int:
    added = sum(by for at_s, by in memory.steps if by > 0 and at_s > now_s - UP_PERIOD_S)
    start = replicas - added
    return max(2 * start, start + UP_REPLICAS_MIN)


def _down_limit(replicas: int, memory: Memory, now_s: float) -> int:
    removed = sum(-by for at_s, by in memory.steps if by < 0 and at_s > now_s - DOWN_PERIOD_S)
    start = replicas + removed
    return start - max(1, start // 2)


def _counted(memory: Memory, seen: Seen, goal: int, now_s: float | None) -> Memory:
    """Return the memory of who carried it out; a clamp (no time) counts against no limit."""
    if goal == seen.replicas:
        return memory
    steps = memory.steps if now_s is None else (*memory.steps, (now_s, goal - seen.replicas))
    return replace(memory, replicas=goal, steps=steps)


def _recheck_s(rules: Rules, memory: Memory, now_s: float) -> float | None:
    """Return in how many seconds time alone may change the decision; None: never."""
    if memory.replicas == rules.min_replicas and memory.wanted <= max(1, memory.replicas):
        return None
    times = [at_s + rules.down_delay_s for at_s, _ in memory.before]
    times += [at_s + (UP_PERIOD_S if by > 0 else DOWN_PERIOD_S) for at_s, by in memory.steps]
    if rules.min_replicas == 0:
        times.append(memory.active_s + rules.idle_s)
    later = [at_s - now_s for at_s in times if at_s > now_s]
    return min(later, default=None)


def _count(replicas: int) -> str:
    return "1 replica" if replicas == 1 else f"{replicas} replicas"
