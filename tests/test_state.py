import pytest

from nimway.state import ModelLoad, ProxyState, StateError, decode, encode


def test_a_report_is_one_line_and_reads_back() -> None:
    state = ProxyState(
        revision="abc",
        ready=True,
        draining=False,
        models={"models/llama": ModelLoad(in_flight=3, queued=1, demand_total=40)},
    )
    line = encode(state)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode(line) == state


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"revision": 1, "ready": true, "draining": false}',
        b'{"revision": "a", "ready": 1, "draining": false}',
        b'{"revision": "a", "ready": true, "draining": false, "models": {"a": {"x": 1}}}',
        b"[" * 100_000,
    ],
)
def test_a_bad_line_is_refused(line: bytes) -> None:
    with pytest.raises(StateError):
        decode(line)
