"""Which fields of children somebody else changes again and again, and when to put them back.

Whoever writes a field that Nimway declares gets it put back at once. A second controller that does
the same, such as an autoscaler on a model's Deployment, would make that a fight in which pods come
and go with each blow. So repairs of the same field get rarer, and its user is told by whom it is
changed. Pure: time comes in, as seconds of a monotonic clock.
"""

from collections import OrderedDict
from dataclasses import dataclass

from nimway.control.kinds import CONFIG_MAP, ROLE_BINDING, SERVICE_ACCOUNT, Ref

FREE_REPAIRS = 10
"""So often a field is put back at once; a person gives up earlier, a controller never does."""

WAIT_FIRST_S = 1.0
WAIT_MAX_S = 300.0
"""Waits before further repairs double from the first to this."""

_DOUBLINGS_MAX = 16

CALM_S = 2 * WAIT_MAX_S
"""A field that was not put back for so long is not contested any more."""

CONTESTS_MAX = 10_000
"""So many fields are remembered; of more the one that was put back longest ago is forgotten."""

WHOLE = ""
"""In the place of a field: the child was deleted."""

_VITAL = frozenset({CONFIG_MAP.kind, ROLE_BINDING.kind, SERVICE_ACCOUNT.kind})
"""Put back without a wait: all traffic goes by the tables and the right to read them, and a proxy's
reconciles are spaced already."""

_HINTS = {
    "spec.replicas": (
        "an autoscaler belongs on the NIMModel or NIMProxy, which has a scale subresource"
    )
}
_HINT = "stop the other writer, or declare in the NIMModel or NIMProxy what it wants"


@dataclass(slots=True)
class Contest:
    """One field of one child, put back for the owner with this uid.

    `declared` is the hash of the manifest that was last put back: another one waits for nothing.
    `due_s` is when it is put back again, as long as it waits. `asked` is for which repair the
    `writer` was looked for.
    """

    owner: str
    ref: Ref
    field: str
    repairs: int = 0
    last_s: float = 0.0
    declared: str = ""
    due_s: float = 0.0
    writer: str = ""
    asked: int = -1

    @property
    def is_vital(self) -> bool:
        """Whether it is put back without a wait."""
        return self.ref.kind in _VITAL

    def wait_s(self, declared: str, now_s: float) -> float:
        """Return how long the field has to wait before it is put back."""
        if self.is_vital or self.repairs < FREE_REPAIRS or declared != self.declared:
            return 0.0
        doubled = WAIT_FIRST_S * 2.0 ** min(self.repairs - FREE_REPAIRS, _DOUBLINGS_MAX)
        return max(0.0, self.last_s + min(doubled, WAIT_MAX_S) - now_s)

    @property
    def text(self) -> str:
        """What the owner's user is told; the same words as long as it lasts."""
        done = f"{self.field} is changed" if self.field != WHOLE else "it is deleted"
        by = f", lately by {self.writer}" if self.writer else ""
        pace = f"ever more rarely, at last every {WAIT_MAX_S / 60:.0f} minutes"
        return (
            f"{self.ref}: {done} again and again{by}; Nimway undoes that "
            f"{'each time' if self.is_vital else pace}: {_HINTS.get(self.field, _HINT)}"
        )


@dataclass(frozen=True, slots=True)
class Fight:
    """What the user of an owner is told, and after how long to look at the owner again."""

    text: str
    again_s: float


class Contests:
    """The fields that were put back lately, and those of them whose owner's user is told."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[Ref, str], Contest] = OrderedDict()
        self._open: dict[str, dict[tuple[Ref, str], Contest]] = {}

    def at(self, owner: str, ref: Ref, field: str, now_s: float) -> Contest:
        """Return what is known of one field of a child of the owner with this uid."""
        self._forget_calm(now_s)
        found = self._found.get((ref, field))
        if found is None or found.owner != owner:
            return Contest(owner, ref, field)
        return found

    def wait(self, contest: Contest, due_s: float) -> None:
        """Note that a field is not put back before `due_s`."""
        contest.due_s = due_s
        self._tell(contest)

    def repaired(self, contest: Contest, declared: str, now_s: float) -> None:
        """Note that a field was put back."""
        self.forget(contest.ref, contest.field)
        contest.repairs += 1
        contest.last_s, contest.declared, contest.due_s = now_s, declared, 0.0
        self._found[contest.ref, contest.field] = contest
        if contest.repairs > FREE_REPAIRS:
            self._tell(contest)
        if len(self._found) > CONTESTS_MAX:
            self.forget(*next(iter(self._found)))

    def forget(self, ref: Ref, field: str) -> None:
        """Forget a field: what happens to it next is our own doing."""
        dropped = self._found.pop((ref, field), None)
        told = self._open.get(dropped.owner) if dropped is not None else None
        if dropped is not None and told is not None:
            told.pop((ref, field), None)
            if not told:
                del self._open[dropped.owner]

    def fight(self, owner: str, now_s: float) -> Fight | None:
        """Return what is told of the owner with this uid, None if there is nothing.

        It is over once nothing had to be put back for `CALM_S`.
        """
        self._forget_calm(now_s)
        told = self._open.get(owner)
        if not told:
            return None
        ends = (
            each.due_s if each.due_s > now_s else each.last_s + CALM_S for each in told.values()
        )
        return Fight(told[min(told)].text, min(ends) - now_s)

    def _tell(self, contest: Contest) -> None:
        self._open.setdefault(contest.owner, {})[contest.ref, contest.field] = contest

    def _forget_calm(self, now_s: float) -> None:
        while self._found:
            key, oldest = next(iter(self._found.items()))
            if oldest.last_s + CALM_S > now_s:
                return
            self.forget(*key)
