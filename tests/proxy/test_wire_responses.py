"""Heads of answers: a broken or malicious model server is refused, an ordinary one passes."""

import pytest

from nimway.proxy.wire import CLOSE_DELIMITED, WireError, build_response, read_response

REJECTED = {
    "Content-Length and Transfer-Encoding": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    ),
    "two Content-Lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
    "a list of lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n",
    "an unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "two codings": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"
    ),
    "a coding in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a folded field": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
    "a bare LF": b"HTTP/1.1 200 OK\r\nX: a\nY: b\r\n\r\n",
    "a bare CR": b"HTTP/1.1 200 OK\r\nX: a\rY: b\r\n\r\n",
    "NUL": b"HTTP/1.1 200 OK\r\nX: a\x00\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\n\r\n",
    "HTTP/0.9": b"<html></html>\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "status 600": b"HTTP/1.1 600 OK\r\n\r\n",
    "a space before the colon": b"HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
    "two spaces": b"HTTP/1.1  200 OK\r\n\r\n",
    "a control character in the reason": b"HTTP/1.1 200 O\x01K\r\n\r\n",
    "too many fields": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 101 + b"\r\n",
    "too long a field": b"HTTP/1.1 200 OK\r\nX: %b\r\n\r\n" % (b"a" * 16384),
}


@pytest.mark.parametrize("name", REJECTED)
def test_a_malformed_answer_is_refused(name: str) -> None:
    with pytest.raises(WireError):
        read_response(REJECTED[name])


def test_the_length_of_a_body_follows_rfc_9112() -> None:
    def length(data: bytes, method: bytes = b"POST") -> int:
        return read_response(data).body_length(method)

    assert length(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n") == 7
    assert length(b"HTTP/1.1 200 OK\r\n\r\n") == CLOSE_DELIMITED
    assert length(b"HTTP/1.1 204 No Content\r\n\r\n") == 0
    assert length(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n") == 0
    assert length(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", b"HEAD") == 0


def test_unknown_fields_pass_and_hop_by_hop_fields_do_not() -> None:
    head = read_response(
        b"HTTP/1.1 429 Slow down\r\nX-Mine: 1\r\nKeep-Alive: x\r\nConnection: X-Hop\r\nX-Hop: 1\r\n"
        b"X-Request-Id: theirs\r\nRetry-After: 3\r\nContent-Type: application/json\r\n"
        b"Set-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 2\r\n\r\n"
    )
    assert build_response(head, b"ours", b"Content-Length: 2\r\n") == (
        b"HTTP/1.1 429 Slow down\r\nX-Mine: 1\r\nRetry-After: 3\r\n"
        b"Content-Type: application/json\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n"
        b"Content-Length: 2\r\nX-Request-Id: ours\r\n\r\n"
    )


def test_an_event_stream_is_known_by_its_content_type() -> None:
    def is_stream(value: bytes) -> bool:
        return read_response(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n\r\n" % value).event_stream

    assert is_stream(b"text/event-stream")
    assert is_stream(b"Text/Event-Stream; charset=utf-8")
    assert not is_stream(b"application/json")
