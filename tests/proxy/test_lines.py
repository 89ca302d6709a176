"""Lines of heads are read once: what is remembered changes no answer, and has bounds."""

from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimway.proxy.lines import (
    KEPT_LINE_BYTES_MAX,
    KEPT_LINES_MAX,
    KEPT_OF_A_FIELD_MAX,
    FieldLines,
    WireError,
    read_plain,
)
from nimway.proxy.wire import CRLF, HEAD_END, read_request

LINES = st.one_of(
    st.binary(max_size=20),
    st.builds(
        lambda name, gap, value: name + b":" + gap + value,
        st.sampled_from((b"A", b"x-b", b"Connection", b"Upgrade", b" c", b"d ")),
        st.sampled_from((b"", b" ", b"\t ")),
        st.text("ab ,\t\r\n\x00\x7fé", max_size=8).map(str.encode),
    ),
)


def fresh() -> FieldLines:
    return FieldLines(httptools.HttpRequestParser, b"GET / HTTP/1.1", {})


class Fields:
    def __init__(self) -> None:
        self.found: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.found.append((name, value.strip(b" \t")))


def read_whole(lines: list[bytes]) -> list[tuple[bytes, bytes]] | None:
    """What llhttp finds in the head as a whole, or None where it refuses it."""
    fields = Fields()
    head = b"GET / HTTP/1.1" + CRLF + b"".join(line + CRLF for line in lines) + CRLF
    try:
        httptools.HttpRequestParser(fields).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError:
        return None
    return fields.found


@given(st.lists(LINES.filter(lambda line: CRLF not in line and line != b""), max_size=4))
def test_lines_read_one_by_one_say_what_the_whole_head_says(lines: list[bytes]) -> None:
    known = fresh()
    try:
        one_by_one = [(known[line][2].partition(b":")[0], known[line][1]) for line in lines]
    except WireError:
        return
    assert one_by_one == read_whole(lines)


@pytest.mark.parametrize(
    "line",
    [b"", b" a: b", b"\ta: b", b"a", b": b", b"a : b", b"a: b\nc: d", b"a: b\rc", b"a: \x00"],
)
def test_a_line_that_is_not_one_field_is_refused_each_time(line: bytes) -> None:
    known = fresh()
    for _ in range(2):
        with pytest.raises(WireError):
            known[line]
    assert not known


@pytest.mark.parametrize(
    "line",
    [
        b"Authorization: Bearer secret",
        b"cookie: secret",
        b"X-Api-Key: secret",
        b"x-request-id: 7",
        b"Long: " + b"x" * KEPT_LINE_BYTES_MAX,
    ],
)
def test_credentials_ids_and_long_lines_are_not_remembered(line: bytes) -> None:
    known = fresh()
    assert known[line][2] == line + CRLF
    assert not known


NAMES = st.sampled_from(
    [*b"Connection Proxy-Connection Transfer-Encoding Upgrade content-length X-A Host A".split()]
) | st.binary(max_size=3)
VALUES = st.one_of(
    st.sampled_from([b"5", b"05", b"5 5", b"9" * 18, b"9" * 19, b"9" * 20, b"close", b"chunked"]),
    st.text("a5 ,\t\r\n\x00\x7fé\xff:", max_size=6).map(lambda text: text.encode("latin-1")),
)
GAPS = st.sampled_from((b"", b" ", b"\t ", b"\x0b"))
PARSERS = [
    (httptools.HttpRequestParser, b"GET / HTTP/1.1"),
    (httptools.HttpResponseParser, b"HTTP/1.1 200 OK"),
]


@given(st.tuples(NAMES, GAPS, st.just(b":"), GAPS, VALUES, GAPS), st.sampled_from(PARSERS))
def test_a_line_read_without_llhttp_is_what_llhttp_reads(
    parts: tuple[bytes, ...], parser: tuple[Any, bytes]
) -> None:
    line = b"".join(parts)
    if CRLF not in line and (read := read_plain(line)) is not None:
        assert read == FieldLines(*parser, {}).read(line)


def test_lines_that_are_new_each_time_are_read_without_llhttp() -> None:
    for line in (b"Authorization: Bearer x", b"traceparent: 00-0-0-01", b"Content-Length: 17"):
        assert read_plain(line) is not None


def test_a_field_that_is_always_new_takes_no_place_of_another() -> None:
    known = fresh()
    known[b"User-Agent: a"]
    for number in range(2 * KEPT_LINES_MAX):
        known[b"Content-Length: %d" % number]
        assert b"User-Agent: a" in known
    assert len(known) <= KEPT_OF_A_FIELD_MAX + 1


def test_no_more_lines_are_remembered_than_the_limit() -> None:
    known = fresh()
    for number in range(2 * KEPT_LINES_MAX + 1):
        assert known[b"a-%d: b" % number][1] == b"b"
        assert len(known) <= KEPT_LINES_MAX


def test_a_remembered_line_is_still_counted_where_it_may_stand_once() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3"
    for _ in range(2):
        assert read_request(head + HEAD_END).length == 3
        with pytest.raises(WireError):
            read_request(head + b"\r\nContent-Length: 3" + HEAD_END)
