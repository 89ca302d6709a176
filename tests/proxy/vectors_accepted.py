"""Whole requests that must be accepted, by source, and what a model server is told of each."""

from tests.proxy.vectors import BODY, PATH, Accepted

_SIZE = len(BODY)
_LENGTH = b"Content-Length: %d\r\n" % _SIZE
_CHUNK = b"%x\r\n%b\r\n" % (_SIZE, BODY)


def _with(lines: bytes, *, start: bytes = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n") -> bytes:
    return start + lines + b"\r\n"


def _field(line: bytes, *fields: tuple[bytes, bytes], absent: tuple[bytes, ...] = ()) -> Accepted:
    """A request with one more field line, or several."""
    return Accepted(_with(_LENGTH + line + b"\r\n") + BODY, fields=fields, absent=absent)


def _host(host: bytes) -> Accepted:
    start = b"POST /v1/completions HTTP/1.1\r\nHost:%b\r\n" % host
    return Accepted(_with(_LENGTH, start=start) + BODY)


def _target(target: bytes, query: bytes = b"", *, version: bytes = b"1.1") -> Accepted:
    start = b"POST %b HTTP/%b\r\nHost: a\r\n" % (target, version)
    return Accepted(_with(_LENGTH, start=start) + BODY, query=query)


def _length(line: bytes) -> Accepted:
    return Accepted(_with(line % _SIZE + b"\r\n") + BODY)


def _chunked(coded: bytes, *, line: bytes = b"Transfer-Encoding: chunked\r\n") -> Accepted:
    return Accepted(_with(line) + coded, absent=(b"transfer-encoding", b"trailer", b"x-trailer"))


def _in_chunks(size: int, *, extension: bytes = b"") -> bytes:
    parts = [BODY[at : at + size] for at in range(0, _SIZE, size)]
    chunks = [b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts]
    return b"".join(chunks) + b"0\r\n\r\n"


BY_SOURCE: dict[str, dict[str, Accepted]] = {
    "RFC 9112 2.2: an empty line in front": {
        "the least": _field(b"X: y"),
        "an empty line in front": Accepted(b"\r\n" + _with(_LENGTH) + BODY),
        "empty lines in front": Accepted(b"\r\n\r\n\r\n" + _with(_LENGTH) + BODY),
    },
    "RFC 9112 3.2: the target": {
        "a query": _target(PATH + b"?a=b&c", b"?a=b&c"),
        "an empty query": _target(PATH + b"?", b"?"),
        "a question mark in a query": _target(PATH + b"?a?b", b"?a?b"),
        "an escape in a query": _target(PATH + b"?a=%0d%0aX:%20y", b"?a=%0d%0aX:%20y"),
        "a target in a query": _target(PATH + b"?http://b/c", b"?http://b/c"),
        "absolute-form": _target(b"http://b" + PATH),
        "absolute-form with a port": _target(b"http://b:8080" + PATH),
        "absolute-form with IPv6": _target(b"http://[::1]:80" + PATH),
        "absolute-form with a query": _target(b"http://b" + PATH + b"?x=y", b"?x=y"),
        "https in absolute-form, in capitals": _target(b"HTTPS://b" + PATH),
        "absolute-form that disagrees with Host": _target(b"http://169.254.169.254" + PATH),
        "the prefix /openai": _target(b"/openai" + PATH),
    },
    "RFC 9112 3.2: Host": {
        f"Host {host!r}": _host(host)
        for host in (
            b" a",
            b"a",
            b"\ta\t ",
            b" a.b-c_d~e:8080",
            b" a.example.",
            b" 127.0.0.1",
            b" 127.0.0.1:80",
            b" [::1]",
            b" [2001:db8::1]:443",
            b" A:1",
        )
    },
    "RFC 9112 2.3: HTTP/1.0": {
        "HTTP/1.0": _target(PATH, version=b"1.0"),
        "HTTP/1.0 without Host": Accepted(
            b"POST /v1/completions HTTP/1.0\r\n" + _LENGTH + b"\r\n" + BODY
        ),
        "HTTP/1.0 with keep-alive": Accepted(
            _with(
                _LENGTH + b"Connection: keep-alive\r\n",
                start=b"POST /v1/completions HTTP/1.0\r\n",
            )
            + BODY,
            absent=(b"connection",),
        ),
        "HTTP/1.0 with Expect, ignored": Accepted(
            _with(_LENGTH + b"Expect: 100-continue\r\n", start=b"POST /v1/completions HTTP/1.0\r\n")
            + BODY,
            absent=(b"expect",),
        ),
    },
    "RFC 9110 5: fields": {
        "no blank behind the colon": _field(b"X:y", (b"x", b"y")),
        "blanks around a value": _field(b"X: \t y \t", (b"x", b"y")),
        "blanks in a value": _field(b"X: a \t b", (b"x", b"a \t b")),
        "an empty value": _field(b"X:", (b"x", b"")),
        "a value of blanks": _field(b"X:  \t", (b"x", b"")),
        "a colon in a value": _field(b"X: a:b", (b"x", b"a:b")),
        "a high byte in a value": _field(b"X: \xff\x80", (b"x", b"\xff\x80")),
        "UTF-8 in a value": _field(b"X: \xe2\x82\xac", (b"x", b"\xe2\x82\xac")),
        "quotes and brackets in a value": _field(b'X: "a(b\\c', (b"x", b'"a(b\\c')),
        "every character of a name": _field(
            b"!#$%&'*+-.^_`|~09azAZ: x", (b"!#$%&'*+-.^_`|~09azaz", b"x")
        ),
        "a name of one character": _field(b"_: x", (b"_", b"x")),
        "a field given twice": _field(b"X: 1\r\nX: 2", (b"x", b"1"), (b"x", b"2")),
        "a name that only looks like framing": _field(
            b"Content-Lengths: 7\r\nContent_Length: 9", (b"content-lengths", b"7")
        ),
        "a value that only looks like framing": _field(
            b"X: Transfer-Encoding: chunked", (b"x", b"Transfer-Encoding: chunked")
        ),
        "a long field": _field(b"X: " + b"a" * 16000, (b"x", b"a" * 16000)),
        "98 fields more": _field(b"\r\n".join([b"X: y"] * 98), *[(b"x", b"y")] * 98),
        "traceparent": _field(b"Traceparent: 00-a-b-01", (b"traceparent", b"00-a-b-01")),
        "X-Forwarded-Host, a field like any": _field(
            b"X-Forwarded-Host: evil", (b"x-forwarded-host", b"evil")
        ),
    },
    "RFC 9110 7.6.1: fields of one hop": {
        "hop-by-hop fields": _field(
            b"Keep-Alive: x\r\nTE: trailers\r\nUpgrade: h2c\r\nProxy-Connection: x\r\n"
            b"HTTP2-Settings: x\r\nProxy-Authorization: x\r\nTrailer: x",
            absent=(
                b"keep-alive",
                b"te",
                b"upgrade",
                b"proxy-connection",
                b"http2-settings",
                b"proxy-authorization",
                b"trailer",
            ),
        ),
        "an upgrade, which is ignored": _field(
            b"Connection: upgrade\r\nUpgrade: websocket", absent=(b"connection", b"upgrade")
        ),
        "Connection names a field": _field(
            b"Connection: X-Mine, , close\r\nX-Mine: 1\r\nX-Other: 2",
            (b"x-other", b"2"),
            absent=(b"connection", b"x-mine"),
        ),
        **{
            f"Connection cannot take {name!r}": _field(
                b"%b: v\r\nConnection: %b" % (name, name), (name, b"v")
            )
            for name in (
                b"content-type",
                b"content-encoding",
                b"set-cookie",
                b"traceparent",
            )
        },
        "Connection names what frames": _field(b"Connection: content-length, host"),
        "credentials end at the proxy": _field(
            b"Authorization: Bearer k", absent=(b"authorization",)
        ),
        "keys end at the proxy": _field(
            b"x-api-key: k\r\nAPI-KEY: k", absent=(b"x-api-key", b"api-key")
        ),
        "cookies end at the proxy, also in two fields": _field(
            b"Cookie: a=b; c\r\nCookie: d=Authorization", absent=(b"cookie",)
        ),
        "a key given twice ends at the proxy": _field(
            b"X-Api-Key: k\r\nX-Api-Key: l", absent=(b"x-api-key",)
        ),
        "Connection names credentials": _field(
            b"Connection: authorization, x-api-key\r\nAuthorization: Basic a\r\nX-Api-Key: k",
            absent=(b"connection", b"authorization", b"x-api-key"),
        ),
        "a heartbeat ends at the proxy": _field(
            b"X-Nimway-Heartbeat: 60", absent=(b"x-nimway-heartbeat",)
        ),
        "a timeout ends at the proxy": _field(
            b"X-Nimway-Timeout: 30.5", absent=(b"x-nimway-timeout",)
        ),
        "a request id passes on": _field(b"X-Request-Id: abc-1", (b"x-request-id", b"abc-1")),
    },
    "RFC 9112 6.2: Content-Length": {
        "a length": _length(b"Content-Length: %d"),
        "a length without a blank": _length(b"content-length:%d"),
        "a length in blanks": _length(b"Content-Length: \t%d \t"),
        "a length with zeros": _length(b"Content-Length: 000%d"),
        "a length beside Expect": _length(b"Expect: 100-Continue\r\nContent-Length: %d"),
    },
    "RFC 9112 7.1: the chunked coding": {
        "one chunk": _chunked(_CHUNK + b"0\r\n\r\n"),
        "chunked in capitals": _chunked(
            _CHUNK + b"0\r\n\r\n", line=b"TRANSFER-ENCODING: CHUNKED\r\n"
        ),
        "chunked behind blanks": _chunked(
            _CHUNK + b"0\r\n\r\n", line=b"Transfer-Encoding: \t chunked\r\n"
        ),
        "chunks of one byte": _chunked(_in_chunks(1)),
        "chunks of seven bytes": _chunked(_in_chunks(7)),
        "sizes in capitals with zeros": _chunked(b"00%X\r\n%b\r\n000\r\n\r\n" % (_SIZE, BODY)),
        "an extension on each chunk": _chunked(_in_chunks(9, extension=b";a=b;c")),
        "a quoted extension on each chunk": _chunked(_in_chunks(9, extension=b';a="; c"')),
        "an extension on the last chunk": _chunked(_CHUNK + b"0;a\r\n\r\n"),
        "trailers, which end at the proxy": _chunked(
            _CHUNK + b"0\r\nX-Trailer: y\r\nContent-Length: 3\r\n\r\n"
        ),
    },
}

ACCEPTED = {name: vector for group in BY_SOURCE.values() for name, vector in group.items()}
