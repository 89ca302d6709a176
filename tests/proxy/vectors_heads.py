"""Heads of requests that must be refused, by their source."""

from tests.proxy.vectors import SMUGGLED, get, head

_HOSTS = {
    f"Host {value!r}": b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % value
    for value in (
        b"",
        b"a/b",
        b"u@a",
        b"a:80@b",
        b"a,b",
        b"a b",
        b"a\tb",
        b"a:b",
        b"a:+80",
        b"a:-1",
        b"a:8 0",
        b"a:80:80",
        b"a:123456",
        b"a?b",
        b"a#b",
        b"a\\b",
        b"a;b",
        b"*",
        b'"a"',
        b"(a)",
        b"http://a",
        b"//a",
        b"::1",
        b"[::1",
        b"[::1]a",
        b"[g]",
        b"a\xff",
    )
}

_LENGTHS = {
    f"Content-Length {value!r}": head(b"Content-Length: " + value)
    for value in (
        b"",
        b"+3",
        b"-3",
        b"-0",
        b"3,3",
        b"3, 3",
        b"3,",
        b"3 3",
        b"0x3",
        b"3.0",
        b"3;",
        b"1e3",
        b"1_0",
        b'"3"',
        b"3\x0b",
        b"3\xa0",
        b"\xc2\xb3",
        b"\xd9\xa3",
        b"3h",
        b"NaN",
        b"9" * 19,
        b"9" * 40,
        b"18446744073709551616",
        b"18446744073709551619",
        b"00000000000000000003",
    )
}

_CODINGS = {
    f"Transfer-Encoding {value!r}": head(b"Transfer-Encoding: " + value)
    for value in (
        b"",
        b"identity",
        b"gzip",
        b"cow",
        b"gzip, chunked",
        b"identity, chunked",
        b"cow, chunked",
        b"chunked, gzip",
        b"chunked, chunked",
        b"chunked, identity",
        b"chunked, cow",
        b"xchunked",
        b"chunkedx",
        b"x chunked",
        b"chunked chunked",
        b"chun ked",
        b"chunked;q=1",
        b'"chunked"',
        b"'chunked'",
        b"[chunked]",
        b"\x0bchunked",
        b"\x0cchunked",
        b"\xa0chunked",
        b"\xffchunked",
        b"chunked\x0b",
        b"chunked\x00",
        b"chunked\xa0",
        b",chunked",
        b"chunked,",
        b"\xc4\x8bhunked",
    )
}

_NAMES = {
    f"a name with {char!r}": get(b"X%bY: z" % char)
    for char in (
        *(bytes((code,)) for code in b'\t\x01\x0b\x0c\x7f\xff "(),/;<=>?@[\\]{}'),
        b"\x00",
        b"\r",
        b"\xc2\xa0",
    )
}

_VALUES = {
    f"a value with {bytes((code,))!r}": get(b"X: b%bc" % bytes((code,)))
    for code in (0x00, 0x01, 0x02, 0x08, 0x0A, 0x0B, 0x0C, 0x0D, 0x0E, 0x1B, 0x1F, 0x7F)
}

_LINES = {
    f"request line {line!r}": line + b"\r\nHost: a\r\n\r\n"
    for line in (
        b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b"GET / HTTP/1.1\t",
        b" GET / HTTP/1.1",
        b"\tGET / HTTP/1.1",
        b"GET\t/\tHTTP/1.1",
        b"GET\x0b/\x0bHTTP/1.1",
        b"GET / HTTP/1.1\r",
        b"GET /\x00 HTTP/1.1",
        b"GET /a\x00b HTTP/1.1",
        b"GET /a\x7f HTTP/1.1",
        b"GET /\xc3\xa9 HTTP/1.1",
        b"GET /?\xff HTTP/1.1",
        b"GET HTTP/1.1",
        b"GET",
        b"GET /",
        b" / HTTP/1.1",
        b"get / HTTP/1.1",
        b"G@T / HTTP/1.1",
        b"GE:T / HTTP/1.1",
        b"GETS / HTTP/1.1",
        b"\x00GET / HTTP/1.1",
        b"\xffGET / HTTP/1.1",
    )
}

