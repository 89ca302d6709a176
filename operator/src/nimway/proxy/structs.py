"""What the data path reads of JSON: forms for msgspec, without any logic.

msgspec needs annotations as Python keeps them, which a compiled module does not: so they are here,
and the modules that use them can be compiled (operator/build/hatch_build.py).
"""

import msgspec

_ABSENT = msgspec.Raw()


class Named(msgspec.Struct):
    """A body that names a model."""

    model: str = ""


class Streaming(msgspec.Struct):
    """A body that may ask for a stream."""

    stream: bool | None = None


class Keyed(msgspec.Struct):
    """A body's parts that can keep requests together."""

    prompt_cache_key: msgspec.Raw = _ABSENT
    user: msgspec.Raw = _ABSENT
    system: msgspec.Raw = _ABSENT
    instructions: msgspec.Raw = _ABSENT
    messages: msgspec.Raw = _ABSENT
    prompt: msgspec.Raw = _ABSENT
    input: msgspec.Raw = _ABSENT


class Message(msgspec.Struct):
    """One message of a chat."""

    role: str = ""
