"""What must hold for any bytes at all, from a client and from a model server (PX-16).

No crash, no hang; the same whatever the split; and whatever is served, llhttp alone reads the same.
Inputs are vectors, cut, joined and sprinkled with what matters to parsers.
"""

import itertools
from collections.abc import Sequence

import httptools
from hypothesis import given
from hypothesis import strategies as st

from tests.proxy import vectors_answers, vectors_chunks, vectors_heads
from tests.proxy.test_vectors_answers import ENDING, WHOLE
from tests.proxy.vectors import flatten
from tests.proxy.vectors_accepted import ACCEPTED
from tests.support.proxy_glue import feed_client, feed_server

_CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
_TOKENS = (
    b"\r|\n|\r\n|\r\n\r\n|\x00| |\t|:|;|,|0|3|-1|+|ff|GET / HTTP/1.1\r\n|POST /a HTTP/1.0\r\n"
    b"|Host: a\r\n|Content-Length: 3\r\n|Transfer-Encoding: chunked\r\n|HTTP/1.1 200 OK\r\n"
    b"|HTTP/1.1 100 Continue\r\n\r\n|Connection: close\r\n|Expect: 100-continue\r\n|\x80|abc"
    b"|0\r\n\r\n|3\r\nabc\r\n|X: y\r\n| chunked|gzip|Upgrade: x\r\n|Connection: upgrade\r\n"
).split(b"|")
_SIZE_MAX = 2000


def _short(vectors: Sequence[bytes]) -> list[bytes]:
    return [data for data in vectors if len(data) < _SIZE_MAX]


REQUESTS = _short(
    [
        *flatten(vectors_heads.BY_SOURCE).values(),
        *(vector.data for vector in ACCEPTED.values()),
        *flatten(vectors_chunks.REJECTED_BY_SOURCE).values(),
    ]
)
ANSWERS = _short(
    [
        *flatten(vectors_answers.BY_SOURCE).values(),
        *flatten(vectors_chunks.REJECTED_BY_SOURCE).values(),
        *WHOLE.values(),
        *ENDING.values(),
    ]
)


@st.composite
def mangled(draw: st.DrawFn, vectors: list[bytes]) -> bytes:
    """Up to three vectors in a row, with up to six cuts and insertions."""
    data = b"".join(draw(st.lists(st.sampled_from(vectors), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.sampled_from((0, 0, 1, 2, 8)))
        new = draw(st.one_of(st.sampled_from(_TOKENS), st.binary(max_size=3)))
        data = data[:at] + new + data[at + gone :]
    return data


@st.composite
def split(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The same bytes in up to six parts, or one by one."""
    if draw(st.booleans()):
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=5)))
    edges = [0, *cuts, len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def _outcomes(statuses: list[int]) -> list[str]:
    """Served or refused: which of two flaws is seen first, hence the code, is the split's doing."""
    return ["served" if status == 200 else "refused" for status in statuses if status != 100]


class _First:
    """The first message as llhttp alone reads it."""

    def __init__(self) -> None:
        self.url = b""
        self.body = b""
        self.done = False

    def on_url(self, url: bytes) -> None:
        if not self.done:
            self.url += url

    def on_body(self, data: bytes) -> None:
        if not self.done:
            self.body += data

    def on_message_complete(self) -> None:
        self.done = True


@given(st.data(), mangled(REQUESTS))
def requests(data: st.DataObject, noise: bytes) -> None:
    """A client's bytes."""
    side = feed_client([noise])
    again = feed_client(data.draw(split(noise)))
    facts = [served.facts() for served in side.served]
    assert [served.facts() for served in again.served] == facts
    assert _outcomes(again.statuses) == _outcomes(side.statuses)
    assert set(side.statuses) <= {100, 200, 400, 417, 431}
    assert (side.held_bytes, again.held_bytes) == (0, 0)
    if side.served:
        first = _First()
        parser = httptools.HttpRequestParser(first)
        try:
            parser.feed_data(noise)
        except httptools.HttpParserUpgrade:
            return  # llhttp reads no body behind it, RFC 9110 section 7.8 lets a server go on
        except httptools.HttpParserError:
            pass  # behind the first message, or in trailers that are dropped here
        else:
            assert first.done
        head = side.served[0].head
        assert first.url.endswith(head.path + head.query) or head.path == b"/"
        assert first.body == side.served[0].body


@given(st.data(), mangled(ANSWERS))
def answers(data: st.DataObject, noise: bytes) -> None:
    """A model server's bytes."""
    told, kept = feed_server([noise])
    again, kept_again = feed_server(data.draw(split(noise)))
    assert not (told.done and told.lost)
    assert told.done or told.lost
    assert (again.done, again.lost) == (told.done, told.lost)
    if told.done:
        assert again.facts() == told.facts()
    assert kept <= told.done
    assert kept_again <= again.done


PROPERTIES = {"requests": requests, "answers": answers}
