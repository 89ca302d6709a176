"""Every vector of an answer, in every split: refused ones reach no client, whole ones all alike."""

import asyncio
import random

import pytest

from nimway.proxy.wire import read_response
from tests.proxy import vectors_answers, vectors_chunks
from tests.proxy.test_conversations import conversation
from tests.proxy.vectors import MODEL, flatten, splits
from tests.support.proxy_glue import feed_server
from tests.support.proxy_wire import OK, SSE_HEAD, Call, chunk, connect, post, run_model_server

REJECTED = flatten(vectors_answers.BY_SOURCE)
REJECTED_CHUNKS = flatten(vectors_chunks.REJECTED_BY_SOURCE)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

WHOLE = {
    "a length": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    "a length of zero": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 3\r\n\r\nabc",
    "an empty reason": b"HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\nabc",
    "a reason in UTF-8": b"HTTP/1.1 200 \xc3\xa9\r\nContent-Length: 3\r\n\r\nabc",
    "no body by its status": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "interim answers": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    + OK,
    "a stream": SSE_HEAD + chunk(b"data: 1\n\n") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n",
    **{f"chunks: {name}": CHUNKED + data for name, (data, _, _) in vectors_chunks.ACCEPTED.items()},
}
ENDING = {
    "Connection: close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    "bytes behind the body": WHOLE["a length"] + b"HTTP/1.1 200 OK\r\n",
    "bytes behind the last chunk": WHOLE["a stream"] + b"x",
    "a 204 with a length": b"HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\nabc",
    "a 204 with a coding": b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a 304 with bytes": b"HTTP/1.1 304 Not\r\nContent-Length: 3\r\n\r\nabc",
}


@pytest.mark.parametrize("name", REJECTED)
def test_a_refused_answer_is_refused_in_every_split(name: str) -> None:
    for parts in splits(REJECTED[name] + OK):
        told, kept = feed_server(parts)
        assert (told.head, told.malformed, told.done, kept) == (None, True, False, False)


@pytest.mark.parametrize("name", REJECTED_CHUNKS)
def test_a_malformed_body_never_ends_well_in_any_split(name: str) -> None:
    for parts in splits(CHUNKED + REJECTED_CHUNKS[name]):
        told, kept = feed_server(parts)
        assert (told.lost, told.done, kept) == (True, False, False)


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_answer_is_the_same_in_every_split_and_its_connection_is_kept(name: str) -> None:
    expected = feed_server([WHOLE[name]], end=False)[0].facts()
    for parts in splits(WHOLE[name]):
        told, kept = feed_server(parts, end=False)
        assert told.facts() == expected
        assert (told.done, told.lost, kept) == (True, False, True)


@pytest.mark.parametrize("name", ENDING)
def test_an_answer_that_ends_its_connection_does_so_in_every_split(name: str) -> None:
    expected = feed_server([ENDING[name]], end=False)[0].facts()
    for parts in splits(ENDING[name]):
        told, kept = feed_server(parts, end=False)
        assert (told.facts(), told.done, kept) == (expected, True, False)


@pytest.mark.parametrize("name", WHOLE)
def test_an_answer_cut_short_anywhere_is_never_complete(name: str) -> None:
    data = WHOLE[name]
    for at in range(len(data)):
        told, kept = feed_server([data[:at]])
        assert (told.done, told.lost, kept) == (False, True, False)


def test_a_body_that_ends_with_its_connection_is_complete_only_then() -> None:
    data = b"HTTP/1.1 200 OK\r\n\r\nabc"
    for parts in splits(data):
        assert not feed_server(parts, end=False)[0].done
        told, kept = feed_server(parts)
        assert (told.body, told.done, kept) == (b"abc", True, False)


def _answer(token: bytes, behaviour: int) -> bytes:
    body = b'{"token":"%b"}' % token
    plain = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    coded = CHUNKED + b"%x\r\n%b\r\n" % (len(body), body)
    return (
        plain,
        coded + b"0\r\n\r\n",
        plain + plain.replace(token, b"smuggled"),
        plain[:-3],
        coded,
        coded + b"zz\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20 + plain,
        b"HTTP/1.1 204 No\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body),
        plain.replace(b"Content", b"Transfer-Encoding: chunked\r\nContent"),
        b"",
    )[behaviour]


async def test_no_answer_reaches_another_client_and_none_cut_short_looks_whole() -> None:
    """PX-5: 40 clients at once, model servers that do every wrong thing in turn."""
    chance = random.Random(5)
    clean = broken = 0

    async def script(call: Call) -> None:
        behaviour = chance.choice((0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9))
        token = call.body.partition(b'"token": "')[2].partition(b'"')[0]
        await call.send(_answer(token, behaviour))
        if behaviour > 1:
            call.writer.close()

    async def ask(port: int, number: int) -> None:
        nonlocal clean, broken
        for turn in range(10):
            token = f"{number}-{turn}".encode()
            body = b'{"model": "%b", "token": "%b"}' % (MODEL.encode(), token)
            async with connect(port) as client:
                try:
                    answer = await client.ask(post(body))
                except (asyncio.IncompleteReadError, ConnectionError):
                    broken += 1
                    continue
            if answer.clean and answer.status == 200:
                assert answer.body == b'{"token":"%b"}' % token
                clean += 1
            else:
                assert answer.status in (200, 204, 502)
                assert not answer.clean or answer.status != 200
                broken += 1

    async with (
        run_model_server(script) as one,
        run_model_server(script) as two,
        conversation(one, two) as (proxy, _),
    ):
        await asyncio.gather(*(ask(proxy.port, number) for number in range(40)))
        assert clean + broken == 400
        assert min(clean, broken) > 50
        assert len(one.calls) + len(two.calls) == 400


def test_every_whole_answer_is_one_that_the_reader_accepts() -> None:
    for data in (*WHOLE.values(), *ENDING.values()):
        read_response(data[: data.index(b"\r\n\r\n") + 4])
