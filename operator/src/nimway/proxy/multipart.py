"""Reading `model` out of a multipart/form-data body, and replacing it (RFC 7578, RFC 2046; pure).

Strict on purpose: what two parsers could read differently is refused, as in `model_name.py`. All
searches run in C and in linear time; parts and their heads are bounded.
"""

import re
from dataclasses import dataclass

from nimway.proxy.model_name import ModelNameError

PARTS_MAX = 64
PART_HEAD_BYTES_MAX = 2048
NAME_BYTES_MAX = 512

_TYPE_FORM = re.compile(
    rb"(?i:multipart/form-data)[ \t]*;[ \t]*(?i:boundary)="
    rb"(?:([0-9A-Za-z'()+_,./:=?-]{1,70})"
    rb"|\"([0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-])\")"
    rb"(?:[ \t]*;[ \t]*(?i:charset)=\"?(?i:utf-8)\"?)?"
)
_DISPOSITION_FORM = re.compile(
    rb"(?i:form-data)[ \t]*;[ \t]*(?i:name)=(?:\"([^\"\\\r\n]*)\"|([!#$&+.^_`|~0-9A-Za-z-]+))"
    rb"([ \t]*;[ \t]*(?i:filename)=(?:\"[^\"\r\n]*\"|[!#$&+.^_`|~0-9A-Za-z-]+))?"
)
_HEADER_FORM = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")


@dataclass(frozen=True, slots=True)
class FormModel:
    """The value of the `model` part, and where its bytes stand in the body."""

    name: str
    start: int
    end: int


def list_content_types(fields: list[bytes]) -> list[bytes]:
    """Return the values of Content-Type in a head's lines."""
    parts = [line.partition(b":") for line in fields]
    return [rest.strip() for name, _, rest in parts if name.lower() == b"content-type"]


def read_form_model(content_types: list[bytes], body: bytes) -> FormModel:
    """Return the one `model` part of a form; `content_types` are the values of that field.

    Raises:
        ModelNameError: no such form, or `model` is missing, empty, no text, a file or given twice.
    """
    match = _TYPE_FORM.fullmatch(content_types[0]) if len(content_types) == 1 else None
    if match is None:
        raise ModelNameError("the body must be multipart/form-data with one boundary")
    first = b"--" + (match[1] or match[2])
    if not body.startswith(first + b"\r\n"):
        raise ModelNameError("the form does not begin with its boundary")
    delimiter = b"\r\n" + first
    found: FormModel | None = None
    at = len(first)
    for _ in range(PARTS_MAX):
        part = at + 2
        at = body.find(delimiter, part - 2)
        if at < 0:
            raise ModelNameError("the form does not end with its boundary")
        model = _read_part(body, part, at)
        if model is not None and found is not None:
            raise ModelNameError("the part 'model' must be given once")
        found = found or model
        at += len(delimiter)
        end = body[at : at + 2]
        if end == b"--":
            return _check_end(body, at + 2, found)
        if end != b"\r\n":
            raise ModelNameError("a boundary stands within a line of the form")
    raise ModelNameError("the form has too many parts")


def _check_end(body: bytes, at: int, found: FormModel | None) -> FormModel:
    if body[at : at + 3] not in (b"", b"\r\n"):
        raise ModelNameError("bytes follow the form's end")
    if found is None:
        raise ModelNameError("the part 'model' is missing")
    return found


def replace_form_model(body: bytes, model: FormModel, name: str) -> bytes:
    """Return `body` with `name` in place of the model's value only."""
    return body[: model.start] + name.encode() + body[model.end :]


def _read_part(body: bytes, start: int, end: int) -> FormModel | None:
    """Return the model if the part between `start` and `end` names it."""
    head_end = body.find(b"\r\n\r\n", start, min(end, start + PART_HEAD_BYTES_MAX))
    if head_end < 0:
        raise ModelNameError("a part of the form has no head, or too large a one")
    dispositions = []
    plain = True
    for line in body[start:head_end].split(b"\r\n"):
        header = _HEADER_FORM.fullmatch(line)
        if header is None:
            raise ModelNameError("a part of the form has a malformed head")
        if header[1].lower() == b"content-disposition":
            dispositions.append(header[2])
        elif header[1].lower() == b"content-transfer-encoding":
            plain = False
    match = _DISPOSITION_FORM.fullmatch(dispositions[0]) if len(dispositions) == 1 else None
    if match is None or b'\\"' in dispositions[0]:
        raise ModelNameError("a part of the form has no clear name")
    key = match[1] if match[1] is not None else match[2]
    if key.strip().lower() != b"model":
        return None
    value = body[head_end + 4 : end]
    if key != b"model" or match[3] is not None or not plain or len(value) > NAME_BYTES_MAX:
        raise ModelNameError("the part 'model' must be a short text of that very name")
    try:
        name = value.decode()
    except UnicodeDecodeError as error:
        raise ModelNameError("the part 'model' is no text") from error
    if not name:
        raise ModelNameError("'model' must not be empty")
    return FormModel(name, head_end + 4, end)
