"""The proxy's own answers: OpenAI's error object, the model list, health; bytes ready to send.

Owns every status and text that a client can get from the proxy itself. No address, path of a file
or traceback ever stands in one. What a model server answers does not pass through here.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from nimway.proxy.wire import CRLF

_REASONS = {
    200: b"OK",
    400: b"Bad Request",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    417: b"Expectation Failed",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    499: b"Client Closed Request",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}

JSON = b"application/json"
TEXT = b"text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer; `fields` are further header lines, each with its CRLF."""

    status: int
    body: bytes
    content_type: bytes = JSON
    fields: bytes = b""


def build_error(
    status: int,
    message: str,
    *,
    code: str,
    param: str | None = None,
    fields: bytes = b"",
) -> Answer:
    """Return an error in OpenAI's shape; its `type` follows from the status, as there."""
    return Answer(status, encode_error(status, message, code=code, param=param), fields=fields)


def encode_error(status: int, message: str, *, code: str, param: str | None = None) -> bytes:
    """Return the error object as JSON."""
    error = {"message": message, "type": _error_type(status), "param": param, "code": code}
    return msgspec.json.encode({"error": error})


def _error_type(status: int) -> str:
    if status >= 500:  # noqa: PLR2004 # RFC 9110 section 15.6
        return "server_error"
    return "rate_limit_error" if status == 429 else "invalid_request_error"  # noqa: PLR2004 # as above


def build_head(answer: Answer, request_id: bytes, connection: bytes) -> bytes:
    """Return the head of `answer`; `connection` is a whole header line or empty."""
    return b"".join(
        (
            b"HTTP/1.1 %d " % answer.status,
            _REASONS.get(answer.status, b"Error"),
            b"\r\nContent-Type: ",
            answer.content_type,
            b"\r\nContent-Length: %d\r\n" % len(answer.body),
            answer.fields,
            b"X-Request-Id: ",
            request_id,
            CRLF,
            connection,
            CRLF,
        )
    )


def _retry_after(seconds: int) -> bytes:
    return b"Retry-After: %d\r\n" % seconds


_RETRY = b"x-should-retry: true\r\n"
_NO_RETRY = b"x-should-retry: false\r\n"

OK_LIVE = Answer(200, b'{"status":"healthy","object":"health.response","message":"live"}')
OK_READY = Answer(200, b'{"status":"healthy","object":"health.response","message":"ready"}')
NOT_READY = Answer(503, b'{"status":"unhealthy","object":"health.response","message":"not ready"}')
NOT_FOUND = build_error(404, "there is nothing at this path", code="not_found")


def method_not_allowed(allow: bytes) -> Answer:
    """405 for a path that exists."""
    return build_error(
        405,
        "this path does not take this method",
        code="method_not_allowed",
        fields=b"Allow: %b\r\n" % allow,
    )


def refused(status: int, reason: str) -> Answer:
    """400, 408, 413, 417 or 431: what is wrong with the message as such."""
    return build_error(status, reason, code=_REFUSED_CODES.get(status, "bad_request"))


_REFUSED_CODES = {
    408: "request_timeout",
    413: "body_too_large",
    417: "expectation_failed",
    431: "head_too_large",
}


def bad_model(reason: str) -> Answer:
    """400: the body names no model."""
    return build_error(400, reason, code="invalid_body", param="model")


def model_not_found(name: str) -> Answer:
    """404 as OpenAI gives it."""
    return build_error(
        404,
        f"The model `{name[:256]}` does not exist or you do not have access to it.",
        code="model_not_found",
        param="model",
    )


def model_not_ready(name: str, retry_after_s: int) -> Answer:
    """503: declared, and no endpoint is ready, or became so in time; nothing ran."""
    return build_error(
        503,
        f"The model `{name}` is not ready. Try again in {retry_after_s} s.",
        code="model_not_ready",
        fields=_retry_after(retry_after_s) + _RETRY,
    )


def api_not_allowed(name: str, api: str, allowed: list[str]) -> Answer:
    """404, as OpenAI answers where a model has no such API."""
    return build_error(
        404,
        f"The model `{name}` does not have the API `{api}`; it has: {', '.join(allowed)}.",
        code="api_not_allowed",
        param="model",
    )


def queue_full(name: str, retry_after_s: int) -> Answer:
    """503: the model has no place for the request, and as many wait for one as may."""
    return build_error(
        503,
        f"As many requests of the model `{name}` wait as may.",
        code="queue_full",
        fields=_retry_after(retry_after_s) + _RETRY,
    )


def queue_timeout(name: str, retry_after_s: int) -> Answer:
    """503: no place of the model became free in time; nothing ran."""
    return build_error(
        503,
        f"The model `{name}` is busy: no place became free in time.",
        code="queue_timeout",
        fields=_retry_after(retry_after_s) + _RETRY,
    )


def draining(name: str) -> Answer:
    """503: the request waited in a proxy that ends; nothing ran, and another proxy takes it."""
    return build_error(
        503,
        f"The proxy is ending, and the request still waited for the model `{name}`.",
        code="draining",
        fields=_retry_after(1) + _RETRY,
    )


def overloaded(retry_after_s: int) -> Answer:
    """503: the proxy itself has no room for this request."""
    return build_error(
        503,
        "The proxy is at its limit.",
        code="overloaded",
        fields=_retry_after(retry_after_s) + _RETRY,
    )


def unreachable(name: str, retry_after_s: int) -> Answer:
    """503: no endpoint took a connection, so nothing was executed."""
    return build_error(
        503,
        f"No server of the model `{name}` can be reached.",
        code="upstream_unreachable",
        fields=_retry_after(retry_after_s) + _RETRY,
    )


BAD_GATEWAY = build_error(
    502,
    "The model server closed the connection without an answer; the request may have been executed.",
    code="upstream_failed",
    fields=_NO_RETRY,
)
BAD_RESPONSE = build_error(
    502,
    "The model server sent a malformed answer; the request may have been executed.",
    code="upstream_malformed",
    fields=_NO_RETRY,
)
GATEWAY_TIMEOUT = build_error(
    504,
    "The model server did not answer in time; the request may have been executed.",
    code="upstream_timeout",
    fields=_NO_RETRY,
)


def build_event(error: bytes) -> bytes:
    """Return the event that ends a stream with an error; `error` is an object on one line."""
    return b"event: error\ndata: %b\n\n" % error


def relay_error(status: int, body: bytes) -> Answer:
    """Return the error for an answer of the model server whose head can no longer be passed on.

    What it says itself is kept if it is an error object, on one line: it ends an event stream.
    """
    try:
        said = msgspec.json.decode(body, type=dict[str, Any])
    except (ValueError, RecursionError):
        said = {}
    if "error" in said:
        return Answer(status, msgspec.json.encode(said))
    message = f"The model server answered with status {status} and no stream."
    return Answer(status, encode_error(max(status, 400), message, code="upstream_error"))


STREAM_BROKEN = build_event(
    encode_error(502, "The model server ended the stream early.", code="upstream_failed")
)
STREAM_TIMEOUT = build_event(
    encode_error(504, "The model server fell silent.", code="upstream_timeout")
)
