"""Where requests of one model wait for a place: first come, first served, in bounds.

Owns the order and the bounds of waiting. It has no timer and looks at no clock: an event (a place
became free, an endpoint came) calls `release`, the sweep expires who has waited too long. Whoever
waits knows best whether there is a place for it; holding requests of a model that sleeps needs
nothing else than another answer to that question.
"""

from collections import OrderedDict
from typing import Protocol


class Waiter(Protocol):
    """A request that waits."""

    def try_go(self) -> bool:
        """Leave the room and go on, or end; False: there is no place yet."""

    def dismiss(self) -> None:
        """End: the model is gone."""


class Room:
    """The requests of one model that wait in this worker, and the bytes of their bodies."""

    __slots__ = ("_releasing", "_waiting", "bytes")

    def __init__(self) -> None:
        self._waiting: OrderedDict[Waiter, int] = OrderedDict()
        self._releasing = False
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, waiter: Waiter, size: int, *, requests_max: int, bytes_max: int) -> bool:
        """Wait at the end with a body of `size` bytes; False: the room is full."""
        if len(self._waiting) >= requests_max or self.bytes + size > bytes_max:
            return False
        self._waiting[waiter] = size
        self.bytes += size
        return True

    def rejoin(self, waiter: Waiter, size: int) -> None:
        """Wait at the front: its endpoint failed it, and its place in the order was taken once."""
        self._waiting[waiter] = size
        self._waiting.move_to_end(waiter, last=False)
        self.bytes += size

    def leave(self, waiter: Waiter) -> None:
        """Wait no more."""
        self.bytes -= self._waiting.pop(waiter, 0)

    def is_first(self, waiter: Waiter) -> bool:
        """Return whether `waiter` is next."""
        return next(iter(self._waiting), None) is waiter

    def release(self) -> None:
        """Let go, in order, all for whom there is a place now.

        Whoever goes may end at once and so release again: that call returns, this one goes on.
        """
        if self._releasing:
            return
        self._releasing = True
        try:
            while self._waiting:
                if not next(iter(self._waiting)).try_go():
                    break
        finally:
            self._releasing = False

    def dismiss(self) -> None:
        """End all who wait."""
        while self._waiting:
            waiter = next(iter(self._waiting))
            self.leave(waiter)
            waiter.dismiss()
