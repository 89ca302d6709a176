"""Heads of answers that must be refused, by their source: a broken or malicious model server."""


def _ok(lines: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % lines


_LENGTHS = {
    f"Content-Length {value!r}": _ok(b"Content-Length: " + value)
    for value in (
        b"",
        b"+1",
        b"-1",
        b"1, 1",
        b"1,",
        b"1 1",
        b"0x1",
        b"1.0",
        b"1e1",
        b"1_0",
        b"1\x0b",
        b"9" * 19,
        b"18446744073709551616",
    )
}
_CODINGS = {
    f"Transfer-Encoding {value!r}": _ok(b"Transfer-Encoding: " + value)
    for value in (
        b"",
        b"gzip",
        b"identity",
        b"gzip, chunked",
        b"chunked, gzip",
        b"chunked, chunked",
        b"xchunked",
        b"chunkedx",
        b"chunked;a",
        b'"chunked"',
        b"chunked\x0b",
    )
}
_STATUS_LINES = {
    f"status line {line!r}": line + b"\r\nContent-Length: 0\r\n\r\n"
    for line in (
        b"HTTP/2.0 200 OK",
        b"HTTP/0.9 200 OK",
        b"HTTP/1.2 200 OK",
        b"HTTP/1.10 200 OK",
        b"http/1.1 200 OK",
        b"HTTP/1,1 200 OK",
        b"ICY 200 OK",
        b"RTSP/1.0 200 OK",
        b"HTTP/1.1 OK",
        b"HTTP/1.1",
        b"HTTP/1.1 ",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 000 OK",
        b"HTTP/1.1 099 OK",
        b"HTTP/1.1 600 OK",
        b"HTTP/1.1 -20 OK",
        b"HTTP/1.1 2x0 OK",
        b"HTTP/1.1 200OK",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1\t200 OK",
        b" HTTP/1.1 200 OK",
        b"\nHTTP/1.1 200 OK",
        b"HTTP/1.1 200 O\x01K",
        b"HTTP/1.1 200 O\x00K",
        b"HTTP/1.1 200 O\x7fK",
        b"HTTP/1.1 200 OK\r",
    )
}
_FIELDS = {
    f"field {line!r}": _ok(line)
    for line in (
        b"X: a\r\n b",
        b"X: a\r\n\tb",
        b"X: a\nY: b",
        b"X: a\rY: b",
        b"X: a\x00",
        b"X: a\x01",
        b"X: a\x7f",
        b"X : a",
        b"X\t: a",
        b": a",
        b"Xa",
        b"X Y: a",
        b"X\xff: a",
        b"(X): a",
        b"Content-Length : 1",
        b"Transfer-Encoding : chunked",
    )
}

BY_SOURCE = {
    "RFC 9112 4: the status line": {
        **_STATUS_LINES,
        "HTTP/0.9": b"<html></html>\r\n\r\n",
        "a body in front": b'{"a":1}HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n',
    },
    "RFC 9112 5: fields": _FIELDS,
    "RFC 9112 6.3: Content-Length": {
        **_LENGTHS,
        "two Content-Lengths": _ok(b"Content-Length: 1\r\nContent-Length: 2"),
        "two equal Content-Lengths": _ok(b"Content-Length: 1\r\nContent-Length: 1"),
    },
    "RFC 9112 6.1: Transfer-Encoding": {
        **_CODINGS,
        "a coding in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "two codings": _ok(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        "Content-Length and Transfer-Encoding": _ok(
            b"Content-Length: 1\r\nTransfer-Encoding: chunked"
        ),
        "Transfer-Encoding and Content-Length": _ok(
            b"Transfer-Encoding: chunked\r\nContent-Length: 1"
        ),
    },
    "RFC 6585 5: too large": {
        "too many fields": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 101 + b"\r\n",
        "too long a field": _ok(b"X: " + b"a" * 16384),
    },
    "RFC 9110 15.2.2: nobody asked for another protocol": {
        "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    },
}
