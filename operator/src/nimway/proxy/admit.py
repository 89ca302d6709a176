"""Whether a request may go on: limits of the worker and of its model (pure)."""

from typing import Protocol

from nimway.proxy import answers
from nimway.proxy.answers import Answer
from nimway.proxy.paths import Operation
from nimway.proxy.settings import Settings
from nimway.proxy.wire import RequestHead


class Room(Protocol):
    """What the worker has under way."""

    @property
    def bodies_bytes(self) -> int:
        """Bytes of bodies of requests held in memory."""


def check_head(
    head: RequestHead, operation: Operation | None, settings: Settings, room: Room
) -> Answer | None:
    """Return the refusal that the head alone calls for, before a byte of the body is read."""
    if operation is None:
        return answers.NOT_FOUND
    if operation.api:
        if head.method != b"POST":
            return answers.method_not_allowed(operation.allow)
    elif head.method not in (b"GET", b"HEAD"):
        return answers.method_not_allowed(operation.allow)
    length = head.length or 0
    if length > settings.body_bytes_max:
        return answers.refused(413, "the body is too large")
    if room.bodies_bytes + length > settings.bodies_bytes_max:
        return answers.overloaded(1)
    return None
