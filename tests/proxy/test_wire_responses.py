"""Heads of answers: a broken or malicious model server is refused, an ordinary one passes."""

import pytest

from nimway.proxy.wire import CLOSE_DELIMITED, WireError, build_response, read_response
from tests.proxy.vectors import flatten
from tests.proxy.vectors_answers import BY_SOURCE

REJECTED = flatten(BY_SOURCE)


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


@pytest.mark.parametrize("status", [b"204", b"304"])
@pytest.mark.parametrize("framing", [b"Transfer-Encoding: chunked", b"Content-Length: 5"])
def test_an_answer_without_a_body_is_framed_as_none_and_ends_its_connection(
    status: bytes, framing: bytes
) -> None:
    head = read_response(b"HTTP/1.1 %b X\r\n%b\r\n\r\n" % (status, framing))
    assert (head.chunked, head.keep_alive, head.body_length(b"POST")) == (False, False, 0)
    assert head.length == (5 if status == b"304" and framing.endswith(b"5") else None)


def test_an_event_stream_of_a_declared_length_has_no_room_for_an_error_event() -> None:
    head = read_response(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 99\r\n\r\n"
    )
    assert not head.event_stream
