"""Reading `model` out of a JSON body, and replacing it: the body's other bytes stay as they are.

The parse that decides the route is the whole parse: a body that JSON does not allow, or in which a
second parser could find another `model`, is refused. All of it runs in C and in linear time.
"""

import re
from typing import Final

import msgspec

from nimway.proxy.structs import Named

_TO_VALUE: Final = re.compile(rb'[ \t\r\n]*[{,][ \t\r\n]*"(?:[^"\\]|\\.)*+"[ \t\r\n]*:[ \t\r\n]*')
"""From the end of a value, or the start of the body, to the start of the next value."""


class ModelNameError(ValueError):
    """The body names no model; the text says why, for the client."""


class _Key:
    """A key of the top level, its escapes decoded; each is itself, so that none hides another."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def _make_key(kind: type, text: str) -> _Key:
    del kind
    return _Key(text)


_SMALL_BYTES: Final = 2048
"""Up to here, looking for a second `model` costs less than looking at each key."""

_named: Final = msgspec.json.Decoder(Named)
_keys: Final = msgspec.json.Decoder(dict[_Key, msgspec.Raw], dec_hook=_make_key)
_top: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text: Final = msgspec.json.Decoder(str)


def read_model(body: bytes) -> str:
    """Return the value of the top-level `model` of a JSON object.

    Raises:
        ModelNameError: no JSON object, or `model` is missing, no string, empty or given twice, an
            escaped spelling counted, or a key differs from it by case only: a server that ignores
            case (Go's encoding/json does) would read that one.
    """
    if len(body) <= _SMALL_BYTES and (name := read_plain(body)):
        return name
    return read_strictly(body)


def read_plain(body: bytes) -> str:
    """Return the same where no second `model` can be, whatever its case or escapes; else "".

    In ASCII and without coded characters a key is its bytes, but for escapes that are no letters;
    so where `"model"` stands once in any case, at most one key is that, and the parse finds it.
    """
    # One byte is found far sooner than two; and `in` would try it as a number first, and fail.
    if not body.isascii() or (body.partition(b"\\")[1] and body.find(b"\\u") >= 0):
        return ""
    if body.lower().count(b'"model"') != 1:
        return ""
    try:
        return _named.decode(body).model
    except (msgspec.DecodeError, RecursionError):
        return ""


def read_strictly(body: bytes) -> str:
    """Return the same of any body, or say what is wrong with it: looks at each key."""
    try:
        found = [item for item in _keys.decode(body).items() if item[0].name.lower() == "model"]
        if len(found) != 1 or found[0][0].name != "model":
            raise ModelNameError(
                "the key 'model' must be given once, in lower case"
                if found
                else "'model' is missing"
            )
        name = _text.decode(found[0][1])
    except msgspec.ValidationError as error:
        raise ModelNameError(_explain(body)) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ModelNameError("the body is not valid JSON") from error
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


def _explain(body: bytes) -> str:
    is_object = body.lstrip(b" \t\r\n").startswith(b"{")
    return "'model' must be a string" if is_object else "the body must be a JSON object"
