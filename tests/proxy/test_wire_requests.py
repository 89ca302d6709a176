"""Heads of requests: what is refused, what is accepted, and that splitting changes nothing."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimway.proxy.wire import WireError, build_request, read_request
from tests.proxy.vectors import flatten
from tests.proxy.vectors_heads import BY_SOURCE

REJECTED = flatten(BY_SOURCE)

ACCEPTED = {
    "the least": (b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n", b"/a"),
    "a port": (b"GET /a HTTP/1.1\r\nHost: a.b-c_d:8080\r\n\r\n", b"/a"),
    "IPv6": (b"GET /a HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", b"/a"),
    "a trailing dot": (b"GET /a HTTP/1.1\r\nHost: a.example.\r\n\r\n", b"/a"),
    "HTTP/1.0 without Host": (b"GET /a HTTP/1.0\r\n\r\n", b"/a"),
    "a query": (b"GET /a?b=c HTTP/1.1\r\nHost: a\r\n\r\n", b"/a"),
    "an empty query": (b"GET /a? HTTP/1.1\r\nHost: a\r\n\r\n", b"/a"),
    "absolute-form": (b"GET http://b/a HTTP/1.1\r\nHost: c\r\n\r\n", b"/a"),
    "absolute-form without a path": (b"GET http://b HTTP/1.1\r\nHost: c\r\n\r\n", b"/"),
    "absolute-form with a query only": (b"GET http://b?x HTTP/1.1\r\nHost: c\r\n\r\n", b"/"),
    "https in absolute-form": (b"GET HTTPS://b:1/a HTTP/1.1\r\nHost: c\r\n\r\n", b"/a"),
    "dots and slashes as they are": (
        b"GET //a/%2e%2e;x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"//a/%2e%2e;x",
    ),
    "no space after the colon": (b"GET /a HTTP/1.1\r\nHost:a\r\n\r\n", b"/a"),
    "blanks around a value": (b"GET /a HTTP/1.1\r\nHost: \t a \t\r\n\r\n", b"/a"),
    "an empty value": (b"GET /a HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n", b"/a"),
    "a high byte in a value": (b"GET /a HTTP/1.1\r\nHost: a\r\nX: \xff\r\n\r\n", b"/a"),
    "every character of a name": (
        b"GET /a HTTP/1.1\r\nHost: a\r\n!#$%&'*+-.^_`|~09azAZ: x\r\n\r\n",
        b"/a",
    ),
    "chunked": (b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", b"/a"),
    "a length of zero": (b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", b"/a"),
    "a length with zeros": (b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 003\r\n\r\n", b"/a"),
    "Upgrade, which is ignored": (
        b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"/a",
    ),
    "another method": (b"DELETE /a HTTP/1.1\r\nHost: a\r\n\r\n", b"/a"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_a_malformed_head_is_refused(name: str) -> None:
    with pytest.raises(WireError) as error:
        read_request(REJECTED[name].partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    assert error.value.status in (400, 417)


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_well_formed_head_is_read(name: str) -> None:
    data, path = ACCEPTED[name]
    assert read_request(data).path == path


def test_at_least_a_dozen_of_the_refused_heads_pass_through_bare_llhttp() -> None:
    passed = 0
    for data in REJECTED.values():
        try:
            httptools.HttpRequestParser(object()).feed_data(data)
            passed += 1
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            pass
    assert passed >= 12


def test_too_long_a_line_and_too_many_fields_are_431() -> None:
    for data in (
        b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"a" * 16384),
        b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"a" * 16384),
        b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n" % (b"X: y\r\n" * 100),
    ):
        with pytest.raises(WireError) as error:
            read_request(data)
        assert error.value.status == 431
    read_request(b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n" % (b"X: y\r\n" * 99))


def _passed_on(lines: bytes) -> bytes:
    head = read_request(b"POST /a HTTP/1.1\r\nHost: proxy\r\n" + lines + b"\r\n")
    head.request_id = b"id"
    return build_request(head, b"/a", b"10.0.0.1:8000", 5, ())


def test_hop_by_hop_fields_end_here() -> None:
    passed = _passed_on(
        b"Keep-Alive: x\r\nTE: trailers\r\nUpgrade: h2c\r\nProxy-Connection: x\r\n"
        b"HTTP2-Settings: x\r\nProxy-Authorization: x\r\nTrailer: x\r\nExpect: 100-continue\r\n"
        b"Connection: keep-alive, X-Mine\r\nX-Mine: 1\r\nx-mine: 2\r\nX-Other: 3\r\n"
    )
    assert passed == (
        b"POST /a HTTP/1.1\r\nHost: 10.0.0.1:8000\r\nX-Other: 3\r\n"
        b"Content-Length: 5\r\nX-Request-Id: id\r\n\r\n"
    )


def test_connection_cannot_take_away_what_frames_or_authorises() -> None:
    head = read_request(
        b"POST /a HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer k\r\nCookie: c\r\n"
        b"Connection: close, content-length, host, content-type, cookie, traceparent\r\n"
        b"Connection: authorization\r\nContent-Type: a/b\r\nTraceparent: t\r\n\r\n"
    )
    passed = build_request(head, b"/a", b"10.0.0.1:8000", 5, head.credentials)
    for line in (b"Host: 10", b"Content-Length: 5", b"Content-Type: a", b"Cookie: c", b"Trace"):
        assert line in passed
    assert b"Authorization: Bearer k\r\n" in passed


@pytest.mark.parametrize("name", ["Authorization", "X-Api-Key", "Api-Key", "Cookie"])
def test_credentials_do_not_reach_the_model_unless_configured(name: str) -> None:
    line = f"{name}: Bearer k\r\n".encode()
    start, _, value = line.partition(b":")
    for spelt in (line, start.lower() + b":" + value, start.upper() + b":\t " + value):
        head = read_request(b"POST /a HTTP/1.1\r\nHost: a\r\nX: y\r\n%b\r\n" % spelt)
        head.request_id = b"id"
        withheld = build_request(head, b"/a", b"b", 0, ())
        assert b"Bearer" not in withheld
        passed = build_request(head, b"/a", b"b", 0, head.credentials)
        assert passed == withheld.replace(b"X: y\r\n", b"X: y\r\n" + line)


def test_two_keys_and_two_cookies_are_passed_on_as_they_came() -> None:
    head = read_request(
        b"POST /a HTTP/1.1\r\nHost: a\r\n"
        b"Cookie: Authorization: a\r\nX-Api-Key: k\r\nCookie: b\r\nAuthorization: c\r\n\r\n"
    )
    assert head.credentials == (
        b"Cookie: Authorization: a\r\n",
        b"X-Api-Key: k\r\n",
        b"Cookie: b\r\n",
        b"Authorization: c\r\n",
    )


def test_a_client_s_request_id_is_kept_only_if_it_is_sane() -> None:
    def read_id(value: bytes) -> bytes:
        data = b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: %b\r\n\r\n" % value
        return read_request(data).request_id

    assert read_id(b"abc-123") == b"abc-123"
    assert read_id(b'a"b') == b""
    assert read_id(b"a b") == b""
    assert read_id(b"a" * 129) == b""


def test_keep_alive_follows_the_version_and_the_connection_field() -> None:
    def keeps(version: bytes, lines: bytes = b"") -> bool:
        return read_request(b"GET / HTTP/%b\r\nHost: a\r\n%b\r\n" % (version, lines)).keep_alive

    assert keeps(b"1.1")
    assert not keeps(b"1.1", b"Connection: close\r\n")
    assert not keeps(b"1.1", b"Connection: keep-alive, CLOSE\r\n")
    assert not keeps(b"1.0")
    assert keeps(b"1.0", b"Connection: Keep-Alive\r\n")


class _Facts:
    """What llhttp alone makes of a head."""

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.complete = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        del value
        self.names.append(name)

    def on_headers_complete(self) -> None:
        self.complete += 1


_ALPHABET = st.sampled_from(
    b"GET|POST| |/|a|HTTP/1.1|HTTP/1.0|\r\n|\n|\r|:|Host: a|Content-Length: 1|"
    b"Transfer-Encoding: chunked|\t|,|\x00|X".split(b"|")
)


@given(st.lists(_ALPHABET, max_size=24).map(b"".join))
def test_what_we_accept_llhttp_accepts_as_one_whole_head(noise: bytes) -> None:
    for start in (b"", b"GET / HTTP/1.1\r\nHost: a\r\n", b"POST /a HTTP/1.1\r\n"):
        data = start + noise.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        end = data.index(b"\r\n\r\n") + 4
        try:
            head = read_request(data[:end])
        except WireError:
            continue
        facts = _Facts()
        httptools.HttpRequestParser(facts).feed_data(data[:end])
        assert facts.complete == 1
        assert {line.partition(b":")[0] for line in head.fields} <= set(facts.names)
        assert b"\n" not in head.path + head.query
