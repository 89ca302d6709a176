"""Lines of heads are read once: what is remembered changes no answer, and has bounds."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimway.proxy.lines import KEPT_LINE_BYTES_MAX, KEPT_LINES_MAX, FieldLines, WireError
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
        one_by_one = [(known[line][2][0], known[line][1]) for line in lines]
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
    assert known[line][2][0] == line.partition(b":")[0]
    assert not known


def test_no_more_lines_are_remembered_than_the_limit() -> None:
    known = fresh()
    for number in range(2 * KEPT_LINES_MAX + 1):
        assert known[b"a: %d" % number][1] == b"%d" % number
        assert len(known) <= KEPT_LINES_MAX


def test_a_remembered_line_is_still_counted_where_it_may_stand_once() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3"
    for _ in range(2):
        assert read_request(head + HEAD_END).length == 3
        with pytest.raises(WireError):
            read_request(head + b"\r\nContent-Length: 3" + HEAD_END)
