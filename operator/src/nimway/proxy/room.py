"""Where requests of one model wait for a place: first come, first served.

Owns the order of waiting, and counts; the bounds are `hold.py`'s. It has no timer and looks at no
clock: an event (a place became free, an endpoint came) calls `release`, the sweep expires who has
waited too long. Whoever waits knows whether there is a place for it: none while the model sleeps.
"""

from collections import OrderedDict
from itertools import takewhile
from typing import Protocol


class Waiter(Protocol):
    """A request that waits; `started` is when it began, by the loop's clock."""

    started: float

    def try_go(self) -> bool:
        """Leave the room and go on, or end; False: there is no place yet."""

    def dismiss(self) -> None:
        """End: the model is gone."""


class Room:
    """The requests of one model that wait in this worker, and the bytes of their bodies.

    `pacing` is its owner's mark: more may go, a little later.
    """

    __slots__ = ("_releasing", "_waiting", "bytes", "pacing")

    def __init__(self) -> None:
        self._waiting: OrderedDict[Waiter, int] = OrderedDict()
        self._releasing = False
        self.pacing = False
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, waiter: Waiter, size: int) -> None:
        """Wait at the end, with a body of `size` bytes."""
        self._waiting[waiter] = size
        self.bytes += size

    def rejoin(self, waiter: Waiter, size: int) -> None:
        """Wait at the front: its endpoint failed it, and its place in the order was taken once.

        Others whom the same endpoint failed, and who began earlier, stay before it.
        """
        earlier = list(takewhile(lambda other: other.started < waiter.started, self._waiting))
        self._waiting[waiter] = size
        self.bytes += size
        for each in (waiter, *reversed(earlier)):
            self._waiting.move_to_end(each, last=False)

    def leave(self, waiter: Waiter) -> None:
        """Wait no more."""
        self.bytes -= self._waiting.pop(waiter, 0)

    def is_first(self, waiter: Waiter) -> bool:
        """Return whether `waiter` is next."""
        return next(iter(self._waiting), None) is waiter

    def release(self, most: int) -> bool:
        """Let go, in order, those for whom there is a place now, but not more than `most`.

        Return whether so many went and more wait. Whoever goes may end at once and so release
        again: that call returns, this one goes on.
        """
        if self._releasing:
            return False
        self._releasing = True
        try:
            while self._waiting and most:
                if not next(iter(self._waiting)).try_go():
                    return False
                most -= 1
        finally:
            self._releasing = False
        return bool(self._waiting)

    def dismiss(self) -> None:
        """End all who wait."""
        while self._waiting:
            waiter = next(iter(self._waiting))
            self.leave(waiter)
            waiter.dismiss()
