"""Reading `model` out of a JSON body, and replacing it: the body's other bytes stay as they are.

The parse that decides the route is the whole parse: a body that JSON does not allow, or in which a
second parser could find another `model`, is refused. All of it runs in C and in linear time.
"""

import re
from itertools import product
from typing import Annotated, Any

import msgspec

_KEY = b'"model"'
_ESCAPED_LETTER = b"\\u006"
"""Every letter of `model` written as an escape begins so (U+006C to U+006F and U+0064, U+0065)."""

_TO_VALUE = re.compile(rb'[ \t\r\n]*[{,][ \t\r\n]*"(?:[^"\\]|\\.)*+"[ \t\r\n]*:[ \t\r\n]*')
"""From the end of a value, or the start of the body, to the start of the next value."""


class ModelNameError(ValueError):
    """The body names no model; the text says why, for the client."""


_NEVER = Annotated[int, msgspec.Meta(ge=1, le=0)]
_VARIANTS = sorted(set(map("".join, product(*zip("model", "MODEL", strict=True)))) - {"model"})
"""`Model`, `MODEL` and so on: a server that ignores case (Go's encoding/json does) would read them.
Declared as fields that no value fits, they are refused by the one parse there is, in 0.15 us."""

_named: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
    msgspec.defstruct("Named", [("model", str), *((name, _NEVER, None) for name in _VARIANTS)])
)
_top = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_model(body: bytes) -> str:
    """Return the value of the top-level `model` of a JSON object.

    Raises:
        ModelNameError: no JSON object, or `model` is missing, no string, empty, given twice or in
            an escaped spelling, or a key differs from it by case only.
    """
    try:
        name: str = _named.decode(body).model
    except msgspec.ValidationError as error:
        raise ModelNameError(_explain(body)) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ModelNameError("the body is not valid JSON") from error
    if body.count(_KEY) != 1 or _ESCAPED_LETTER in body:
        _refuse_second_key(body)
    if not name:
        raise ModelNameError("'model' must not be empty")
    return name


def replace_model(body: bytes, name: str) -> bytes:
    """Return `body`, whose `model` was read before, with `name` in place of that value only.

    Walks over the top level: a key by its pattern, a value by the length the parser found for it.

    Raises:
        ModelNameError: a key of the top level is given twice.
    """
    at = 0
    for key, value in _top.decode(body).items():
        match = _TO_VALUE.match(body, at)
        raw = bytes(value)
        if match is None or not body.startswith(raw, match.end()):
            break
        start, at = match.end(), match.end() + len(raw)
        if key == "model":
            return body[:start] + msgspec.json.encode(name) + body[at:]
    raise ModelNameError("a key of the body's top level is given twice")


def _refuse_second_key(body: bytes) -> None:
    """Tell a second top-level `model` from one inside a value, without a parse in Python.

    What the values of the top level contain is no key of the top level: the key must be left over
    exactly once, and no escaped letter may be left over at all.
    """
    values = _top.decode(body).values()
    keys = body.count(_KEY) - sum(bytes(value).count(_KEY) for value in values)
    escapes = body.count(_ESCAPED_LETTER) - sum(
        bytes(value).count(_ESCAPED_LETTER) for value in values
    )
    if keys != 1 or escapes:
        raise ModelNameError("the key 'model' must be given once, and not escaped")


def _explain(body: bytes) -> str:
    try:
        top = _top.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return "the body must be a JSON object"
    if "model" not in top:
        return "'model' is missing"
    if not top.keys().isdisjoint(_VARIANTS):
        return "the key 'model' must be given once, in lower case"
    return "'model' must be a string"
