"""The chunked coding: whole, byte by byte, split at each offset, and what is refused."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimway.proxy.wire import Dechunker, WireError
from tests.proxy.vectors import flatten, splits
from tests.proxy.vectors_chunks import ACCEPTED, REJECTED_BY_SOURCE

REJECTED = flatten(REJECTED_BY_SOURCE)


def _feed(parts: list[bytes]) -> tuple[bytes, bool, bytes, bytes]:
    dechunker = Dechunker()
    body = b"".join(piece for part in parts for piece in dechunker.feed(part))
    return body, dechunker.done, dechunker.trailers, dechunker.rest


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_body_is_the_same_however_it_is_split(name: str) -> None:
    data, body, trailers = ACCEPTED[name]
    expected = (body, True, trailers, b"")
    for parts in splits(data):
        assert _feed(parts) == expected


@pytest.mark.parametrize("name", REJECTED)
def test_a_malformed_body_is_refused_however_it_is_split(name: str) -> None:
    for parts in splits(REJECTED[name]):
        with pytest.raises(WireError):
            assert not _feed(parts)[1]


def test_bytes_behind_the_body_are_handed_back() -> None:
    assert _feed([b"1\r\na\r\n0\r\n\r\nGET /"])[3] == b"GET /"


def test_each_chunk_stays_a_piece_of_its_own() -> None:
    assert Dechunker().feed(b"2\r\nab\r\n1\r\nc\r\n3\r\nde") == [b"ab", b"c", b"de"]


_CHUNKS = st.lists(st.binary(min_size=1, max_size=40) | st.just(b"\r\n"), max_size=4)


@given(_CHUNKS, st.binary(max_size=9), st.sampled_from([b"%x", b"%X", b"0%x", b"%x;a=b", b"+%x"]))
def test_whole_chunks_are_read_as_byte_by_byte(
    chunks: list[bytes], noise: bytes, size: bytes
) -> None:
    data = [size % len(chunk) + b"\r\n" + chunk + b"\r\n" for chunk in chunks]
    whole, trickled = Dechunker(), Dechunker()
    for part in (*data, noise):
        single = [part[at : at + 1] for at in range(len(part))]
        outcomes = [_try(whole, [part]), _try(trickled, single)]
        assert outcomes[0] == outcomes[1]
        if outcomes[0] is None:
            break


def _try(dechunker: Dechunker, parts: list[bytes]) -> bytes | None:
    try:
        return b"".join(piece for part in parts for piece in dechunker.feed(part))
    except WireError:
        return None


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
