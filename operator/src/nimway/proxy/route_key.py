"""What keeps requests together: the key of a session, or of a prompt's beginning (pure).

Owns the reading of those parts of a head and a body. It is asked only for models whose strategy
needs a key; the body was parsed once before, so it is JSON, and no request fails for its key.
"""

import msgspec

from nimway.proxy.catalog import Endpoint, Model
from nimway.proxy.structs import Keyed, Message
from nimway.proxy.wire import RequestHead
from nimway.routes import LEAST_REQUESTS, PREFIX_HASH

PART_BYTES_MAX = 1024
"""So much of the system's text and of the first message or prompt counts: later turns add to the
end, so the turns of one conversation have one key."""

_SESSION_FIELD = b"x-session-id"
_EMPTY = frozenset((b"", b"null", b'""', b"[]"))
_SYSTEM_ROLES = frozenset(("system", "developer"))


_keyed = msgspec.json.Decoder(Keyed)
_items = msgspec.json.Decoder(list[msgspec.Raw])
_message = msgspec.json.Decoder(Message)


def choose_by_key(
    model: Model, free: list[Endpoint], name: str, head: RequestHead, body: bytes
) -> Endpoint | None:
    """Return the endpoint meant for the request's session or prefix, where that decides."""
    strategy = model.limits.strategy
    if strategy == LEAST_REQUESTS or len(free) < 2:  # noqa: PLR2004 # no choice
        return None
    key = read_key(strategy, name, head, body)
    return None if key is None else model.ring().choose(key, free)


def read_key(strategy: str, name: str, head: RequestHead, body: bytes) -> bytes | None:
    """Return the key of a request for the served name `name`, or None where it has none.

    A session's key comes first: `x-session-id`, then `prompt_cache_key`, then `user`. With
    PrefixHash the beginning of the prompt follows; an adapter has a cache of its own, hence `name`.
    """
    for line in head.fields:
        field, _, rest = line.partition(b":")
        if field.lower() == _SESSION_FIELD and (value := rest.strip()):
            return b"session:" + value
    try:
        keyed = _keyed.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    for session in (keyed.prompt_cache_key, keyed.user):
        if (value := bytes(session)) not in _EMPTY:
            return b"session:" + value.strip(b'"')
    if strategy != PREFIX_HASH:
        return None
    prefix = _read_prefix(keyed)
    return b"prefix:%b:%b" % (name.encode(), prefix) if prefix else None


def _read_prefix(keyed: Keyed) -> bytes:
    """Return the first bytes of the system's text, and of the first thing that is said to it."""
    parts = [bytes(part) for part in (keyed.system, keyed.instructions)]
    for said in (keyed.messages, keyed.prompt, keyed.input):
        if bytes(said) not in _EMPTY:
            parts += _split_messages(said)
            break
    return b"\n".join(part[:PART_BYTES_MAX] for part in parts if part not in _EMPTY)


def _split_messages(said: msgspec.Raw) -> list[bytes]:
    """Return the messages up to the first that is not the system's; a prompt as it is."""
    try:
        items = _items.decode(said)
        parts = []
        for item in items:
            parts.append(bytes(item))
            if _message.decode(item).role not in _SYSTEM_ROLES:
                break
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return [bytes(said)]
    return parts