_VERSIONS = {
    f"version {version!r}": b"GET /a %b\r\nHost: a\r\n\r\n" % version
    for version in (
        b"HTTP/0.9",
        b"HTTP/1.2",
        b"HTTP/1.10",
        b"HTTP/01.1",
        b"HTTP/2.0",
        b"HTTP/2",
        b"HTTP/3.0",
        b"HTTP/1,1",
        b"HTTP/1.",
        b"HTTP/.1",
        b"HTTP/1.1x",
        b"HTTP/ 1.1",
        b"HTTP /1.1",
        b"http/1.1",
        b"HTTPS/1.1",
        b"RTSP/1.0",
        b"ICE/1.0",
    )
}

_TARGETS = {
    f"target {target!r}": b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target
    for target in (
        b"a",
        b"/a#b",
        b"/a?b#c",
        b"http://a/#b",
        b"ftp://a/",
        b"http://u@a/",
        b"http:///x",
        b"http://a:b/",
        b"http://a,b/",
        b"http://a\\b/",
        b"http://[::1/",
        b"http:/a",
        b"?a",
        b"\\a",
    )
}

BY_SOURCE = {
    "RFC 9112 2.2: lines end with CRLF": {
        "a bare LF between fields": b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        "a bare LF after the request line": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        "LF LF ends no head": b"GET / HTTP/1.1\r\nHost: a\n\n" + SMUGGLED,
        "CRLF LF ends no head": b"GET / HTTP/1.1\r\nHost: a\r\n\n" + SMUGGLED,
        "LF CRLF ends no head": b"GET / HTTP/1.1\r\nHost: a\n\r\n" + SMUGGLED,
        "CR CR ends no head": b"GET / HTTP/1.1\r\nHost: a\r\r" + SMUGGLED,
        "CR CRLF ends no line": b"GET / HTTP/1.1\r\nHost: a\r\r\nX: b\r\n\r\n",
        "CRLF CR CRLF ends no head": b"GET / HTTP/1.1\r\nHost: a\r\n\r\r\n\r\n",
        "a bare LF in front": b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "a bare CR in front": b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "a first line that is folded": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        "a first line of blanks": b"GET / HTTP/1.1\r\n \r\nHost: a\r\n\r\n",
    },
    "RFC 9112 3: the request line": {
        **_LINES,
        "HTTP/0.9 without a version": b"GET /a\r\n\r\n",
        "CR CR behind the request line": b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
    },
    "RFC 9112 2.3: the version": {**_VERSIONS, "the HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\n"},
    "RFC 9112 3.2: the target": {
        **_TARGETS,
        "authority-form": b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        "asterisk-form": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    },
    "RFC 9112 3.2: Host": {
        **_HOSTS,
        "two Host fields": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "two equal Host fields": b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
        "two Hosts, one empty": b"GET / HTTP/1.1\r\nHost: a\r\nHost:\r\n\r\n",
        "no Host": b"GET / HTTP/1.1\r\nX: a\r\n\r\n",
        "no field at all": b"GET / HTTP/1.1\r\n\r\n",
        "two Hosts in HTTP/1.0": b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
        "a malformed Host in HTTP/1.0": b"GET / HTTP/1.0\r\nHost: a/b\r\n\r\n",
        "absolute-form without Host": b"GET http://a/x HTTP/1.1\r\nX: a\r\n\r\n",
        "absolute-form with two Hosts": (b"GET http://a/x HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
        "absolute-form with a malformed Host": b"GET http://a/x HTTP/1.1\r\nHost: a/b\r\n\r\n",
    },
    "RFC 9112 5: fields": {
        "no colon": get(b"Xb"),
        "an empty name": get(b": b"),
        "a colon alone": get(b":"),
        **_NAMES,
    },
    "RFC 9112 5.1: no blank before the colon": {
        "a space before the colon": b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "a tab before the colon": b"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n",
        "a space before Content-Length's colon": head(b"Content-Length : 3"),
        "a space before Transfer-Encoding's colon": head(b"Transfer-Encoding : chunked"),
        "a tab before Transfer-Encoding's colon": head(b"Transfer-Encoding\t: chunked"),
        "a line end before the colon": head(b"Transfer-Encoding\r\n: chunked"),
    },
    "RFC 9112 5.2: no folding": {
        "a folded field": get(b"X: b\r\n c"),
        "a folded field with a tab": get(b"X: b\r\n\tc"),
        "a folded Transfer-Encoding": head(b"Transfer-Encoding:\r\n chunked"),
        "a folded Content-Length": head(b"Content-Length: 3\r\n 4"),
        "a fold of nothing": get(b"X: b\r\n "),
        "a coding as a fold": head(b"Content-Length: 3\r\n Transfer-Encoding: chunked"),
    },
    "RFC 9110 5.5: values": _VALUES,
    "RFC 9110 10.1.1: Expect": {
        f"Expect {value!r}": head(b"Content-Length: 3\r\nExpect: " + value)
        for value in (b"", b"200-ok", b"100", b"100-continue, x", b"100-continuex")
    },
    "RFC 9112 6.3: Content-Length": {
        **_LENGTHS,
        "two Content-Lengths": head(b"Content-Length: 3\r\nContent-Length: 4"),
        "two equal Content-Lengths": head(b"Content-Length: 3\r\nContent-Length: 3"),
        "two Content-Lengths in two cases": head(b"content-length: 0\r\nCONTENT-LENGTH: 44"),
        "two Content-Lengths, one empty": head(b"Content-Length: 3\r\nContent-Length:"),
        "two Content-Lengths in HTTP/1.0": head(
            b"Content-Length: 3\r\nContent-Length: 4", version=b"1.0"
        ),
    },
    "RFC 9110 7.6.1: Connection": {
        "33 options": head(b"Connection: " + b",".join(b"x%d" % at for at in range(33))),
        "33 options in two lines": head(b"Connection: " + b"a," * 32 + b"\r\nConnection: a"),
    },
    "RFC 9112 6.1: Transfer-Encoding": {
        **_CODINGS,
        "Transfer-Encoding in HTTP/1.0": head(b"Transfer-Encoding: chunked", version=b"1.0"),
        "Transfer-Encoding in HTTP/1.0 that is kept alive": head(
            b"Connection: keep-alive\r\nTransfer-Encoding: chunked", version=b"1.0"
        ),
    },
    "CL.TE, TE.CL, CL.0": {
        "Content-Length and Transfer-Encoding": head(
            b"Content-Length: 3\r\nTransfer-Encoding: chunked"
        ),
        "Transfer-Encoding and Content-Length": head(
            b"Transfer-Encoding: chunked\r\nContent-Length: 3"
        ),
        "CL.TE with a request behind the last chunk": (
            head(b"Content-Length: %d\r\nTransfer-Encoding: chunked" % (len(SMUGGLED) + 5))
            + b"0\r\n\r\n"
            + SMUGGLED
        ),
        "TE.CL with a request in a chunk": (
            head(b"Transfer-Encoding: chunked\r\nContent-Length: 4")
            + b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
        ),
        "CL.0 with a coding": head(b"Content-Length: 0\r\nTransfer-Encoding: chunked"),
        "both, and Connection names one": head(
            b"Connection: content-length\r\nContent-Length: 3\r\nTransfer-Encoding: chunked"
        ),
        "both, and Connection names the other": head(
            b"Connection: transfer-encoding\r\nContent-Length: 3\r\nTransfer-Encoding: chunked"
        ),
    },
    "TE.TE": {
        "two Transfer-Encodings": head(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        "Transfer-Encoding then identity": head(
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"
        ),
        "identity then Transfer-Encoding": head(
            b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"
        ),
        "Transfer-Encoding then cow": head(b"Transfer-Encoding: chunked\r\nTransfer-encoding: cow"),
        "a coding behind a bare CR": head(b"Content-Length: 3\r\nX: y\rTransfer-Encoding: chunked"),
        "a coding behind a bare LF": head(b"Content-Length: 3\r\nX: y\nTransfer-Encoding: chunked"),
        "a coding behind NUL": head(b"Content-Length: 3\r\n\x00Transfer-Encoding: chunked"),
    },
    "Nimway: who asks, and how long": {
        "two Authorization fields": get(b"Authorization: Bearer a\r\nAuthorization: Bearer b"),
        **{
            f"X-Nimway-Timeout {value!r}": get(b"X-Nimway-Timeout: " + value)
            for value in (b"soon", b"0", b"-1", b"1e3", b"nan", b"")
        },
        **{
            f"X-Nimway-Heartbeat {value!r}": get(b"X-Nimway-Heartbeat: " + value)
            for value in (b"soon", b"0.9", b"60.1", b"-1", b"1e1", b"10 ,", b"")
        },
    },
}
