"""Reading `model` from a multipart form, and replacing it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimway.proxy.model_name import ModelNameError
from nimway.proxy.multipart import PARTS_MAX, read_form_model, replace_form_model
from tests.proxy.test_conversations import error_of
from tests.support.proxy import Served, run_proxy
from tests.support.proxy_wire import OK_BODY, connect, post, run_model_server

TYPE = b"multipart/form-data; boundary=XX"
FILE = b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav'


def part(head: bytes, value: bytes) -> bytes:
    return b"--XX\r\n%b\r\n\r\n%b\r\n" % (head, value)


def named(name: bytes, value: bytes) -> bytes:
    return part(b"Content-Disposition: form-data; name=" + name, value)


END = b"--XX--\r\n"
MODEL = named(b'"model"', b"whisper")
AUDIO = part(FILE, b"RIFF\x00\xff\r\n--X\r\nmodel\r\n")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (TYPE, MODEL + AUDIO + END),
        (TYPE, AUDIO + MODEL + END),
        (TYPE, AUDIO + MODEL + END[:-2]),
        (b'Multipart/Form-Data;boundary="XX"', AUDIO + MODEL + END),
        (TYPE + b"; charset=utf-8", MODEL + END),
        (TYPE, named(b"model", b"whisper") + END),
        (TYPE, MODEL + named(b'"prompt"', b"model") + named(b'"x"', b"") + END),
    ],
)
def test_the_model_of_a_plain_form_is_read(content_type: bytes, body: bytes) -> None:
    model = read_form_model([content_type], body)
    assert model.name == "whisper"
    assert body[model.start : model.end] == b"whisper"


REFUSED = {
    "no model": AUDIO + END,
    "nothing": b"",
    "only an end": END,
    "twice": MODEL + MODEL + END,
    "twice, another case": MODEL + named(b'"Model"', b"b") + END,
    "twice, a token": MODEL + named(b"model", b"b") + END,
    "another case": named(b'"MODEL"', b"b") + END,
    "with spaces": named(b'" model"', b"b") + END,
    "empty": named(b'"model"', b"") + END,
    "no text": named(b'"model"', b"\xff") + END,
    "long": named(b'"model"', b"x" * 600) + END,
    "a file": named(b'"model"; filename="model"', b"b") + END,
    "escaped": named(b'"mo\\del"', b"b") + MODEL + END,
    "hidden in a file name": named(b'"f"; filename="a\\"; name="model"', b"b") + MODEL + END,
    "an extended name": named(b"\"f\"; name*=utf-8''model", b"b") + MODEL + END,
    "two names": named(b'"f"; name="model"', b"b") + MODEL + END,
    "two dispositions": part(
        b'Content-Disposition: form-data; name="f"\r\nContent-Disposition: form-data; name="model"',
        b"b",
    )
    + MODEL
    + END,
    "no disposition": part(b"Content-Type: text/plain", b"b") + MODEL + END,
    "folded": part(b'Content-Disposition: form-data;\r\n name="model"', b"b") + END,
    "encoded": part(
        b'Content-Disposition: form-data; name="model"\r\nContent-Transfer-Encoding: base64',
        b"YQ==",
    )
    + END,
    "a preamble": b"x\r\n" + MODEL + END,
    "an epilogue": MODEL + END + b"x",
    "another form behind": MODEL + END + MODEL + END,
    "no end": MODEL,
    "padding behind a boundary": b"--XX \r\n" + MODEL[6:] + END,
    "a boundary that goes on": MODEL + b"--XXY\r\n" + AUDIO + END,
    "a bare LF": MODEL.replace(b"\r\n", b"\n") + END,
    "an endless head": part(FILE + b"\r\nX: " + b"a" * 5000, b"b") + MODEL + END,
    "a part without a head": b"--XX\r\n\r\nb\r\n" + MODEL + END,
    "too many parts": named(b'"x"', b"") * PARTS_MAX + MODEL + END,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_form_that_names_no_model_clearly_is_refused(name: str) -> None:
    with pytest.raises(ModelNameError):
        read_form_model([TYPE], REFUSED[name])


@pytest.mark.parametrize(
    "content_types",
    [
        [],
        [TYPE, TYPE],
        [b"application/json"],
        [b"multipart/form-data"],
        [b"multipart/form-data; boundary="],
        [b"multipart/form-data; boundary=XX; boundary=YY"],
        [b'multipart/form-data; boundary="XX'],
        [b"multipart/mixed; boundary=XX"],
        [b"multipart/form-data; boundary=" + b"X" * 71],
        [b"multipart/form-data; boundary*=XX"],
    ],
)
def test_a_content_type_that_does_not_frame_the_form_is_refused(content_types: list[bytes]) -> None:
    with pytest.raises(ModelNameError):
        read_form_model(content_types, MODEL + END)


@given(st.binary(max_size=200), st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1))
def test_replacing_changes_the_name_and_no_other_byte(audio: bytes, name: str) -> None:
    body = part(FILE, audio.replace(b"--XX", b"")) + MODEL + named(b'"x"', b"whisper") + END
    spliced = replace_form_model(body, read_form_model([TYPE], body), name)
    assert spliced == body.replace(MODEL, named(b'"model"', name.encode()))
    assert read_form_model([TYPE], spliced).name == name


@given(st.binary(max_size=300))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    for body in (data, MODEL + data, b"--XX\r\n" + data):
        try:
            read_form_model([TYPE], body)
        except ModelNameError:
            pass


async def test_a_form_passes_byte_for_byte_and_an_alias_reaches_its_model() -> None:
    body = AUDIO + MODEL + END
    fields = f"Content-Type: {TYPE.decode()}\r\n"
    async with run_model_server() as model:
        served = Served("whisper", [model.address], aliases=["fast"])
        async with run_proxy(served) as proxy, connect(proxy.port) as client:
            request = post(body, path="/v1/audio/transcriptions", fields=fields)
            assert (await client.ask(request)).body == OK_BODY
            aliased = body.replace(MODEL, named(b'"model"', b"fast"))
            request = post(aliased, path="/openai/v1/audio/translations", fields=fields)
            assert (await client.ask(request)).status == 200
            assert [call.body for call in model.calls] == [body, body]
            assert model.calls[1].head.startswith(b"POST /v1/audio/translations ")
            assert model.calls[0].field(b"content-type") == [TYPE]
            answer = await client.ask(post(body, path="/v1/audio/translations"))
            assert (answer.status, error_of(answer)["param"]) == (400, "model")
