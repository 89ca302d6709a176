"""The chunked coding: whole, byte by byte, split at each offset, and what is refused."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimway.proxy.wire import Dechunker, WireError

ACCEPTED = {
    "nothing": (b"0\r\n\r\n", b"", b""),
    "one chunk": (b"3\r\nabc\r\n0\r\n\r\n", b"abc", b""),
    "two chunks": (b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde", b""),
    "hexadecimal": (b"A\r\n0123456789\r\n0a\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2, b""),
    "zeros in front": (b"0003\r\nabc\r\n000\r\n\r\n", b"abc", b""),
    "a quoted extension": (b'3;a="b c"\r\nabc\r\n0\r\n\r\n', b"abc", b""),
    "an extension": (b"3;a=b\r\nabc\r\n0;c\r\n\r\n", b"abc", b""),
    "CRLF in the data": (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n", b""),
    "a trailer": (b"3\r\nabc\r\n0\r\nX: y\r\n\r\n", b"abc", b"X: y\r\n"),
    "two trailers": (b"0\r\nX: y\r\nZ:\r\n\r\n", b"", b"X: y\r\nZ:\r\n"),
    "a framing trailer, dropped": (b"0\r\nContent-Length: 3\r\nX: y\r\n\r\n", b"", b"X: y\r\n"),
}

REJECTED = {
    "no size": b"\r\nabc\r\n",
    "a sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "a minus": b"-3\r\nabc\r\n0\r\n\r\n",
    "0x": b"0x3\r\nabc\r\n0\r\n\r\n",
    "a space in front": b" 3\r\nabc\r\n0\r\n\r\n",
    "a space behind": b"3 \r\nabc\r\n0\r\n\r\n",
    "an underscore": b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    "no hexadecimal": b"g\r\nabc\r\n0\r\n\r\n",
    "a huge size": b"fffffffffffffffff\r\nabc",
    "a bare LF behind the size": b"3\nabc\r\n0\r\n\r\n",
    "a bare CR behind the size": b"3\rabc\r\n0\r\n\r\n",
    "a bare LF in an extension": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "an extension without a name": b"3; \r\nabc\r\n0\r\n\r\n",
    "NUL in an extension": b"3;a\x00b\r\nabc\r\n0\r\n\r\n",
    "an extension without an end": b"3;" + b"a" * 300,
    "data longer than said": b"3\r\nabcd\r\n0\r\n\r\n",
    "data shorter than said": b"3\r\nab\r\n0\r\n\r\n",
    "no CRLF behind the data": b"3\r\nabc0\r\n\r\n",
    "a bare LF behind the data": b"3\r\nabc\n0\r\n\r\n",
    "a trailer without a colon": b"0\r\nX\r\n\r\n",
    "a folded trailer": b"0\r\nX: y\r\n z\r\n\r\n",
    "a trailer with a bare LF": b"0\r\nX: y\n\r\n",
    "a trailer with NUL": b"0\r\nX: \x00\r\n\r\n",
    "trailers without an end": b"0\r\n" + b"X: y\r\n" * 2000,
    "a comma": b"3,3\r\nabc\r\n0\r\n\r\n",
}


def _feed(parts: list[bytes]) -> tuple[bytes, bool, bytes, bytes]:
    dechunker = Dechunker()
    body = b"".join(piece for part in parts for piece in dechunker.feed(part))
    return body, dechunker.done, dechunker.trailers, dechunker.rest


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_body_is_the_same_however_it_is_split(name: str) -> None:
    data, body, trailers = ACCEPTED[name]
    expected = (body, True, trailers, b"")
    assert _feed([data]) == expected
    assert _feed([data[at : at + 1] for at in range(len(data))]) == expected
    for at in range(1, len(data)):
        assert _feed([data[:at], data[at:]]) == expected


@pytest.mark.parametrize("name", REJECTED)
def test_a_malformed_body_is_refused_however_it_is_split(name: str) -> None:
    data = REJECTED[name]
    splits = [[data], [data[at : at + 1] for at in range(len(data))]]
    splits += [[data[:at], data[at:]] for at in range(1, min(len(data), 40))]
    for parts in splits:
        with pytest.raises(WireError):
            assert not _feed(parts)[1]


def test_bytes_behind_the_body_are_handed_back() -> None:
    assert _feed([b"1\r\na\r\n0\r\n\r\nGET /"])[3] == b"GET /"


def test_each_chunk_stays_a_piece_of_its_own() -> None:
    assert Dechunker().feed(b"2\r\nab\r\n1\r\nc\r\n3\r\nde") == [b"ab", b"c", b"de"]


class _Body:
    def __init__(self) -> None:
        self.body = b""
        self.done = False

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.done = True


_TOKENS = st.sampled_from(
    [b"0", b"1", b"2", b"a", b"\r\n", b"\r", b"\n", b";", b" ", b"X: y", b":"]
)


@given(st.lists(_TOKENS, max_size=20).map(b"".join))
def test_what_we_accept_llhttp_reads_the_same(noise: bytes) -> None:
    for data in (noise, b"1\r\nx\r\n" + noise, noise + b"0\r\n\r\n"):
        try:
            body, done, _, rest = _feed([data])
        except WireError:
            continue
        if not done:
            continue
        message = data[: len(data) - len(rest)]
        facts = _Body()
        parser = httptools.HttpRequestParser(facts)
        parser.feed_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        parser.feed_data(message)
        assert (facts.body, facts.done) == (body, True)
