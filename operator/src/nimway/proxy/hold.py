"""Whether a request may wait for its model, until when, and what it is told if in vain (pure).

A model without an endpoint (asleep, starting, its pods briefly gone) holds its requests; so does
one whose places are all taken. Owns these decisions and the `Retry-After` that goes with them. The
order of those who wait is `room.py`'s business, what becomes of them `exchange.py`'s.
"""

import math
from typing import Protocol

import msgspec

from nimway.proxy import answers
from nimway.proxy.answers import Answer
from nimway.proxy.catalog import Model
from nimway.proxy.settings import Settings
from nimway.proxy.structs import Streaming

RETRY_AFTER_MAX_S = 60

NOT_READY, BUSY = "not_ready", "busy"
"""Why a request waits: no endpoint, or no place at one."""

RELEASED, EXPIRED, REFUSED = "released", "expired", "refused"
LEFT, DISMISSED, DRAINED = "left", "dismissed", "drained"
"""How a wait ended; `refused`: it did not begin."""

_streaming = msgspec.json.Decoder(Streaming)


class Holder(Protocol):
    """The worker: what it holds of all models together."""

    @property
    def settings(self) -> Settings:
        """Its limits."""

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies of requests that wait."""


def refuse(model: Model, name: str, host: Holder, now: float, size: int | None) -> Answer | None:
    """Return why a request with a body of `size` bytes may not begin to wait; None if it may.

    `size` is None for one that had its turn and comes back: there is always room for it.
    """
    limits, settings = model.limits, host.settings
    if not model.endpoints and not (limits.queue_wait_s and limits.queue_requests):
        return answers.model_not_ready(name, find_retry_after(model, settings, now))
    room = model.open_room()
    if size is not None and (
        len(room) >= limits.queue_requests
        or room.bytes + size > settings.queue_bytes_max
        or host.held_bytes + size > settings.held_bytes_max
    ):
        return answers.queue_full(name, find_retry_after(model, settings, now))
    return None


def expire(model: Model, name: str, settings: Settings, now: float) -> Answer:
    """Return the answer for a request that waited as long as it may."""
    retry_after_s = find_retry_after(model, settings, now)
    if model.endpoints:
        return answers.queue_timeout(name, retry_after_s)
    return answers.model_not_ready(name, retry_after_s)


def find_retry_after(model: Model, settings: Settings, now: float) -> int:
    """Return what is left of the model's usual cold start, in seconds, at most a minute.

    Nobody knows more than the proxy's own setting where the usual time is unknown or over, or
    where the model only is busy.
    """
    usual_s = model.route.cold_start_s
    if model.endpoints or not usual_s or not model.waking_since:
        return settings.retry_after_s
    left_s = math.ceil(model.waking_since + usual_s - now)
    return min(left_s, RETRY_AFTER_MAX_S) if left_s > 0 else settings.retry_after_s


def is_streaming(body: bytes) -> bool:
    """Return whether a JSON body asks for a stream."""
    try:
        return bool(_streaming.decode(body).stream)
    except (ValueError, RecursionError):
        return False
