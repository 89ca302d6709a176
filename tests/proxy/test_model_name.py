"""Reading `model` from a body, and replacing it."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimway.proxy.model_name import (
    ModelNameError,
    read_model,
    read_plain,
    read_strictly,
    replace_model,
)

DEEP = b"[" * 10_000 + b"]" * 10_000

REFUSED = {
    "nothing": b"",
    "no JSON": b"model=a",
    "a list": b'["model"]',
    "a string": b'"model"',
    "null": b"null",
    "missing": b'{"prompt":"a"}',
    "another case": b'{"Model":"a"}',
    "a number": b'{"model":1}',
    "null as value": b'{"model":null}',
    "a list as value": b'{"model":["a"]}',
    "empty": b'{"model":""}',
    "twice": b'{"model":"a","model":"b"}',
    "twice, the same": b'{"model":"a","model":"a"}',
    "twice, once escaped": b'{"model":"a","mod\\u0065l":"b"}',
    "twice, the escaped one first": b'{"\\u006dodel":"b","model":"a"}',
    "escaped with capital digits": b'{"model":"a","\\u006Dodel":"b"}',
    "twice with a nested one between": b'{"model":"a","x":{"model":"b"},"model":"c"}',
    "beside a case variant": b'{"model":"a","Model":"b"}',
    "beside a case variant that comes first": b'{"MODEL":"b","model":"a"}',
    "beside a case variant with a number": b'{"model":"a","moDel":1}',
    "beside a case variant with null": b'{"model":"a","modeL":null}',
    "beside an escaped case variant": b'{"model":"a","\\u004dodel":"b"}',
    "a byte order mark": b'\xef\xbb\xbf{"model":"a"}',
    "trailing garbage": b'{"model":"a"}x',
    "a second value": b'{"model":"a"}{"model":"b"}',
    "a trailing comma": b'{"model":"a",}',
    "single quotes": b"{'model':'a'}",
    "a comment": b'{"model":"a"/**/}',
    "NaN": b'{"model":"a","x":NaN}',
    "a leading zero": b'{"model":"a","x":01}',
    "a control character": b'{"model":"a","x":"\n"}',
    "a bad escape": b'{"model":"a","x":"\\q"}',
    "a lone surrogate": b'{"model":"\\ud800"}',
    "no UTF-8": b'{"model":"\xff"}',
    "UTF-16": '{"model":"a"}'.encode("utf-16"),
    "depth": b'{"model":"a","x":' + DEEP + b"}",
    "cut off": b'{"model":"a","x":"',
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_body_that_names_no_model_clearly_is_refused(name: str) -> None:
    with pytest.raises(ModelNameError):
        read_model(REFUSED[name])


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model":"a"}', "a"),
        (b' { "prompt" : "x" , "model" : "org/name" } ', "org/name"),
        (b'{"model":"org\\/name"}', "org/name"),
        (b'{"model":"\\u00e9"}', "é"),
        (b'{"mod\\u0065l":"a"}', "a"),  # every parser reads the same: no second key to hide
        ('{"model":"é"}'.encode(), "é"),
        (b'{"x":{"model":"b"},"model":"a"}', "a"),
        (b'{"model":"a","tools":[{"model":1},{"model":2}]}', "a"),
        (b'{"model":"a","prompt":"the \\"model\\": x"}', "a"),
        (b'{"model":"a","prompt":"\\u0065scaped"}', "a"),
        (b'{"model":"a","x":"\xff"}', "a"),
        (b'{"model":"a","x":{"Model":"b"},"models":["c"],"Mode":1}', "a"),
    ],
)
def test_the_model_of_a_plain_body_is_read(body: bytes, name: str) -> None:
    assert read_model(body) == name


def test_ten_megabytes_and_ten_thousand_levels_take_bounded_time() -> None:
    long = b'{"model":"a","prompt":"%b"}' % (b"x" * 10_000_000)
    nested = b'{"x":[' + b'{"model":"b"},' * 300_000 + b'1],"model":"a"}'
    started = time.process_time()
    assert read_model(long) == "a"
    assert read_model(nested) == "a"
    assert replace_model(nested, "c").endswith(b'"model":"c"}')
    assert time.process_time() - started < 2.0


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.just("model"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.text(max_size=6).filter(lambda key: key.lower() != "model"), _JSON, max_size=4
    ),
    st.text(min_size=1, max_size=9),
    st.text(min_size=1, max_size=9),
    st.integers(0, 4),
    st.sampled_from([None, 1]),
)
def test_replacing_changes_the_name_and_no_other_byte(
    rest: dict[str, object], old: str, new: str, at: int, indent: int | None
) -> None:
    rest.pop("model", None)
    items = list(rest.items())
    items.insert(at, ("model", old))
    body = json.dumps(dict(items), ensure_ascii=False, indent=indent).encode()
    assert read_model(body) == old
    spliced = replace_model(body, new)
    assert list(json.loads(spliced).items()) == [
        (key, new if key == "model" else value) for key, value in dict(items).items()
    ]
    value = json.dumps(old, ensure_ascii=False).encode()
    before, _, after = body.partition(b'"model": ' + value)
    if body.count(b'"model"') == 1:
        assert spliced.startswith(before)
        assert spliced.endswith(after)


_TOKENS = st.sampled_from(
    [
        *(b'{ } [ ] : , "model" "Model" "MODEL" "a" "x" 1 null true'.split()),
        *(b'"mod\\u0065l"', b'"\\"model"', b'"model\\""', b'"\\model"', b'"\\/"', b'"\xff"', b" "),
        *(
            b'"model":',
            b'"model":"a"',
            b'"x":',
            b',"model":"b"',
            b'{"x":{"model":"b"}',
            b"\xc3\xa9",
        ),
    ]
)


@given(
    st.lists(_TOKENS, max_size=9).map(b"".join),
    st.sampled_from((b"", b'{"model":"a"', b'{"x":1,"model":"a"', b'{"model":')),
    st.sampled_from((b"", b"}", b'"}', b',"y":[]}')),
)
def test_where_the_short_way_finds_a_name_the_strict_one_finds_the_same(
    middle: bytes, start: bytes, end: bytes
) -> None:
    body = start + middle + end
    if name := read_plain(body):
        assert read_strictly(body) == name


@pytest.mark.parametrize("name", REFUSED)
def test_the_short_way_refuses_as_much(name: str) -> None:
    assert read_plain(REFUSED[name]) == ""


def test_plain_bodies_take_the_short_way() -> None:
    assert (
        read_plain(b'{"messages":[{"content":"a\\nb"}],"model":"org/m","stream":true}') == "org/m"
    )
